"""A running system without workers, for tests that call the workers' steps themselves.

A test module asks for it with `pytest_plugins = ["tests.fixtures_steps"]`.
"""

from collections.abc import Iterator

import pytest

from deploy.local.stack import Stack
from service.storage.connection import connect_sync
from tests.steps import Bench

CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE")


@pytest.fixture(scope="session")
def stack_without_workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with Stack(tmp_path_factory.mktemp("steps"), workers=0) as stack:
        yield stack


@pytest.fixture
def bench(stack_without_workers: Stack, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """Nothing is known of any job: an empty Redis and an empty ledger. The bucket keeps what others left in it."""
    stack = stack_without_workers
    for name in CREDENTIALS:  # boto3 finds its own
        monkeypatch.setenv(name, stack.environment[name])
    client = connect_sync(stack.redis.url, timeout_s=5)
    client.flushdb()
    client.close()
    bench = Bench(stack)
    yield bench
    bench.close()
