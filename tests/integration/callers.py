"""Clients that go on posting whatever dies meanwhile: each job is sent again, with its key, until it is taken."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Final

import httpx

from tests.integration.house import POSTS_AT_ONCE, House

GIVE_UP_S: Final = 120.0
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
        self._enough = threading.Event()

    def post_all(self, count: int, name: str) -> None:
        """So many jobs, as fast as they are taken."""
        with ThreadPoolExecutor(POSTS_AT_ONCE) as pool:
            list(pool.map(self.insist, [f"{name} {number}" for number in range(count)]))

    def post_steadily(self, per_s: float, name: str) -> None:
        """So many a second, until `leave`; what was not taken then still is."""
        with ThreadPoolExecutor(POSTS_AT_ONCE) as pool:
            posts: list[Future[None]] = []
            while not self._enough.wait(1 / per_s):
                posts.append(pool.submit(self.insist, f"{name} {len(posts)}"))
            for post in posts:
                post.result()

    def leave(self) -> None:
        self._enough.set()

    def insist(self, prompt: str) -> None:
        until = time.monotonic() + GIVE_UP_S
        while not self._is_taken(prompt):
            assert time.monotonic() < until, "the service took no job for too long"
            self._enough.wait(AGAIN_S)

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


@contextmanager
def posting(house: House, count: int, name: str) -> Iterator[Callers]:
    """They post while the block runs, and have all been answered after it."""
    callers = Callers(house)
    with ThreadPoolExecutor(1) as pool:
        posted = pool.submit(callers.post_all, count, name)
        yield callers
        posted.result()


@contextmanager
def posting_steadily(house: House, per_s: float, name: str) -> Iterator[Callers]:
    """They post while the block runs, and have all been answered after it."""
    callers = Callers(house)
    with ThreadPoolExecutor(1) as pool:
        posted = pool.submit(callers.post_steadily, per_s, name)
        try:
            yield callers
        finally:
            callers.leave()
        posted.result()
