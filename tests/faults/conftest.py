"""A Valkey that keeps what it acknowledges, and the HTTP process over it, for the tests of one module."""

from collections.abc import Iterator

import pytest

from deploy.local.valkey import Valkey
from tests.faults.http_process import HttpProcess, serving_process


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    server = Valkey(tmp_path_factory.mktemp("valkey"))
    server.start()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def http(valkey: Valkey, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpProcess]:
    with serving_process(tmp_path_factory.mktemp("http"), valkey.url) as process:
        yield process
