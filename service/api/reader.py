"""The one reader per HTTP process: it tails the events stream and wakes whoever listens, by job, batch or caller.

It reads only while somebody listens. What it hands out is a doorbell and may be lost (Redis restarted, the reader fell
too far behind): the feeds concerned end then, and a listener that must not miss anything looks at the record.
"""

import asyncio
import logging
from collections import defaultdict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final

from service.storage.connection import RedisError
from service.storage.store import Store
from service.storage.terms import Entry

log = logging.getLogger(__name__)

BLOCK_S: Final = 2.0  # of one XREAD; the reader's own connection must allow more
AGAIN_S: Final = 0.5  # after Redis was away
FEEDS_MOST: Final = 5_000  # listeners of one process
ENTRIES_MOST: Final = 1_000  # waiting for one slow listener, who then must come again
POSITION_WITHIN_S: Final = 0.8

_Place = tuple[str | None, str | None, str | None]


class Crowded(Exception):
    """As many listeners as this process takes."""


def order(eid: str) -> tuple[int, int]:
    """Stream ids compare as two numbers."""
    ms, _, n = eid.partition("-")
    return int(ms), int(n)


class Feed:
    """What one listener is told. `since`: every entry after it is handed out. `over`: no more will come."""

    def __init__(self, since: str) -> None:
        self.since = since
        self.over = False
        self._entries: deque[Entry] = deque()
        self._bell = asyncio.Event()

    def push(self, entry: Entry) -> None:
        if len(self._entries) >= ENTRIES_MOST:
            self.end()
        if not self.over:
            self._entries.append(entry)
            self._bell.set()

    def end(self) -> None:
        self.over = True
        self._bell.set()

    async def take(self, wait_s: float) -> list[Entry]:
        """What came; waits up to `wait_s` for the first. Empty: nothing came, or the feed is over."""
        with suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._bell.wait()
        taken = list(self._entries)
        self._entries.clear()
        if not self.over:
            self._bell.clear()
        return taken


class Reader:
    """`store` has a connection of its own, whose deadline is longer than BLOCK_S."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._feeds: defaultdict[_Place, set[Feed]] = defaultdict(set)
        self._count = 0
        self._wanted = asyncio.Event()
        self._placed = asyncio.Event()
        self._position = "0-0"
        self.closing = False

    @asynccontextmanager
    async def follow(
        self, *, id_: str | None = None, batch_id: str | None = None, caller: str | None = None
    ) -> AsyncIterator[Feed]:
        """A feed of the transitions of one job or batch (`id_`), of a batch with its jobs, of a caller's, or of all.

        At most one of the three. Whatever is written after this has begun rings. Raises Crowded; TimeoutError: Redis
        is away.
        """
        if self._count >= FEEDS_MOST:
            raise Crowded
        feed, place = Feed(self._position), (id_, batch_id, caller)
        self._feeds[place].add(feed)
        self._count += 1
        self._wanted.set()
        try:
            async with asyncio.timeout(POSITION_WITHIN_S):
                await self._placed.wait()
            if self.closing:
                feed.end()
            yield feed
        finally:
            self._leave(place, feed)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                await self._wanted.wait()
                await self._tail()
            except RedisError as error:
                log.warning("the events stream cannot be read", extra={"error": type(error).__name__})
                await asyncio.sleep(AGAIN_S)

    def close(self) -> None:
        """All feeds end, and those that still come are over at once: waiters answer, streams close."""
        self.closing = True
        self._placed.set()
        self._end_all()

    async def _tail(self) -> None:
        """Read on from where we were; with nobody there, stop, and begin at the end the next time."""
        if not self._placed.is_set():
            self._position = await self._store.last_event()
            for feed in self._all():
                feed.since = self._position
            self._placed.set()
        elif await self._missed():
            self._position = await self._store.last_event()  # the old one may lie ahead of all that is to come
            self._end_all()
        while self._count:
            for entry in await self._store.events(self._position, block_s=BLOCK_S):
                self._position = entry.eid
                self._hand_out(entry)
        self._wanted.clear()
        if not self.closing:
            self._placed.clear()

    async def _missed(self) -> bool:
        first = await self._store.first_event()
        if first is None or order(first) > order(self._position):
            return True
        return order(await self._store.last_event()) < order(self._position)

    def _hand_out(self, entry: Entry) -> None:
        data = entry.data
        places = {
            (data.get("id"), None, None),
            (None, data.get("batch_id"), None),
            (None, None, data.get("caller")),
            (None, None, None),
        }
        for place in places:
            for feed in self._feeds.get(place, ()):
                feed.push(entry)

    def _end_all(self) -> None:
        for feed in self._all():
            feed.end()

    def _all(self) -> list[Feed]:
        return [feed for feeds in self._feeds.values() for feed in feeds]

    def _leave(self, place: _Place, feed: Feed) -> None:
        self._count -= 1
        self._feeds[place].discard(feed)
        if not self._feeds[place]:
            del self._feeds[place]
