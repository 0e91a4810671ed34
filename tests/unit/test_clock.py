"""Instants as callers read them."""

import pytest

from service.clock import Clock, SystemClock
from service.domain.instants import rfc3339


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (-1, "1969-12-31T23:59:59.999Z"),
        (1_795_385_045_678, "2026-11-22T22:04:05.678Z"),
        (951_782_400_007, "2000-02-29T00:00:00.007Z"),
    ],
)
def test_an_instant_is_utc_with_milliseconds(ms: int, text: str) -> None:
    assert rfc3339(ms) == text


def test_the_system_clock_goes_forward() -> None:
    clock: Clock = SystemClock()
    first = clock.monotonic_s()
    assert clock.monotonic_s() >= first
    assert clock.now_ms() > 1_700_000_000_000
