"""`/healthz`: the process is up. `/readyz`: what it needs is there, each named. `/metrics`: its figures."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from service.api.auth import promptly
from service.clock import Clock
from service.metrics import CONTENT_TYPE, Metrics
from service.settings import BadSettings
from service.storage.connection import RedisError
from service.storage.objects import BucketError
from service.storage.store import Store

CHECK_WITHIN_S: Final = 2.0
KEPT_S: Final = 1.0  # anybody may ask: at most so often is Redis, or the store, asked in turn

# Returns once all is well, perhaps with a remark; raises what says otherwise.
Check = Callable[[], Awaitable[str | None]]


class Health:
    """`checks` by name, each bounded by CHECK_WITHIN_S."""

    def __init__(self, checks: Mapping[str, Check], clock: Clock) -> None:
        self._checks = checks
        self._clock = clock
        self._lock = asyncio.Lock()
        self._found: dict[str, dict[str, object]] = {}
        self._found_s = float("-inf")
        self.closing = False

    async def healthz(self, _: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def readyz(self, _: Request) -> Response:
        async with self._lock:
            if self._clock.monotonic_s() - self._found_s >= KEPT_S:
                found = await asyncio.gather(*(_look(check) for check in self._checks.values()))
                self._found = dict(zip(self._checks, found, strict=True))
                self._found_s = self._clock.monotonic_s()
        ready = not self.closing and all(found["ok"] for found in self._found.values())
        status = "ready" if ready else "closing" if self.closing else "not ready"
        body = {"status": status, "checks": self._found}
        return JSONResponse(body, 200 if ready else 503, {"Cache-Control": "no-store"})


async def _look(check: Check) -> dict[str, object]:
    try:
        async with asyncio.timeout(CHECK_WITHIN_S):
            remark = await check()
    except (RedisError, BucketError, TimeoutError) as error:
        return {"ok": False, "detail": type(error).__name__}
    except BadSettings as error:
        return {"ok": False, "detail": "; ".join(error.mistakes)}
    return {"ok": True, **({"detail": remark} if remark else {})}


class MetricsPage:
    """Its figures of Redis are as old as the last time that Redis answered."""

    def __init__(self, store: Store, metrics: Metrics) -> None:
        self._store = store
        self._metrics = metrics

    async def show(self, _: Request) -> Response:
        try:
            store = self._store
            told = await promptly(asyncio.gather(store.figures(), store.callbacks(), store.notices.figures()))
            self._metrics.show(*told, store.limits.max_in_flight)
            self._metrics.redis_up.set(1)
        except (RedisError, TimeoutError):
            self._metrics.redis_up.set(0)
        return Response(self._metrics.text(), headers={"Cache-Control": "no-store"}, media_type=CONTENT_TYPE)
