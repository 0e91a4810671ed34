"""One POST to a caller's address, from servers on loopback that do what servers should not."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import httpx
import pytest

from service.domain.addresses import HostList
from workers.courier import HOST_MOST, HttpCourier, Reply
from workers.network import GuardedBackend, Resolve, Shards
from workers.resolver import Resolver

pytestmark = pytest.mark.anyio

TLS = httpx.create_ssl_context(trust_env=False)  # 30 ms to make
HASTY_S = 0.3
Behave = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def far_side(behave: Behave) -> AsyncIterator[int]:
    """Its port."""
    talks: set[asyncio.Task[None]] = set()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        talks.add(task)
        with contextlib.suppress(OSError, asyncio.CancelledError):
            await behave(reader, writer)
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in talks:
            task.cancel()
        await asyncio.gather(*talks, return_exceptions=True)
        await server.wait_closed()


@contextlib.asynccontextmanager
async def courier(*hosts: str, deadline_s: float = 15.0, resolve: Resolve | None = None) -> AsyncIterator[HttpCourier]:
    allowed = HostList.parse(",".join(hosts), any_public=True)
    backend = GuardedBackend(allowed.private_ok, resolve=resolve)
    async with Shards(connections=16, backend=backend, tls=TLS) as shards:
        yield HttpCourier(shards, allowed, deadline_s=deadline_s)


def says(answer: bytes) -> Behave:
    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()

    return behave


async def posted(port: int, *, deadline_s: float = 15.0) -> Reply | None:
    async with courier(f"127.0.0.1:{port}", deadline_s=deadline_s) as sends:
        return await sends.post(f"http://127.0.0.1:{port}/hook", {}, b"{}")


async def test_a_slow_receiver_holds_up_no_other() -> None:
    asked, gate = asyncio.Semaphore(0), asyncio.Event()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        asked.release()
        await gate.wait()
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")

    quick = says(b"HTTP/1.1 204 No Content\r\n\r\n")
    async with (
        far_side(slow) as slow_port,
        far_side(quick) as quick_port,
        courier(f"127.0.0.1:{slow_port}", f"localhost:{quick_port}") as sends,
    ):
        url = f"http://127.0.0.1:{slow_port}/"
        waiting = [asyncio.create_task(sends.post(url, {}, b"{}")) for _ in range(HOST_MOST)]
        for _ in waiting:
            await asyncio.wait_for(asked.acquire(), 30)
        assert await sends.post(url, {}, b"{}") is None, "its places are taken: this one is put off"
        assert await sends.post(f"http://localhost:{quick_port}/", {}, b"{}") == Reply(204)
        gate.set()
        assert await asyncio.gather(*waiting) == [Reply(204)] * HOST_MOST
        assert await sends.post(url, {}, b"{}") == Reply(204)


async def test_a_name_that_resolves_slowly_takes_one_thread_and_holds_up_no_other() -> None:
    gate, begun, asked = threading.Event(), asyncio.Semaphore(0), list[str]()

    def look_up(host: str, port: int) -> Sequence[str]:
        asked.append(host)
        if host == "slow.example":
            gate.wait(30)
        return ["127.0.0.1"]

    resolver = Resolver(look_up, most=2)

    async def resolve(host: str, port: int) -> Sequence[str]:
        begun.release()
        return await resolver(host, port)

    async with far_side(says(b"HTTP/1.1 204 No Content\r\n\r\n")) as port:
        slow, quick = (f"{name}.example:{port}" for name in ("slow", "quick"))
        async with courier(slow, quick, resolve=resolve) as sends:
            for _ in range(2):
                waiting = [asyncio.create_task(sends.post(f"http://{slow}/", {}, b"{}")) for _ in range(HOST_MOST)]
                for _ in waiting:
                    await asyncio.wait_for(begun.acquire(), 30)
                assert await sends.post(f"http://{quick}/", {}, b"{}") == Reply(204)
                await asyncio.wait_for(begun.acquire(), 30)
                for task in waiting:
                    task.cancel()
                await asyncio.gather(*waiting, return_exceptions=True)
            gate.set()
    assert asked.count("slow.example") == 1


async def test_a_callers_name_is_not_asked_for_in_the_loops_own_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The provider's name needs them."""

    async def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the loop was asked")

    async with far_side(says(b"HTTP/1.1 204 No Content\r\n\r\n")) as port, courier(f"localhost:{port}") as sends:
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", refuse)
        assert await sends.post(f"http://localhost:{port}/", {}, b"{}") == Reply(204)


async def test_who_does_not_answer_is_left_at_the_deadline() -> None:
    async def silent(_: asyncio.StreamReader, __: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    async with far_side(silent) as port:
        assert await posted(port, deadline_s=HASTY_S) == Reply(error="timeout")


async def test_a_body_without_end_is_not_read() -> None:
    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"10000\r\n" + b"x" * 65_536 + b"\r\n")
            await writer.drain()

    async with far_side(endless) as port:
        assert await posted(port) == Reply(200)


@pytest.mark.parametrize(
    "answer", [b"", b"\x00\xff\r\n\r\n", b"HTTP/1.1 2xx\r\n\r\n", b"HTTP/1.1 200 OK\r\n" + b"a" * 200_000]
)
async def test_what_is_no_answer_is_a_failure(answer: bytes) -> None:
    async with far_side(says(answer)) as port:
        assert await posted(port) == Reply(error="broken_off")


@pytest.mark.parametrize("place", ["mailto:x", "https:login", "foo:bar", "http://xn--a/"])
async def test_where_a_redirect_leads_is_not_read(place: str) -> None:
    head = f"HTTP/1.1 302 Found\r\nLocation: {place}\r\nContent-Length: 0\r\n\r\n"
    async with far_side(says(head.encode())) as port:
        assert await posted(port) == Reply(302)


@pytest.mark.parametrize(("text", "asked_s"), [("120", 120.0), ("-1", 0.0), ("Wed, 21 Oct 2026 07:28:00 GMT", 0.0)])
async def test_retry_after_is_taken_in_seconds(text: str, asked_s: float) -> None:
    head = f"HTTP/1.1 503 Service Unavailable\r\nRetry-After: {text}\r\nContent-Length: 0\r\n\r\n"
    async with far_side(says(head.encode())) as port:
        assert await posted(port) == Reply(503, asked_s=asked_s)


async def test_a_name_of_this_machine_is_not_dialled_unless_it_is_listed() -> None:
    async with far_side(says(b"HTTP/1.1 200 OK\r\n\r\n")) as port, courier() as sends:
        assert await sends.post(f"https://localhost:{port}/", {}, b"{}") == Reply(error="address_refused")
