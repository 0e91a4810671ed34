"""At most four large bodies are held at once; who holds one is known by its `100 Continue`."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import httpx
import pytest
from starlette.requests import Request

from service.api.problems import ProblemError
from service.api.room import LARGE_AT_ONCE, Room
from tests.serving import PEOPLE, Serving

pytest_plugins = ["tests.fixtures_web"]
pytestmark = [pytest.mark.anyio, pytest.mark.processes]

WITHIN_S = 15.0
LARGE_BYTES = 3_000_000
CREDIT = b" " * 2_000_000  # at 64 KiB/s the rest may take half a minute
SMALL_ORDER = {"model": "flux-dev", "prompt": "a fox"}
LARGE = b" " * 300_000 + json.dumps(SMALL_ORDER).encode()


def request_with(*headers: tuple[bytes, bytes]) -> Request:
    return Request({"type": "http", "headers": list(headers)})


@asynccontextmanager
async def arriving(web: Serving) -> AsyncIterator[None]:
    """A large body whose first bytes have been asked for, and whose last never come."""
    url = httpx.URL(web.url)
    reader, writer = await asyncio.open_connection(url.host, url.port)
    head = f"Authorization: Bearer {PEOPLE['alice']}\r\nContent-Length: {LARGE_BYTES}\r\nExpect: 100-continue"
    writer.write(f"POST /v1/jobs HTTP/1.1\r\nHost: x\r\n{head}\r\n\r\n".encode())
    try:
        async with asyncio.timeout(WITHIN_S):
            assert b" 100 " in await reader.readuntil(b"\r\n\r\n")
        writer.write(CREDIT)
        yield
    finally:
        writer.close()


async def test_a_fifth_large_body_is_503_and_a_small_one_is_not(web: Serving, alice: httpx.AsyncClient) -> None:
    async with AsyncExitStack() as held:
        for _ in range(LARGE_AT_ONCE):
            await held.enter_async_context(arriving(web))
        answer = await alice.post("/v1/jobs", content=LARGE)
        assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
        assert answer.headers["retry-after"] == "5"
        assert (await alice.post("/v1/jobs", json=SMALL_ORDER)).status_code == 202
    assert (await alice.post("/v1/jobs", content=LARGE)).status_code == 202


async def test_a_refused_order_gives_its_place_back(alice: httpx.AsyncClient) -> None:
    for _ in range(LARGE_AT_ONCE + 1):
        assert (await alice.post("/v1/jobs", content=b"x" * 300_000)).status_code == 400


async def test_who_waits_for_the_job_takes_no_place(alice: httpx.AsyncClient) -> None:
    waiting = [
        asyncio.create_task(alice.post("/v1/jobs", content=LARGE, headers={"Prefer": "wait=60"}))
        for _ in range(LARGE_AT_ONCE)
    ]
    try:
        assert (await alice.post("/v1/jobs", content=LARGE)).status_code == 202
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


@pytest.mark.parametrize("header", [(b"content-length", b"101"), (b"transfer-encoding", b"chunked")])
async def test_large_is_what_says_so_or_does_not_say(header: tuple[bytes, bytes]) -> None:
    room = Room(100, within_s=0.01)
    small = request_with((b"content-length", b"100"))
    async with AsyncExitStack() as held:
        for _ in range(LARGE_AT_ONCE):
            await held.enter_async_context(room.place(request_with(header)))
        async with room.place(small):
            pass
        with pytest.raises(ProblemError, match="503 unavailable"):
            await held.enter_async_context(room.place(request_with(header)))
    async with room.place(request_with(header)):
        pass
