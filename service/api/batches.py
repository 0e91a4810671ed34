"""Batches that are there: look at them, list them and their jobs, read the manifest, cancel, retry.

How one comes in is in `uploads`, its events are in `events`.
"""

from collections.abc import Mapping
from typing import Final

from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response, StreamingResponse

from service.api.auth import ADMIN, promptly
from service.api.listing import cursor, limit_of, place_of, status_of
from service.api.past_batches import PastBatches
from service.api.problems import ProblemError
from service.api.waiting import Waiting, applied
from service.domain import layout
from service.domain.batch import Batch, view
from service.domain.job import Job, Status
from service.domain.view import view as view_job
from service.intake import UploadLost
from service.manifest import Manifest
from service.recovery import Recovery
from service.storage.bucket import Bucket
from service.storage.desk import Desk
from service.storage.terms import Bell, Unconfirmed

NDJSON: Final = "application/x-ndjson"


class Batches:
    """Each method is a route's endpoint; the caller is known by then."""

    def __init__(self, desk: Desk, bucket: Bucket, past: PastBatches, waiting: Waiting, recovery: Recovery) -> None:
        self._desk = desk
        self._store = desk.store
        self._bucket = bucket
        self._past = past
        self._waiting = waiting
        self._recovery = recovery
        self._manifest = Manifest(desk.store, bucket)

    async def page(self, request: Request, caller: str) -> Response:
        """Newest first. One whose record has left Redis is in no list."""
        given = request.query_params
        limit, before = limit_of(given), place_of(given, "batch")
        owner = None if caller == ADMIN else caller
        ids = await promptly(self._store.batch_ids(owner, before, limit + 1))  # one more tells whether there is more
        found = [await promptly(self._store.batches.get(batch_id)) for batch_id in ids[:limit]]
        more = cursor(ids[limit - 1]) if len(ids) > limit else None
        return JSONResponse({"batches": [view(batch) for batch in found if batch], "next_cursor": more})

    async def show(self, request: Request, caller: str) -> Response:
        batch_id = _id(request)
        batch = await self._past.record(batch_id, caller)
        if batch is None:
            return JSONResponse(await self._past.look(batch_id, caller))
        wait_s = self._waiting.wanted_s(request)
        if wait_s is None:
            return JSONResponse(view(batch))
        return JSONResponse(view(await self._waiting.marked(batch, wait_s)), headers=applied(wait_s))

    async def jobs(self, request: Request, caller: str) -> Response:
        """In the order of the lines; those that are not jobs yet come later."""
        given = request.query_params
        limit, status, after = limit_of(given), status_of(given), place_of(given, "job")
        batch = await self._past.record(_id(request), caller)
        if batch is None:
            await self._past.look(_id(request), caller)
            raise ProblemError(409, "not_kept", "The records of its jobs have left: its manifest tells of them.")
        jobs = await self._members(batch.id, status, after, limit + 1)
        more = cursor(jobs[limit - 1].id) if len(jobs) > limit else None
        return JSONResponse({"jobs": [view_job(job) for job in jobs[:limit]], "next_cursor": more})

    async def manifest(self, request: Request, caller: str) -> Response:
        """The jobs that have ended so far; once all have, a link to the object that says so for good."""
        batch_id = _id(request)
        batch = await self._past.record(batch_id, caller)
        if batch is not None and not batch.marked:
            return StreamingResponse(self._manifest.chunks(batch), media_type=NDJSON)
        if batch is None:
            await self._past.look(batch_id, caller)
        link = await self._bucket.presign_get(layout.manifest_key(batch_id), f"{batch_id}.ndjson")
        return RedirectResponse(link, 307, {"Referrer-Policy": "no-referrer"})

    async def cancel(self, request: Request, caller: str) -> Response:
        """No more is bought for it. Its jobs are cancelled as due work; what is in the bucket already stays."""
        batch_id = _id(request)
        batch = await self._past.record(batch_id, caller)
        if batch is None:
            await self._past.look(batch_id, caller)
        elif await promptly(self._store.batches.cancel(batch_id)):
            self._desk.ring([Bell("batches", batch_id)])
            return JSONResponse(await self._past.now_or_then(batch_id, caller))
        raise ProblemError(409, "already_ended", "The batch has ended, or was cancelled before.")

    async def retry(self, request: Request, caller: str) -> Response:
        """A new batch of the jobs that failed: a batch has one retry, and asked again the answer is the same one."""
        batch = await self._past.record(_id(request), caller)
        if batch is None:
            await self._past.look(_id(request), caller)
            raise ProblemError(409, "not_retryable", "The records of its jobs have left.")
        if batch.retried_by:
            return await self._answer(batch.retried_by, caller, 200)
        if not batch.marked:
            raise ProblemError(409, "not_ended", "The batch has not ended yet.")
        return await self._retried(batch, caller)

    async def _retried(self, batch: Batch, caller: str) -> Response:
        try:
            made = await self._recovery.begin(batch)
        except UploadLost:
            raise ProblemError(503, "unavailable", "Nothing was made. Ask again.", headers=_SOON) from None
        except Unconfirmed:
            detail = "Too few replicas confirmed the batch. Ask again."
            raise ProblemError(503, "durability_unconfirmed", detail, headers=_SOON) from None
        if made is None:
            raise ProblemError(409, "not_retryable", "No job of it has failed and waits for a retry.")
        batch_id, fresh = made
        self._desk.ring([Bell("batches", batch_id)])
        return await self._answer(batch_id, caller, 202 if fresh else 200)

    async def _answer(self, batch_id: str, caller: str, status: int) -> Response:
        told = await self._past.now_or_then(batch_id, caller)
        return JSONResponse(told, status, {"Location": f"/v1/batches/{batch_id}"})

    async def _members(self, batch_id: str, status: Status | None, after: str | None, most: int) -> list[Job]:
        """The first `most` of its jobs whose records can be read."""
        jobs: list[Job] = []
        while len(jobs) < most:
            ids = await promptly(self._store.members(batch_id, after, most, status))
            jobs += await promptly(self._store.several(ids))
            if len(ids) < most:
                break
            after = ids[-1]
        return jobs[:most]


_SOON: Final[Mapping[str, str]] = {"Retry-After": "1"}


def _id(request: Request) -> str:
    return str(request.path_params["batch_id"])
