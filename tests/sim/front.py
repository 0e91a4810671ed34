"""The HTTP process of a simulated system: the real endpoints, without the wire."""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, cast
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from service.api.endings import Endings
from service.api.jobs import Jobs
from service.api.orders import Orders
from service.api.past import Past
from service.api.problems import ProblemError
from service.api.reader import Reader
from service.api.waiting import Waiting
from service.api.webhooks import Webhooks
from service.domain import layout
from service.domain.batch import LINES_MOST, Batch, BatchStatus
from service.domain.job import Status
from service.intake import Intake, Upload, UploadLost
from service.metrics import Metrics
from service.storage.batches import Began, Enrolled
from service.storage.bucket import Bucket
from service.storage.connection import RedisError
from service.storage.inputs import Inputs
from service.storage.objects import BucketError
from service.storage.terms import Bell
from tests.sim.bucket import SimBucket
from tests.sim.staff import KEYS, MEBIBYTE, RULES, Town, desk_of
from tests.sim.world import Process

METRICS: Final = Metrics()
PATIENCE_S: Final = 30.0  # of whoever asks; what he asked for goes on without him


class Front(Process):
    """The HTTP process: the real endpoints, without the wire.

    Each call answers (status, body); None: it died, or took too long.
    """

    def __init__(self, town: Town, name: str, *, skew_ms: int = 0) -> None:
        super().__init__(town.world, name, skew_ms=skew_ms)
        desk = desk_of(self, town)
        bucket = cast("Bucket", SimBucket(self, town.shelf))
        inputs = Inputs(desk.store, bucket, MEBIBYTE)
        past = Past(desk.store, bucket)
        orders = Orders(RULES)
        self._desk = desk
        self._intake = Intake(desk.store, inputs, RULES, self.clock)
        waiting = Waiting(desk.store, Reader(desk.store), self.clock, 60.0)
        self._jobs = Jobs(desk, bucket, past, waiting, orders, inputs, self.clock)
        self._endings = Endings(desk, past, inputs, self.clock)
        self._webhooks = Webhooks(desk, KEYS, METRICS)

    async def order(self, caller: str, key: str, body: bytes) -> tuple[int, bytes] | None:
        request = _request(body, headers=[(b"idempotency-key", key.encode())])
        return await self._answer("order", lambda: self._jobs.create(request, caller))

    async def upload(
        self, caller: str, key: str, rows: Sequence[bytes], callback_url: str | None = None
    ) -> tuple[int, bytes] | None:
        return await self._answer("upload", lambda: self._take_in(caller, key, rows, callback_url))

    async def cancel_batch(self, caller: str, batch_id: str) -> tuple[int, bytes] | None:
        return await self._answer("cancel batch", lambda: self._cancel_batch(batch_id))

    async def retry_batch(self, caller: str, batch_id: str) -> tuple[int, bytes] | None:
        return await self._answer("retry batch", lambda: self._retry_batch(caller, batch_id))

    async def _take_in(self, caller: str, key: str, rows: Sequence[bytes], callback_url: str | None) -> Response:
        begun = await self._intake.begin(caller, key)
        if not isinstance(begun, Upload):
            return JSONResponse({"id": begun.known_id}, 200 if begun.began is Began.KNOWN else 503)
        try:
            for row in rows:
                await begun.add(row)
            return self._sealed(*await begun.seal({}, callback_url))
        except UploadLost:
            return JSONResponse({}, 503)

    async def _cancel_batch(self, batch_id: str) -> Response:
        return JSONResponse({}, 200 if await self._desk.store.batches.cancel(batch_id) else 409)

    async def _retry_batch(self, caller: str, batch_id: str) -> Response:
        """409: it is not over yet; 422: nothing of it failed."""
        store = self._desk.store
        batch = await store.batches.get(batch_id)
        if batch is None or not batch.marked:
            return JSONResponse({}, 409)
        ids = await store.members(batch_id, None, LINES_MOST)
        failed = [job.id for job in await store.several(ids) if job.status is Status.FAILED]
        if not failed:
            return JSONResponse({}, 422)
        again = layout.new_id("batch", self.clock.now_ms(), secrets.token_bytes(layout.ENTROPY_BYTES))
        await store.batches.open(again, caller, None)
        if not await store.batches.stage_retries(again, caller, failed):
            return JSONResponse({}, 503)
        whole = Batch(again, caller, BatchStatus.RUNNING, total=len(failed), retry_of=batch_id)
        return self._sealed(*await store.batches.enroll(whole))

    def _sealed(self, enrolled: Enrolled, batch_id: str) -> Response:
        if enrolled is Enrolled.GONE:
            return JSONResponse({}, 503)
        self._desk.ring([Bell("batches", batch_id)])
        return JSONResponse({"id": batch_id}, 202)

    async def cancel(self, caller: str, job_id: str) -> tuple[int, bytes] | None:
        return await self._answer("cancel", lambda: self._endings.cancel(_request(job_id=job_id), caller))

    async def retry(self, caller: str, job_id: str, *, rerun: bool = False) -> tuple[int, bytes] | None:
        request = _request(job_id=job_id, query=b"rerun=true" if rerun else b"")
        return await self._answer("retry", lambda: self._endings.retry(request, caller))

    async def delete(self, caller: str, job_id: str) -> tuple[int, bytes] | None:
        return await self._answer("delete", lambda: self._endings.delete(_request(job_id=job_id), caller))

    async def call_back(self, url: str, body: bytes) -> int | None:
        """The provider's POST to one of our addresses: its status."""
        job_id, token = urlsplit(url).path.split("/")[-2:]
        request = _request(body, job_id=job_id, token=token)
        answer = await self._answer("callback", lambda: self._webhooks.receive(request))
        return answer[0] if answer else None

    async def _answer(self, what: str, call: Callable[[], Awaitable[Response]]) -> tuple[int, bytes] | None:
        if not self.alive:
            return None
        work = self.start(self._respond(call))
        await asyncio.wait([work], timeout=PATIENCE_S)
        if not work.done() or work.cancelled():
            return None
        status, body = work.result()
        self.world.answers.append({"to": what, "status": status})
        return status, body

    async def _respond(self, call: Callable[[], Awaitable[Response]]) -> tuple[int, bytes]:
        """What the application's exception handlers make of it."""
        try:
            response = await call()
        except ProblemError as error:
            return error.status, b""
        except HTTPException as error:
            return error.status_code, b""
        except (RedisError, BucketError, TimeoutError):
            return 503, b""
        except Exception as error:  # noqa: BLE001 -- a bug of whatever kind
            self.world.bugs.append(f"{self.name}: an endpoint raised {error!r}")
            return 500, b""
        return response.status_code, bytes(response.body)


def _request(
    body: bytes = b"", *, headers: Sequence[tuple[bytes, bytes]] = (), query: bytes = b"", **path: str
) -> Request:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    scope = {"type": "http", "method": "POST", "path": "/", "headers": list(headers), "query_string": query}
    return Request(scope | {"path_params": path}, receive)
