"""The HTTP process of a simulated system: the real endpoints, without the wire."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, cast
from urllib.parse import urlencode, urlsplit

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from service.api.batches import Batches
from service.api.endings import Endings
from service.api.jobs import Jobs
from service.api.orders import Orders
from service.api.past import Past
from service.api.past_batches import PastBatches
from service.api.problems import ProblemError
from service.api.reader import Reader
from service.api.uploads import Uploads
from service.api.waiting import Waiting
from service.api.webhooks import Webhooks
from service.intake import Intake
from service.metrics import Metrics
from service.recovery import Recovery
from service.storage.bucket import Bucket
from service.storage.connection import RedisError
from service.storage.inputs import Inputs
from service.storage.objects import BucketError
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
        waiting = Waiting(desk.store, Reader(desk.store), self.clock, 60.0)
        self._jobs = Jobs(desk, bucket, past, waiting, orders, inputs, self.clock)
        self._endings = Endings(desk, past, inputs, self.clock)
        batches = PastBatches(desk.store, bucket)
        self._uploads = Uploads(desk, Intake(desk.store, inputs, RULES, self.clock), orders, batches, METRICS)
        self._batches = Batches(desk, bucket, batches, waiting, Recovery(desk.store, self.clock))
        self._webhooks = Webhooks(desk, KEYS, METRICS)

    async def order(self, caller: str, key: str, body: bytes) -> tuple[int, bytes] | None:
        request = _request(body, headers=[(b"idempotency-key", key.encode())])
        return await self._answer("order", lambda: self._jobs.create(request, caller))

    async def upload(
        self, caller: str, key: str, rows: Sequence[bytes], callback_url: str | None = None
    ) -> tuple[int, bytes] | None:
        headers = [(b"idempotency-key", key.encode()), (b"content-type", b"application/x-ndjson")]
        query = urlencode({"callback_url": callback_url} if callback_url else {}).encode()
        request = _request(b"\n".join(rows), headers=headers, query=query)
        return await self._answer("upload", lambda: self._uploads.create(request, caller))

    async def cancel_batch(self, caller: str, batch_id: str) -> tuple[int, bytes] | None:
        return await self._answer("cancel batch", lambda: self._batches.cancel(_request(batch_id=batch_id), caller))

    async def retry_batch(self, caller: str, batch_id: str) -> tuple[int, bytes] | None:
        return await self._answer("retry batch", lambda: self._batches.retry(_request(batch_id=batch_id), caller))

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
            return error.status, error.code.encode()
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
