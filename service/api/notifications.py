"""What became of telling a caller that his job, or batch, is over; and telling him again.

    {"webhook_id", "state", "next_at", "attempts": [{"at", "status", "error", "duration_s"}, …]}

`state`: `none` (nobody is to be told), `waiting` (it is not over yet), `pending`, `delivered`, `given_up` (after 72 h)
or `off` (the receiver said 410). The newest 50 attempts are kept, for as long after the end as records are.
"""

from dataclasses import dataclass
from typing import Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from service.api.auth import Door, Endpoint, owned, promptly
from service.api.openapi import UNKNOWN, Operation, ref
from service.api.past import Past
from service.api.past_batches import PastBatches
from service.api.problems import ProblemError
from service.domain.notice import view
from service.storage.desk import Desk

_SHOWN: Final = {200: ("The notification", ref("Notification"))}
_AGAIN: Final = {202: ("It is due now", ref("Notification"))}
_REFUSED: Final = UNKNOWN | {409: "not_ended, or no_callback"}
OPERATIONS: Final = (
    Operation(
        "get",
        "/v1/jobs/{job_id}/notifications",
        "getNotification",
        "What became of the call to `callback_url`",
        _SHOWN,
        problems=UNKNOWN,
    ),
    Operation(
        "post",
        "/v1/jobs/{job_id}/redeliver",
        "redeliver",
        "Call `callback_url` again, for 72 h from now",
        _AGAIN,
        problems=_REFUSED,
    ),
    Operation(
        "get",
        "/v1/batches/{batch_id}/notifications",
        "getBatchNotification",
        "What became of the call to the batch's `callback_url`",
        _SHOWN,
        problems=UNKNOWN,
    ),
    Operation(
        "post",
        "/v1/batches/{batch_id}/redeliver",
        "redeliverBatch",
        "Call the batch's `callback_url` again, for 72 h from now",
        _AGAIN,
        problems=_REFUSED,
    ),
)


@dataclass(frozen=True, slots=True)
class _Subject:
    """A job or a batch, as far as it is to be told of."""

    id: str
    caller: str
    url: str | None
    hook: str | None
    over: bool

    @property
    def wanted(self) -> bool:
        return bool(self.url or self.hook)


class Notifications:
    def __init__(self, desk: Desk, past: Past, past_batches: PastBatches) -> None:
        self._desk = desk
        self._past_batches = past_batches
        self._store = desk.store
        self._past = past

    def endpoints(self, door: Door) -> list[Endpoint]:
        """In the order of OPERATIONS."""
        return [door(self.of_job), door(self.again_of_job), door(self.of_batch), door(self.again_of_batch)]

    async def of_job(self, request: Request, caller: str) -> Response:
        return await self._show(await self._job(request, caller))

    async def of_batch(self, request: Request, caller: str) -> Response:
        return await self._show(await self._batch(request, caller))

    async def again_of_job(self, request: Request, caller: str) -> Response:
        return await self._again(await self._job(request, caller))

    async def again_of_batch(self, request: Request, caller: str) -> Response:
        return await self._again(await self._batch(request, caller))

    async def _show(self, subject: _Subject, status: int = 200) -> Response:
        notice = await promptly(self._store.notices.get(subject.id))
        return JSONResponse(view(subject.id, notice, wanted=subject.wanted), status)

    async def _again(self, subject: _Subject) -> Response:
        if not subject.over:
            raise ProblemError(409, "not_ended", "It is told of when it is over, and it is not.")
        bells = await promptly(
            self._store.notices.resend(subject.id, subject.caller, url=subject.url, hook=subject.hook)
        )
        if not bells:
            raise ProblemError(409, "no_callback", "Nobody is to be told: it has no callback_url.")
        self._desk.ring(bells)
        return await self._show(subject, 202)

    async def _job(self, request: Request, caller: str) -> _Subject:
        job_id = request.path_params["job_id"]
        job = await promptly(self._store.get(job_id))
        if job is None:
            told = await self._past.look(job_id, caller)
            return _Subject(job_id, told["caller"], told["callback_url"], None, over=True)
        owned(job, caller)
        return _Subject(job.id, job.caller, job.callback_url, job.hook, over=job.ended and job.sidecar)

    async def _batch(self, request: Request, caller: str) -> _Subject:
        batch_id = request.path_params["batch_id"]
        batch = await self._past_batches.record(batch_id, caller)
        if batch is None:
            told = await self._past_batches.look(batch_id, caller)
            return _Subject(batch_id, told["caller"], told["callback_url"], None, over=True)
        return _Subject(batch.id, batch.caller, batch.callback_url, None, over=batch.marked)
