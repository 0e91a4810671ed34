"""`Prefer: wait=N` as strangers write it."""

from typing import cast

import pytest
from starlette.requests import Request

from service.api.reader import Reader
from service.api.waiting import Waiting
from service.clock import SystemClock
from service.storage.store import Store

WAITING = Waiting(cast("Store", None), cast("Reader", None), SystemClock(), 60.0)


@pytest.mark.parametrize(
    ("prefer", "wait_s"),
    [
        ("wait=0", 0.0),
        ("respond-async, wait=30", 30.0),
        ('Wait = "7"; x', 7.0),
        ("wait=61", 60.0),
        ("wait=99999999999", 60.0),
        ("wait=" + "9" * 5_000, 60.0),
        ("wait=-1", None),
        ("wait=1.5", None),
        ("wait=", None),
        ("await=5", None),
        ("", None),
    ],
)
def test_a_wait_counts_up_to_the_cap_however_long_its_number(prefer: str, wait_s: float | None) -> None:
    request = Request({"type": "http", "headers": [(b"prefer", prefer.encode())]})
    assert WAITING.wanted_s(request) == wait_s
