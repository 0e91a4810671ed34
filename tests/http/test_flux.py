"""The provider's client, against servers on loopback that do what servers should not."""

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable

import httpcore
import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.domain.answers import Accepted, Answer, Held, NotAccepted, Pending, Unknown
from service.secret import Secret
from workers.flux import ANSWER_BYTES_MAX, Flux
from workers.network import Shards

pytestmark = pytest.mark.anyio

KEY = "canary-key-of-the-provider"
PATIENT_S = 60.0
HASTY_S = 0.3
MUCH = 32 * ANSWER_BYTES_MAX
TLS = httpx.create_ssl_context(trust_env=False)  # 30 ms to make

Answering = Callable[[asyncio.StreamWriter], Awaitable[None]]


class FarSide:
    """Reads whole requests, and gives each the same answer: bytes, or whatever a coroutine does to the connection."""

    def __init__(self, answering: Answering | bytes) -> None:
        self._answering = answering
        self._talks: set[asyncio.Task[None]] = set()
        self.connections = 0
        self.requests: list[bytes] = []
        self.base_url = ""

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task
        self._talks.add(task)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                self.requests.append(await _request(reader))
                if callable(self._answering):
                    await self._answering(writer)
                    break
                writer.write(self._answering)
                await writer.drain()
        writer.close()

    async def stop(self) -> None:
        for task in self._talks:
            task.cancel()
        await asyncio.gather(*self._talks, return_exceptions=True)


async def _request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    return head + await reader.readexactly(int(lengths[0].partition(b":")[2]) if lengths else 0)


@contextlib.asynccontextmanager
async def far_side(answering: Answering | bytes) -> AsyncIterator[FarSide]:
    side = FarSide(answering)
    server = await asyncio.start_server(side.talk, "127.0.0.1", 0)
    side.base_url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/flux/v1"
    try:
        yield side
    finally:
        server.close()
        await side.stop()
        await server.wait_closed()


@contextlib.asynccontextmanager
async def client(base_url: str, *, deadline_s: float = PATIENT_S, x_key: bool = False) -> AsyncIterator[Flux]:
    """As workers/wiring.py builds it."""
    backend = httpcore.AnyIOBackend()
    posts = Shards(connections=4, backend=backend, tls=TLS, keepalive_s=0)
    polls = Shards(connections=4, backend=backend, tls=TLS)
    async with posts, polls:
        yield Flux(base_url, Secret(KEY), x_key=x_key, posts=posts, polls=polls, deadline_s=deadline_s)


async def submitted(answering: Answering | bytes, *, deadline_s: float = PATIENT_S) -> Answer:
    async with far_side(answering) as side, client(side.base_url, deadline_s=deadline_s) as flux:
        answer = await flux.submit("flux-dev", {"prompt": "a lighthouse"})
        assert len(side.requests) == 1, "nothing is posted again"
        return answer


def reply(body: bytes, *headers: str, status: str = "200 OK", kind: str = "application/json") -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Type: {kind}", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


TAKEN = reply(b'{"id": "task-1", "cost": 4}')


# ---- what is sent --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x_key", "header"), [(False, f"authorization: bearer {KEY}".lower()), (True, f"x-key: {KEY}")]
)
async def test_a_submission_carries_the_key_and_the_body_as_json(x_key: bool, header: str) -> None:
    async with far_side(TAKEN) as side, client(side.base_url, x_key=x_key) as flux:
        assert await flux.submit("flux-dev", {"prompt": "ein Türmchen"}) == Accepted("task-1", 4)
        head, _, body = side.requests[0].partition(b"\r\n\r\n")
        assert head.startswith(b"POST /flux/v1/flux-dev HTTP/1.1\r\n")
        assert header in head.decode().lower()
        assert json.loads(body) == {"prompt": "ein Türmchen"}


async def test_an_id_is_quoted_in_the_question_for_it() -> None:
    async with far_side(reply(b'{"id": "x", "status": "Pending"}')) as side, client(side.base_url) as flux:
        assert await flux.result("a/b&c=d#e") == Pending("x")
        assert side.requests[0].startswith(b"GET /flux/v1/get_result?id=a%2Fb%26c%3Dd%23e HTTP/1.1\r\n")


async def test_a_post_never_rides_on_a_connection_that_was_used_before() -> None:
    async with far_side(TAKEN) as side, client(side.base_url) as flux:
        for _ in range(3):
            assert await flux.submit("flux-dev", {}) == Accepted("task-1", 4)
        assert side.connections == 3


async def test_a_poll_may_ride_on_one() -> None:
    async with far_side(reply(b'{"id": "x", "status": "Pending"}')) as side, client(side.base_url) as flux:
        for _ in range(3):
            await flux.result("x")
        assert side.connections == 1


# ---- not sent, or no telling ---------------------------------------------------------------------------------------


async def test_a_refused_connection_means_not_accepted() -> None:
    async with far_side(TAKEN) as side:
        gone = side.base_url
    async with client(gone) as flux:
        assert isinstance(await flux.submit("flux-dev", {}), NotAccepted)
        assert isinstance(await flux.result("x"), Unknown)


