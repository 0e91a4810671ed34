"""The clock as an argument. No other file reads it; time that decides a job's fate comes from Redis."""

import time
from datetime import UTC, datetime, timedelta
from typing import Final, Protocol

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Clock(Protocol):
    def now_ms(self) -> int:
        """Wall clock: milliseconds since 1970 UTC. May jump."""

    def monotonic_s(self) -> float:
        """Seconds since an unknown start, for durations. Never goes back."""


class SystemClock:
    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic_s(self) -> float:
        return time.monotonic()


def rfc3339(ms: int) -> str:
    """UTC with milliseconds: `2026-11-22T22:04:05.678Z`. Raises OverflowError outside the years 1 to 9999."""
    return (EPOCH + timedelta(milliseconds=ms)).isoformat(timespec="milliseconds").replace("+00:00", "Z")
