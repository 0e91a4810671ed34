"""A rehearsal provider and a receiver of callbacks, on real sockets.

A test module asks for them with `pytest_plugins = ["tests.fixtures_rehearsal"]`.
"""

import asyncio
import threading
from collections.abc import Iterator

import pytest

from deploy.rehearsal.app import build
from deploy.rehearsal.control import Control
from deploy.rehearsal.server import Server, address, bound
from tests.rehearsal import WITHIN_S, Hands, Mailbox, Rehearsal

NO_LATENCY = Control(latency_s=0.0, latency_spread_s=0.0, progress_events=0)
NO_WAIT_S = (0.01, 0.01, 0.01)


@pytest.fixture(scope="session")
def rehearsal_process() -> Iterator[Rehearsal]:
    """One provider for the whole run, in a thread of its own."""
    clock, closing, listening = Hands(), asyncio.Event(), threading.Event()
    sock = bound("127.0.0.1", 0)
    server = Server(build(NO_LATENCY, address(sock), clock, closing, NO_WAIT_S), closing, listening.set)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
    thread.start()
    assert listening.wait(WITHIN_S)
    provider = Rehearsal(address(sock), clock)
    yield provider
    provider.http.close()
    server.should_exit = True
    thread.join(WITHIN_S)


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
