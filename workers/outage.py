"""The store is away: one step at a time tries whether it is back, the others do not wait for its deadline."""

from typing import Final

PROBE_MS: Final = 2_000


class Outage:
    """One per process. Instants are milliseconds of a lease's clock."""

    def __init__(self) -> None:
        self._next: int | None = None  # when the next one may try; None: the store is not known to be away

    def may_try(self, now: int) -> bool:
        """Whether to call the store. True takes the turn, while it is away."""
        if self._next is None:
            return True
        if now < self._next:
            return False
        self._next = now + PROBE_MS
        return True

    def failed(self, now: int) -> None:
        self._next = now + PROBE_MS

    def worked(self) -> None:
        self._next = None