async def reset(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


async def hang_up(writer: asyncio.StreamWriter) -> None:
    writer.close()


async def cut(writer: asyncio.StreamWriter) -> None:
    writer.write(TAKEN[:-5])
    await writer.drain()


@pytest.mark.parametrize("answering", [reset, hang_up, cut])
async def test_a_connection_that_ends_after_the_request_was_read_tells_nothing(answering: Answering) -> None:
    assert isinstance(await submitted(answering), Unknown)


async def hang(writer: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


async def drip(writer: asyncio.StreamWriter) -> None:
    """Never silent for long, so that no timeout between two bytes would end it."""
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1000000\r\n\r\n{")
    while True:
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(HASTY_S / 20)


@pytest.mark.parametrize("answering", [hang, drip])
async def test_a_slow_answer_is_bounded_by_the_deadline_of_the_whole_call(answering: Answering) -> None:
    assert isinstance(await submitted(answering, deadline_s=HASTY_S), Unknown)
    async with far_side(answering) as side, client(side.base_url, deadline_s=HASTY_S) as flux:
        assert isinstance(await flux.result("x"), Unknown)


async def test_an_answer_that_never_ends_is_not_read_to_its_end() -> None:
    sent = 0

    async def pour(writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n")
        while sent < MUCH:
            writer.write(b" " * 65_536)
            sent += 65_536
            await writer.drain()

    assert isinstance(await submitted(pour), Unknown)
    assert sent < MUCH, "what lies in the sockets' buffers, and no more"


async def test_a_page_is_no_answer() -> None:
    page = reply(b"<html>task-1</html>", kind="text/html")
    assert isinstance(await submitted(page), Unknown)
    assert isinstance(await submitted(reply(b"<html>", status="503 Away", kind="text/html")), Unknown)


async def test_a_redirect_is_not_followed() -> None:
    async with far_side(TAKEN) as elsewhere:
        for status in ("301 Moved", "302 Found", "307 Temporary", "308 Permanent"):
            away = reply(b"", f"Location: {elsewhere.base_url}/flux-dev", status=status)
            assert isinstance(await submitted(away), Held)
            async with far_side(away) as side, client(side.base_url) as flux:
                assert isinstance(await flux.result("x"), Unknown)
        assert elsewhere.connections == 0


@pytest.mark.parametrize("place", ["mailto:x", "https:login", "foo:bar", "http://xn--a/"])
async def test_where_a_redirect_leads_is_not_read(place: str) -> None:
    away = reply(b"", f"Location: {place}", status="302 Found")
    assert isinstance(await submitted(away), Held)
    async with far_side(away) as side, client(side.base_url) as flux:
        assert isinstance(await flux.result("x"), Unknown)


@settings(deadline=None, max_examples=60)
@given(st.binary(max_size=400), st.sampled_from([b"", b"HTTP/1.1 200 OK\r\n", TAKEN[:60], TAKEN]))
def test_whatever_bytes_come_back_there_is_an_answer(noise: bytes, start: bytes) -> None:
    async def talk() -> None:
        async def blurt(writer: asyncio.StreamWriter) -> None:
            writer.write(start + noise)
            await writer.drain()

        async with far_side(blurt) as side, client(side.base_url) as flux:
            assert isinstance(await flux.submit("flux-dev", {}), Answer)
            assert isinstance(await flux.result("x"), Answer)

    asyncio.run(talk())


@settings(deadline=None, max_examples=60)
@given(st.text(max_size=50))
def test_whatever_a_prompt_holds_it_is_sent(prompt: str) -> None:
    async def talk() -> None:
        async with far_side(TAKEN) as side, client(side.base_url) as flux:
            assert await flux.submit("flux-dev", {"prompt": prompt}) == Accepted("task-1", 4)
            assert json.loads(side.requests[0].partition(b"\r\n\r\n")[2]) == {"prompt": prompt}

    asyncio.run(talk())


async def test_half_a_surrogate_pair_does_not_raise() -> None:
    async with far_side(TAKEN) as side, client(side.base_url) as flux:
        assert await flux.submit("flux-dev", {"prompt": "\ud800"}) == Accepted("task-1", 4)


# ---- secrets and surroundings --------------------------------------------------------------------------------------


@pytest.mark.parametrize("answering", [TAKEN, reset, hang, reply(b"{", status="401 No"), b"\x00"])
async def test_the_key_is_in_no_answer_and_in_no_log(
    answering: Answering | bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with far_side(answering) as side, client(side.base_url, deadline_s=HASTY_S) as flux:
        told = [await flux.submit("flux-dev", {"prompt": "a"}), await flux.result("x"), vars(flux)]
    assert KEY not in repr(told) + caplog.text


async def test_a_proxy_in_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    async with far_side(TAKEN) as proxy, far_side(TAKEN) as side:
        for name in ("HTTP_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.base_url)
            monkeypatch.setenv(name.lower(), proxy.base_url)
        async with client(side.base_url) as flux:
            assert await flux.submit("flux-dev", {}) == Accepted("task-1", 4)
        assert proxy.connections == 0
