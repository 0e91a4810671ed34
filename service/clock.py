"""The clock as an argument. No other file reads it; time that decides a job's fate comes from Redis."""

import time
from typing import Protocol


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
