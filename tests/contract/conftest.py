"""A real Valkey for every test that asks."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Final

import pytest

from service.storage.connection import AsyncRedis, Redis, connect, connect_sync
from tests.contract.valkey import Valkey, running

TIMEOUT_S: Final = 5.0


@pytest.fixture(scope="session")
def valkey_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One server for all tests of this process."""
    with running(tmp_path_factory.mktemp("valkey")) as server:
        yield server.url


@pytest.fixture
def redis_url(valkey_url: str) -> str:
    """The session's server, without keys and scripts."""
    client = connect_sync(valkey_url, timeout_s=TIMEOUT_S)
    client.flushall()
    client.script_flush()
    client.close()
    return valkey_url


@pytest.fixture
def own_valkey(tmp_path: Path) -> Iterator[Valkey]:
    """A server that the test may kill and start again."""
    with running(tmp_path) as server:
        yield server


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
