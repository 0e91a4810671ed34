"""Clients that go on posting whatever dies meanwhile: each job is sent again, with its key, until it is taken."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Final

import httpx

from tests.integration.house import POSTS_AT_ONCE, House

GIVE_UP_S: Final = 300.0
AGAIN_S: Final = 0.05
ACCEPTED: Final = 202
FOUND: Final = 200


class Callers:
    """`taken`: the id of each job that was answered for, in that order. `found`: how many of them an earlier post had
    made, of whose answer nobody heard.
    """

    def __init__(self, house: House) -> None:
        self.taken: list[str] = []
        self.found = 0
        self._house = house
        self._changed = threading.Condition()
        self._enough, self._left = threading.Event(), threading.Event()

    def post_all(self, count: int, name: str) -> None:
        """So many jobs, as fast as they are taken."""
        with ThreadPoolExecutor(POSTS_AT_ONCE) as pool:
            list(pool.map(self.insist, [f"{name} {number}" for number in range(count)]))

    def post_steadily(self, per_s: float, name: str) -> None:
        """So many a second, until `enough`; what was not taken then still is."""
        with ThreadPoolExecutor(POSTS_AT_ONCE) as pool:
            posts: list[Future[None]] = []
            while not self._enough.wait(1 / per_s):
                posts.append(pool.submit(self.insist, f"{name} {len(posts)}"))
            for post in posts:
                post.result()

    def enough(self) -> None:
        self._enough.set()

    def leave(self) -> None:
        """Whatever was not taken yet is not asked for any more."""
        self._enough.set()
        self._left.set()

    def insist(self, prompt: str) -> None:
        until = time.monotonic() + GIVE_UP_S
        while not (self._left.is_set() or self._is_taken(prompt)):
            assert time.monotonic() < until, "the service took no job for too long"
            self._left.wait(AGAIN_S)

    def await_taken(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.taken) >= count, GIVE_UP_S)

    def _is_taken(self, prompt: str) -> bool:
        try:
            answer = self._house.post(prompt)
        except httpx.TransportError:
            return False
        if answer.status_code == 503:
            return False
        assert answer.status_code in (ACCEPTED, FOUND), answer.text
        with self._changed:
            self.taken.append(answer.json()["id"])
            self.found += answer.status_code == FOUND
            self._changed.notify_all()
        return True


def posting(house: House, count: int, name: str) -> AbstractContextManager[Callers]:
    """So many posts while the block runs; all have been answered after it."""
    callers = Callers(house)
    return _at_work(callers, partial(callers.post_all, count, name))


def posting_steadily(house: House, per_s: float, name: str) -> AbstractContextManager[Callers]:
    """So many posts a second while the block runs; all have been answered after it."""
    callers = Callers(house)
    return _at_work(callers, partial(callers.post_steadily, per_s, name))


@contextmanager
def _at_work(callers: Callers, work: Callable[[], None]) -> Iterator[Callers]:
    with ThreadPoolExecutor(1) as pool:
        posted = pool.submit(work)
        try:
            yield callers
            callers.enough()
            posted.result()
        finally:
            callers.leave()
