"""A small app behind the whole guard, in a process of its own: `python tests/http/guarded.py` prints its port.

Deadlines are a second where production has ten.
"""

import asyncio
import socket
import sys

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Scope

from service import logs
from service.api.guard import BodyGuard, BodyLimit, RequestId
from service.api.problems import LastResort, ProblemError, exception_handlers
from service.api.protocol import DeadlineProtocol
from service.clock import SystemClock
from service.storage.connection import RedisError

SMALL_BYTES = 100_000
DEADLINE_S = 1.0
COUNTED_BYTES = 4_000_000


class QuickProtocol(DeadlineProtocol):
    HEAD_TIMEOUT_S = DEADLINE_S
    STALL_TIMEOUT_S = DEADLINE_S


def limit(scope: Scope) -> BodyLimit:
    return BodyLimit(COUNTED_BYTES if scope["path"] == "/count" else SMALL_BYTES, DEADLINE_S)


async def count(request: Request) -> Response:
    size_bytes = 0
    async for chunk in request.stream():
        size_bytes += len(chunk)
    return PlainTextResponse(f"{size_bytes} {sorted(set(request.headers))}")


async def careless(request: Request) -> Response:
    return PlainTextResponse("answered without a look at the body")


async def wait(request: Request) -> Response:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    return PlainTextResponse("nobody is there")


async def large(request: Request) -> Response:
    return PlainTextResponse("x" * 50_000_000)


async def gone(request: Request) -> Response:
    raise ProblemError(409, "not_ready", "Not yet.", errors=[{"pointer": "/width", "detail": "\ud800"}], id="job_1")


async def redis(request: Request) -> Response:
    raise RedisError("Error connecting to redis://:canary-secret@10.0.0.1")


async def bug(request: Request) -> Response:
    raise LookupError("canary-text")


def app() -> Starlette:
    clock = SystemClock()
    return Starlette(
        routes=[
            Route("/count", count, methods=["POST"]),
            Route("/small", count, methods=["POST"]),
            Route("/careless", careless, methods=["POST"]),
            Route("/wait", wait),
            Route("/large", large),
            Route("/gone", gone),
            Route("/redis", redis),
            Route("/bug", bug),
        ],
        middleware=[
            Middleware(RequestId, clock=clock),
            Middleware(LastResort),
            Middleware(BodyGuard, limit=limit, clock=clock),
        ],
        exception_handlers=exception_handlers,
    )


def main() -> None:
    logs.configure("info")
    with socket.create_server(("127.0.0.1", 0), backlog=512) as listener:
        sys.stdout.write(f"{listener.getsockname()[1]}\n")
        sys.stdout.flush()
        config = uvicorn.Config(app(), http=QuickProtocol, ws="none", log_config=None, access_log=False)
        asyncio.run(uvicorn.Server(config).serve([listener]))


if __name__ == "__main__":
    main()
