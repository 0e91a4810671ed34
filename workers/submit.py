"""Buying: the step that posts a job to the provider, at most once for each intent on record.

    claim → intent on record (confirmed) → POST → what the answer means, on record

Killed before the intent: nothing happened; the lease runs out and the job is rung again.
An intent that too few replicas confirm is taken back, and comes again after a pause: nothing was posted.
Killed after the intent, before or after the POST: nobody knows; the job waits in `submitting` for the callback that
names its attempt, and is posted once more, flagged, only when none can come any longer.
Killed after the answer, before it is on record: the same, and the callback or a hint brings the provider's id.
"""

import base64
import logging
import random
from dataclasses import dataclass
from typing import Any, Literal

from service.clock import Clock
from service.domain import events
from service.domain.answers import (
    Accepted,
    Answer,
    Failed,
    Held,
    Moderated,
    NotAccepted,
    Ready,
    Rejected,
    Throttled,
)
from service.domain.errors import ErrorCode
from service.domain.inputs import kept_key
from service.domain.job import FoundBy, Job, Queue, Status
from service.storage.bucket import Bucket
from service.storage.desk import Desk
from service.storage.objects import BucketRefused, BucketUnavailable
from service.storage.terms import Claim, Outcome
from service.tokens import CallbackKeys
from workers import retry
from workers.flux import Flux
from workers.lease import Lease, claimed, renewed
from workers.results import ready_event
from workers.timing import Timing

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Terms:
    """The settings of this step. `public_base_url` None: no callbacks, polling alone serves."""

    lease_s: float
    unknown_wait_s: float
    unknown_outcome: Literal["resubmit", "fail"]
    public_base_url: str | None
    input_bytes_max: int


class InputGone(Exception):
    """An input image was deleted from the bucket, or replaced by something larger than an input may be."""


