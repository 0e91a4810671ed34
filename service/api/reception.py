"""Taking one order that came in another API's words: the same rules, write and promises as `/v1/jobs`."""

from dataclasses import replace

from service.api.auth import promptly
from service.api.jobs import FULL_RETRY_AFTER_S, create, fresh_id, key_in_use, ordered
from service.api.problems import ProblemError
from service.clock import Clock
from service.domain.catalogue import Order
from service.domain.job import Job
from service.storage.desk import Desk
from service.storage.inputs import Inputs
from service.storage.terms import Idempotency, Outcome


class Reception:
    """One per process."""

    def __init__(self, desk: Desk, inputs: Inputs, clock: Clock) -> None:
        self._desk = desk
        self._inputs = inputs
        self._clock = clock

    async def take(self, caller: str, order: Order, idempotency: Idempotency | None, *, hook: str | None = None) -> Job:
        """The job on record: a new one, or the one that the key knows. Raises ProblemError, BucketError, RedisError.
        `hook`: whom else to notify, sealed.

        Killed anywhere: with the same key the same job is found, or made.
        """
        job = ordered(fresh_id(self._clock), caller, order)
        job = replace(job, request={**order.request, **await self._inputs.keep(job.id, order.inputs)}, hook=hook)
        written = await create(self._desk.store, job, deadline_s=order.deadline_s, idempotency=idempotency)
        self._desk.ring(written.bells)
        match written.outcome:
            case Outcome.CREATED:
                return replace(job, created_at=written.at)
            case Outcome.FULL:
                after = {"Retry-After": str(FULL_RETRY_AFTER_S)}
                raise ProblemError(429, "backlog_full", "Too many jobs wait already.", headers=after)
            case Outcome.CONFLICT:
                raise ProblemError(409, "idempotency_conflict", "This Idempotency-Key came with another body before.")
            case Outcome.BUSY:
                raise key_in_use()
        known = await promptly(self._desk.store.get(written.job_id))
        if known is None:
            raise ProblemError(404, "not_found", "The job of this Idempotency-Key has been deleted.")
        return known
