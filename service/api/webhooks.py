"""The provider's callbacks: believed, taken as a hint, or not used at all.

In this order: token (without Redis), proof, record, bell, answer. Killed anywhere: the provider calls again or the
job's next poll finds the same, for a callback only brings forward what a poll would learn. Nothing in a callback is a
5xx except 503 while Redis is away.
"""

import logging
from functools import partial
from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from service.api.auth import promptly
from service.api.problems import problem
from service.domain import answers, catalogue, events
from service.domain.answers import Callback
from service.domain.events import Event
from service.domain.job import FoundBy, Job
from service.domain.layout import valid_id
from service.metrics import Metrics
from service.storage.desk import Desk
from service.storage.record import CorruptRecord, NewerRecord
from service.storage.terms import Outcome
from service.tokens import CallbackKeys, Proof, VerifiedToken

log = logging.getLogger(__name__)

BODY_BYTES_MAX: Final = 65_536
URL_LIFE_MS: Final = 600_000  # of an image whose URL does not say when it dies
RETRIES_MOST: Final = 20  # of retries of retries that a late callback is passed along


class Webhooks:
    def __init__(self, desk: Desk, keys: CallbackKeys, metrics: Metrics) -> None:
        self._desk = desk
        self._keys = keys
        self._metrics = metrics

    async def receive(self, request: Request) -> Response:
        job_id = request.path_params["job_id"]
        token = self._keys.verify(job_id, request.path_params["token"])
        if token is None or not valid_id("job", job_id):
            self._count("wrong_token")
            raise HTTPException(404)  # the same that an unknown path raises
        body = await request.body()
        callback = answers.callback_payload(body)
        proof = self._proof(request, job_id, token, callback, body)
        try:
            known = await self._record(job_id, token.attempt, proof, callback)
        except (CorruptRecord, NewerRecord):
            self._count("unreadable_record")
            return Response(status_code=204)
        if known and proof is Proof.WRONG:
            return problem(401, "wrong_proof", "The proof is not that of this attempt's secret.")
        return Response(status_code=204)

    async def _record(self, job_id: str, attempt: int, proof: Proof, callback: Callback | None) -> bool:
        """False: the job is no longer kept."""
        now_ms = await promptly(self._desk.store.now_ms()) if _lacks_expiry(callback) else 0
        say = partial(event, attempt=attempt, proof=proof, callback=callback, ready_until=now_ms + URL_LIFE_MS)
        told = await promptly(self._desk.hear(job_id, say))
        if told.job is None:
            self._count("gone")
            return False
        if told.job.retried_by:
            await self._pass_along(told.job.retried_by)
        elif told.outcome is Outcome.TAKEN:
            self._count("task_of_another_job")
        elif told.changed:
            self._count(_HEARD[proof])
        else:
            self._count("ignored")
        if told.job.found_by is FoundBy.POLL and proof is not Proof.WRONG and _ends(callback):
            await self._late(job_id, proof)
        return True

    async def _late(self, job_id: str, proof: Proof) -> None:
        """A poll was first: count that this callback was not lost, so that polling may lean on callbacks again."""
        late_s = await promptly(self._desk.store.hear(job_id))
        if late_s is not None:
            self._count("late")
            log.info("a callback came after the poll", extra={"job": job_id, "late_s": late_s, "proof": proof.name})

    async def _pass_along(self, job_id: str) -> None:
        """Ring the retry, which owns the task now; its poll finds out what there is to know."""
        for _ in range(RETRIES_MOST):
            told = await promptly(self._desk.tell(job_id, events.Hinted()))
            if told.job is None or told.job.retried_by is None:
                break
            job_id = told.job.retried_by
        self._count("passed_to_retry")

    def _proof(
        self, request: Request, job_id: str, token: VerifiedToken, callback: Callback | None, body: bytes
    ) -> Proof:
        shown = {
            "body": callback.secret if callback else None,
            "header": request.headers.get("x-webhook-secret"),
            "signature": request.headers.get("x-bfl-signature"),
        }
        proof = self._keys.proof(
            job_id,
            token.attempt,
            token.kid,
            body_secret=shown["body"],
            header_secret=shown["header"],
            signature=shown["signature"],
            raw_body=body,
        )
        if proof is Proof.WRONG:
            kinds = "_and_".join(kind for kind, value in shown.items() if value)
            self._count(f"wrong_{kinds}")
            log.warning("a callback's proof is wrong", extra={"job": job_id, "shown_as": kinds})
        return proof

    def _count(self, outcome: str) -> None:
        self._metrics.callbacks.labels(outcome).inc()


_HEARD: Final = {Proof.RIGHT: "believed", Proof.NONE: "hint", Proof.WRONG: "poll_brought_forward"}


def event(job: Job, *, attempt: int, proof: Proof, callback: Callback | None, ready_until: int) -> Event | None:
    """What a callback for this attempt says to the job as it stands; None: nothing. Total."""
    if job.retried_by:
        return _late_task(job, attempt, proof, callback)
    if proof is Proof.WRONG:
        return events.Disproved()
    recorded = job.tasks.get(str(attempt))
    named = callback.provider_id if callback else None
    if isinstance(callback and callback.answer, answers.Pending) and recorded:
        return None  # progress: a poll could not tell more
    provider_id = recorded or named
    if proof is Proof.NONE or callback is None or provider_id is None or (named and named != provider_id):
        return events.Hinted(attempt=attempt, candidate=named)
    believed = _believed(job, attempt, provider_id, callback, ready_until)
    return believed or events.Hinted(attempt=attempt, candidate=named)


def _believed(job: Job, attempt: int, provider_id: str, callback: Callback, ready_until: int) -> Event | None:
    match callback.answer:
        case answers.Ready() as ready:
            return events.Ready(
                attempt=attempt,
                provider_id=provider_id,
                url=ready.url,
                expires_at=ready.expires_at or ready_until,
                seed=ready.seed,
                cost=ready.cost,
                found_by=FoundBy.WEBHOOK,
            )
        case answers.Moderated(reasons=reasons):
            return events.Moderated(attempt=attempt, detail=reasons)
        case answers.Failed(message=message):
            return events.TaskFailed(attempt=attempt, detail=message)
        case answers.Pending():
            delay_s = catalogue.typical_s(job.model)
            return events.TaskAccepted(attempt=attempt, provider_id=provider_id, delay_s=delay_s)
    return None


def _late_task(job: Job, attempt: int, proof: Proof, callback: Callback | None) -> Event | None:
    """Of a job that was retried while nobody knew of this purchase: its next retry finds the task on this record."""
    if proof is not Proof.RIGHT or callback is None or callback.provider_id is None or str(attempt) in job.tasks:
        return None
    return events.TaskAccepted(attempt=attempt, provider_id=callback.provider_id)


def _ends(callback: Callback | None) -> bool:
    return callback is not None and isinstance(callback.answer, answers.Ready | answers.Moderated | answers.Failed)


def _lacks_expiry(callback: Callback | None) -> bool:
    return callback is not None and isinstance(callback.answer, answers.Ready) and callback.answer.expires_at is None
