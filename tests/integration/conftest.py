"""One running system for the scenarios that leave it whole."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.house import House, opened


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    yield from opened(tmp_path_factory.mktemp("house"), workers=1)


@pytest.fixture
def fragile_house(tmp_path: Path) -> Iterator[House]:
    """Two worker processes, and a short wait for unknown outcomes: for tests that kill."""
    yield from opened(tmp_path, workers=2, UNKNOWN_WAIT_S="20")
