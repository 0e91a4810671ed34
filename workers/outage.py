"""The store is away: one step at a time tries whether it is back, the others do not wait for its deadline."""

import logging
from typing import Final

log = logging.getLogger(__name__)

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

    def failed(self, now: int, began: int, detail: str) -> None:
        """A call that began then came to nothing. If another has done well since, it was that call, not the store."""
        if began > self._worked:
            if self._next is None:
                log.warning("the store is away: %s", detail)
            self._next = now + PROBE_MS

    def worked(self, now: int) -> None:
        if self._next is not None:
            log.warning("the store is back")
        self._next, self._worked = None, now
