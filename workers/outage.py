"""The store is away: one step at a time tries whether it is back, the others do not wait for its deadline."""

from typing import Final

PROBE_MS: Final = 2_000


class Outage:
    """One per process. Instants are milliseconds of a lease's clock."""

    def __init__(self) -> None:
        self._next: int | None = None  # when the next one may try; None: the store is not known to be away
        self._worked = -1  # when it last did what it was asked

    def may_try(self, now: int) -> bool:
        """Whether to call the store. True takes the turn, while it is away."""
        if self._next is None:
            return True
        if now < self._next:
            return False
        self._next = now + PROBE_MS
        return True

    def failed(self, now: int, began: int) -> None:
        """A call that began then came to nothing. If another has done well since, it was that call, not the store."""
        if began > self._worked:
            self._next = now + PROBE_MS

    def worked(self, now: int) -> None:
        self._next, self._worked = None, now
