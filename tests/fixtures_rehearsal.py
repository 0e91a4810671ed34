"""A rehearsal provider and a receiver of callbacks, on real sockets.

A test module asks for them with `pytest_plugins = ["tests.fixtures_rehearsal"]`.
"""

import threading
from collections.abc import Iterator

import pytest

from tests.rehearsal import WITHIN_S, Hands, Mailbox, Rehearsal, playing


@pytest.fixture(scope="session")
def rehearsal_process() -> Iterator[Rehearsal]:
    """One provider for the whole run."""
    with playing(Hands()) as provider:
        yield provider


@pytest.fixture
def rehearsal(rehearsal_process: Rehearsal) -> Rehearsal:
    """The provider as at its start: no tasks, no faults, tasks that end at once and tell no progress."""
    rehearsal_process.http.post("/_reset").raise_for_status()
    return rehearsal_process


@pytest.fixture
def mailbox() -> Iterator[Mailbox]:
    with Mailbox() as box:
        thread = threading.Thread(target=box.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield box
        box.shutdown()
        thread.join(WITHIN_S)
