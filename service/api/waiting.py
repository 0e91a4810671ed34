"""`Prefer: wait=N` (RFC 7240): the answer waits for the end of a job or a batch, with no connection of its own."""

import re
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final, TypeVar

from starlette.requests import Request

from service.api.auth import promptly
from service.api.reader import Crowded, Reader
from service.clock import Clock
from service.domain.batch import Batch
from service.domain.job import Job
from service.storage.connection import RedisError
from service.storage.store import Store

WAIT: Final = re.compile(r"(?:^|[,;])\s*wait\s*=\s*\"?([0-9]+)\"?\s*(?:$|[,;])", re.IGNORECASE)
T = TypeVar("T", Job, Batch)
LOOK_EVERY_S: Final = 5.0  # should a wake-up be lost


class Waiting:
    """`longest_s` caps what callers may ask for."""

    def __init__(self, store: Store, reader: Reader, clock: Clock, longest_s: float) -> None:
        self._store = store
        self._reader = reader
        self._clock = clock
        self._longest_s = longest_s

    def wanted_s(self, request: Request) -> float | None:
        """The seconds that this request prefers to wait, capped; None if it does not say."""
        found = WAIT.search(request.headers.get("prefer", ""))
        return min(float(found[1]), self._longest_s) if found else None

    async def ended(self, job: Job, wait_s: float) -> Job:
        """The job as soon as it has ended; else as it is after `wait_s`, at shutdown, or when Redis goes away."""
        return await self._until(lambda seen: seen.ended, job, self._store.get, wait_s)

    async def marked(self, batch: Batch, wait_s: float) -> Batch:
        """The same for a batch, whose end is that its marker is in the bucket."""
        return await self._until(lambda seen: seen.marked, batch, self._store.batches.get, wait_s)

    async def _until(
        self, over: Callable[[T], bool], known: T, look: Callable[[str], Awaitable[T | None]], wait_s: float
    ) -> T:
        end_s = self._clock.monotonic_s() + wait_s
        with suppress(RedisError, TimeoutError, Crowded):
            async with self._reader.follow(id_=known.id) as feed:
                while not over(known):
                    seen = await promptly(look(known.id))
                    if seen is None:  # deleted, or back on an older primary
                        break
                    known = seen
                    left_s = end_s - self._clock.monotonic_s()
                    if over(known) or feed.over or left_s <= 0:
                        break
                    await feed.take(min(left_s, LOOK_EVERY_S))
        return known


def applied(wait_s: float) -> dict[str, str]:
    return {"Preference-Applied": f"wait={wait_s:g}"}