class Submitter:
    def __init__(
        self,
        desk: Desk,
        flux: Flux,
        bucket: Bucket,
        timing: Timing,
        keys: CallbackKeys,
        clock: Clock,
        dice: random.Random,
        terms: Terms,
    ) -> None:
        self._desk = desk
        self._flux = flux
        self._bucket = bucket
        self._timing = timing
        self._keys = keys
        self._clock = clock
        self._dice = dice
        self._terms = terms

    async def run(self, job_id: str, alone: str | None = None) -> None:
        """Do what the job's state asks for now. A bell that comes too early or twice finds nothing to claim.

        `alone`: the group of suspects that the job is in.
        """
        async with claimed(self._desk, Queue.SUBMIT, job_id, self._terms.lease_s, alone) as claim:
            if claim is not None:
                await self._step(claim)

    async def _step(self, claim: Claim) -> None:
        job, lease = claim.job, Lease(claim, self._clock, self._terms.lease_s)
        if job.deadline_at is not None and job.deadline_at <= lease.now():
            await self._desk.decide(job, events.DeadlinePassed())
        elif job.status is Status.QUEUED:
            await self._buy(job, lease, gate_open=not claim.gate)
        elif job.possible_duplicate or self._terms.unknown_outcome == "fail":
            await self._desk.decide(job, events.GaveUp())
        else:
            log.warning("outcome unknown for its whole wait: submitted once more", extra={"job": job.id})
            await self._buy(job, lease, gate_open=not claim.gate)

    async def _buy(self, job: Job, lease: Lease, *, gate_open: bool) -> None:
        try:
            body = await self._body(job, lease)
        except (BucketUnavailable, BucketRefused) as error:
            delay_s = retry.STORE.wait_s(3, self._dice)
            await self._desk.decide(job, events.InputsAway(detail=str(error), delay_s=delay_s))
            return
        except InputGone as gone:
            await self._without_inputs(job, str(gone))
            return
        attempt = job.attempt + 1
        wait_s = await self._timing.unknown_wait_s(job.model, self._terms.unknown_wait_s)
        intended = await self._desk.decide(
            job,
            events.Intended(attempt=attempt, delay_s=wait_s),
            patience_s=self._terms.lease_s,
            unconfirmed=_not_posted(attempt, "too few replicas confirmed the intent"),
        )
        if intended is None:
            return
        if lease.holds():
            answer = await self._flux.submit(job.model, body | self._callback(job.id, attempt))
            event = await self._event(intended, attempt, answer, gate_open=gate_open)
        else:  # stopped for longer than the lease: what was true at the intent may not be so any more
            event = _not_posted(attempt, "this process was stopped before it could post")
        told = await self._desk.tell(job.id, event, patience_s=retry.REDIS_PATIENCE_S)
        if told.outcome is Outcome.TAKEN:
            detail = "the provider's task id belongs to another job"
            log.error(detail, extra={"job": job.id, "attempt": attempt})
            await self._desk.tell(job.id, events.OutcomeUnknown(attempt=attempt, detail=detail))

    async def _event(self, job: Job, attempt: int, answer: Answer, *, gate_open: bool) -> events.Event:
        """What a submission's answer says of the attempt."""
        match answer:
            case Accepted(provider_id, cost):
                delay_s = await self._timing.first_poll_s(job.model)
                return events.TaskAccepted(attempt=attempt, provider_id=provider_id, cost=cost, delay_s=delay_s)
            case Ready(provider_id=str() as provider_id) as ready:
                return ready_event(ready, attempt, provider_id, FoundBy.POLL, now_ms=job.intent_at or 0)
            case Moderated(_, reasons):
                return events.Moderated(attempt=attempt, detail=reasons)
            case Failed(_, message):
                return events.TaskFailed(attempt=attempt, detail=message)
            case Rejected(message):
                return events.Rejected(attempt=attempt, detail=message)
            case Held(reason, _):
                return events.Held(attempt=attempt, detail=reason)
            case Throttled(retry_after_s):
                return events.Throttled(attempt=attempt, delay_s=retry_after_s or retry.THROTTLED_S)
            case NotAccepted(detail):
                return self._refused(job, attempt, detail, gate_open=gate_open)
            case _:
                return events.OutcomeUnknown(attempt=attempt, detail=getattr(answer, "detail", "no task id"))

    def _refused(self, job: Job, attempt: int, detail: str, *, gate_open: bool) -> events.Event:
        """A closed gate means that nobody gets through: then it burns nothing."""
        if gate_open and job.refusals + 1 >= retry.SUBMISSIONS_MOST:
            return events.Exhausted(attempt=attempt, detail=detail)
        delay_s = retry.SUBMIT.wait_s(job.refusals, self._dice)
        return events.Refused(attempt=attempt, detail=detail, delay_s=delay_s, burns=gate_open)

    def _callback(self, job_id: str, attempt: int) -> dict[str, str]:
        if self._terms.public_base_url is None:
            return {}
        return {
            "webhook_url": self._keys.callback_url(self._terms.public_base_url, job_id, attempt),
            "webhook_secret": self._keys.secret(job_id, attempt),
        }

    async def _without_inputs(self, job: Job, detail: str) -> None:
        """Nothing can be submitted any more. A purchase that may have happened before stays as unknown as it was."""
        lost = events.Lost(code=ErrorCode.RECORD_CORRUPT, detail=detail)
        await self._desk.decide(job, lost if job.status is Status.QUEUED else events.GaveUp(detail=detail))

    async def _body(self, job: Job, lease: Lease) -> dict[str, Any]:
        """The model's own parameters, with input images from the bucket as base64. Raises BucketError, InputGone."""
        kept = {name: key for name, value in job.request.items() if (key := kept_key(value, job.id))}
        if not kept:
            return dict(job.request)
        async with renewed(lease, self._desk.store):  # large inputs may take longer than a lease to read
            return {**job.request, **{name: await self._input(key) for name, key in kept.items()}}

    async def _input(self, key: str) -> str:
        data = await self._bucket.get_bytes(key, self._terms.input_bytes_max)
        if data is None:
            raise InputGone("an input image is no longer in the bucket")
        return base64.b64encode(data).decode()


def _not_posted(attempt: int, detail: str) -> events.Event:
    """Ours to know, so neither unknown nor counted. Many in a row close the gate, as if the provider were away."""
    return events.Refused(attempt=attempt, detail=detail, delay_s=retry.SUBMIT.floor_s, burns=False)
