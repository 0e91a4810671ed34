"""A server over a real Valkey, and what a worker would move its jobs with.

A test module asks for it with `pytest_plugins = ["tests.fixtures_web"]`.
"""

from collections.abc import AsyncIterator, Iterator

import httpx
import pytest

from service.clock import SystemClock
from service.storage.bell import Bells
from service.storage.connection import connect, connect_sync
from service.storage.desk import Desk
from service.storage.store import Store
from service.wiring import limits
from tests.contract.conftest import own_valkey, redis_url, valkey_url
from tests.serving import Serving, person, serving, settings_of

__all__ = ["alice", "desk", "own_valkey", "redis_url", "valkey_url", "web"]


@pytest.fixture
def web(redis_url: str) -> Iterator[Serving]:
    with serving(redis_url) as running:
        yield running


@pytest.fixture
async def alice(web: Serving) -> AsyncIterator[httpx.AsyncClient]:
    async with person("alice", web.url) as client:
        yield client


@pytest.fixture
async def desk(redis_url: str) -> AsyncIterator[Desk]:
    """What a worker would move jobs with."""
    redis, sync = connect(redis_url, timeout_s=5.0), connect_sync(redis_url, timeout_s=5.0)
    yield Desk(Store(redis, limits(settings_of(redis_url))), Bells(redis, sync), SystemClock())
    await redis.aclose()
    sync.close()
