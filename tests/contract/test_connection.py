"""Clients from URLs against real servers, and against one that hangs up."""

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import uvloop

from service.storage.connection import RedisError, connect, connect_sync
from tests.contract.valkey import Valkey, running

pytestmark = pytest.mark.anyio

TIMEOUT_S: Final = 5.0
FAILOVER_S: Final = 20.0


@pytest.fixture
def hangup() -> Iterator[tuple[str, list[bytes]]]:
    """A server that reads one request on each connection and closes it: its URL, and what it read."""
    seen: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                peer, _ = listener.accept()
                with peer:
                    seen.append(peer.recv(4096))

    thread = threading.Thread(target=serve)
    thread.start()
    yield f"redis://127.0.0.1:{listener.getsockname()[1]}", seen
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[tuple[Valkey, Valkey]]:
    """A server that asks for a password, and a sentinel that asks for none."""
    for name in ("primary", "sentinel"):
        (tmp_path / name).mkdir()
    with running(tmp_path / "primary") as primary:
        guard = connect_sync(primary.url, timeout_s=TIMEOUT_S)
        guard.config_set("requirepass", "s3cret")
        guard.close()
        config = tmp_path / "sentinel.conf"
        config.write_text(f"sentinel monitor images 127.0.0.1 {primary.port} 1\nsentinel auth-pass images s3cret\n")
        sentinel = Valkey(tmp_path / "sentinel")
        try:
            sentinel.start(str(config), "--sentinel")
            yield primary, sentinel
        finally:
            sentinel.kill()


async def test_both_flavours_reach_the_database_of_the_url(redis_url: str) -> None:
    url = redis_url.removesuffix("/0") + "/3"
    sync, connection = connect_sync(url, timeout_s=TIMEOUT_S), connect(url, timeout_s=TIMEOUT_S)
    await connection.set("where", "three")
    assert sync.get("where") == b"three"
    assert sync.client_info()["db"] == 3
    await connection.aclose()
    sync.close()


async def test_a_refused_command_is_not_sent_again(hangup: tuple[str, list[bytes]]) -> None:
    url, seen = hangup
    connection, sync = connect(url, timeout_s=TIMEOUT_S), connect_sync(url, timeout_s=TIMEOUT_S)
    with pytest.raises(RedisError):
        await connection.incr("n")
    assert len(seen) == 1
    with pytest.raises(RedisError):
        await asyncio.to_thread(sync.incr, "n")
    assert len(seen) == 2
    await connection.aclose()
    sync.close()


async def test_a_silent_server_is_given_up_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}"
        connection, sync = connect(url, timeout_s=0.2), connect_sync(url, timeout_s=0.2)
        for ask in (connection.ping, lambda: asyncio.to_thread(sync.ping)):
            started = time.monotonic()
            with pytest.raises(RedisError):
                await ask()
            assert time.monotonic() - started < TIMEOUT_S
        await connection.aclose()
        sync.close()


async def test_callers_wait_for_a_connection_of_a_small_pool(redis_url: str) -> None:
    connection = connect(redis_url, timeout_s=TIMEOUT_S, max_connections=2)
    await asyncio.gather(*(connection.incr("n") for _ in range(100)))
    assert await connection.get("n") == b"100"
    await connection.aclose()


async def test_sentinels_name_the_primary(watched: tuple[Valkey, Valkey]) -> None:
    """The sentinel is open, and answers those who show it the password of Redis all the same."""
    primary, sentinel = watched
    url = f"sentinel://:s3cret@127.0.0.1:1,127.0.0.1:{sentinel.port}/images/2"
    connection, sync = connect(url, timeout_s=TIMEOUT_S), connect_sync(url, timeout_s=TIMEOUT_S)
    assert await connection.set("who", "async")
    assert sync.get("who") == b"async"
    assert sync.client_info()["laddr"] == f"127.0.0.1:{primary.port}"
    assert (await connection.client_info())["db"] == 2
    await asyncio.gather(*(connection.incr("n") for _ in range(100)))  # more callers than connections
    await connection.aclose()
    sync.close()


async def test_a_sentinel_that_knows_other_users_is_asked_without_credentials(watched: tuple[Valkey, Valkey]) -> None:
    primary, sentinel = watched
    admin = connect_sync(primary.url.replace("//", "//:s3cret@"), timeout_s=TIMEOUT_S)
    admin.acl_setuser("darkroom", enabled=True, passwords=["+other"], keys=["*"], commands=["+@all"])
    admin.close()
    connection = connect(f"sentinel://darkroom:other@127.0.0.1:{sentinel.port}/images", timeout_s=TIMEOUT_S)
    assert (await connection.client_info())["user"] == "darkroom"
    await connection.aclose()


async def test_no_primary_is_a_redis_error(watched: tuple[Valkey, Valkey]) -> None:
    _, sentinel = watched
    connection = connect(f"sentinel://127.0.0.1:{sentinel.port}/other", timeout_s=TIMEOUT_S)
    with pytest.raises(RedisError):
        await connection.incr("n")
    await connection.aclose()


def test_a_connection_that_closes_before_a_write_is_an_outage_under_uvloop_too(redis_url: str) -> None:
    async def write() -> None:
        client = connect(redis_url, timeout_s=TIMEOUT_S)
        pool: Any = client.connection_pool  # untyped
        connection = await pool.get_connection()
        connection._writer.transport.abort()
        try:
            with pytest.raises(RedisError):
                await connection.send_command("PING")
        finally:
            await pool.release(connection)
            await client.aclose()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(write())
