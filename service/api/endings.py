"""What ends, repeats or removes a job at its caller's word: cancel, retry, delete."""

from dataclasses import replace
from typing import Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from service.api.auth import owned, promptly
from service.api.jobs import create, fresh_id
from service.api.listing import invalid_parameter
from service.api.past import Past
from service.api.problems import ProblemError
from service.clock import Clock
from service.domain.events import CancelAsked
from service.domain.job import Job
from service.domain.successor import successor
from service.domain.view import view
from service.late import with_late_tasks
from service.storage.desk import Desk
from service.storage.inputs import Inputs
from service.storage.terms import Outcome

BUSY_S: Final = 120.0  # a step that still ran when its job was deleted has surely ended by then
TRIES: Final = 5  # a record that moves under us this often in a second is left to its worker
_FLAGS: Final = {"true": True, "false": False}  # nothing else: a `?rerun=` left empty must not buy


class Endings:
    def __init__(self, desk: Desk, past: Past, inputs: Inputs, clock: Clock) -> None:
        self._desk = desk
        self._store = desk.store
        self._past = past
        self._inputs = inputs
        self._clock = clock

    async def cancel(self, request: Request, caller: str) -> Response:
        """A job already bought is marked cancelled; its money and its slot are settled as due work."""
        for _ in range(TRIES):
            job = await self._job(request, caller, code="already_ended")
            if job.ended or job.sealed:
                raise ProblemError(409, "already_ended", "The job has ended, or its image is in the bucket already.")
            if cancelled := await promptly(self._desk.decide(job, CancelAsked())):
                return JSONResponse(view(cancelled))
        raise moving()

    async def retry(self, request: Request, caller: str) -> Response:
        """The old job and the new one change in one write: a job has one retry."""
        rerun = _flag(request, "rerun")
        for _ in range(TRIES):
            old = await self._job(request, caller, code="not_retryable")
            if old.retried_by:
                return await self._known(old.retried_by)
            old = await promptly(with_late_tasks(self._store, old))
            new = successor(old, fresh_id(self._clock), rerun=rerun)
            if new is None:
                raise ProblemError(409, "not_retryable", "Only a failed or cancelled job is retried.")
            kept = await self._inputs.copy(old, new.id)
            if kept is None:
                raise ProblemError(409, "not_retryable", "An input image of the job is no longer kept.")
            new = replace(new, request=kept)
            written = await create(self._store, new, takes_over=old)
            self._desk.ring(written.bells)
            if written.outcome is Outcome.RETRIED:
                return await self._known(written.job_id)
            if written.outcome is not Outcome.STALE:
                stamped = replace(new, created_at=written.at, finished_at=written.at if new.ended else None)
                return JSONResponse(view(stamped), 202, {"Location": f"/v1/jobs/{new.id}"})
        raise moving()

    async def delete(self, request: Request, caller: str) -> Response:
        """The record goes at once and a tombstone stays; the objects are erased as due work."""
        job_id = request.path_params["job_id"]
        for _ in range(TRIES):
            job = await promptly(self._store.get(job_id))
            if job is None:
                await self._past.delete(job_id, caller)
                return Response(status_code=204)
            owned(job, caller)
            if not job.ended:
                raise ProblemError(409, "not_ended", "The job has not ended: cancel it first.")
            outcome = await promptly(self._store.bury(job, busy_s=BUSY_S))
            if outcome is not Outcome.STALE:
                return Response(status_code=204)
        raise moving()

    async def _job(self, request: Request, caller: str, *, code: str) -> Job:
        """`code`: of the 409 for a job that only the bucket still knows, which has ended long ago."""
        job_id = request.path_params["job_id"]
        job = await promptly(self._store.get(job_id))
        if job is None:
            await self._past.look(job_id, caller)
            raise ProblemError(409, code, "The job ended so long ago that only the bucket keeps it.")
        return owned(job, caller)

    async def _known(self, job_id: str) -> Response:
        job = await promptly(self._store.get(job_id))
        if job is None:
            raise ProblemError(409, "not_retryable", "The job was retried, and that retry has been deleted.")
        return JSONResponse(view(job), 200, {"Location": f"/v1/jobs/{job_id}"})


def moving() -> ProblemError:
    return ProblemError(503, "unavailable", "The job changes too fast just now.", headers={"Retry-After": "1"})


def _flag(request: Request, name: str) -> bool:
    value = _FLAGS.get(request.query_params.get(name, "false"))
    if value is None:
        raise invalid_parameter(name, "Should be true or false")
    return value
