"""kill -9 of a worker between the bell and the lease, seen from outside: on its own connections to Redis.

The worker is the real one, as it is. What it says to Redis passes a proxy, which tells how far it has come with a bell:

    TAKEN     the bell has left the queue, and stands in RQ's intermediate list; the worker has not heard of it
    STARTED   the bell is in RQ's books as started, and in no list any more; the worker has not heard of that
    ASKING    the worker asks for the lease on the job; Redis has not heard of it
"""

import asyncio
import hashlib
import os
import signal
import time
from collections.abc import Callable
from enum import Enum, auto
from typing import Final

from deploy.local.program import Program
from workers.worker import CLAIM

CLAIM_SHA: Final = hashlib.sha1(CLAIM.encode(), usedforsecurity=False).hexdigest().encode()
EMPTY: Final = b"*0\r\n"
Link = tuple[int, int]  # the worker's number, its connection's


class Moment(Enum):
    TAKEN = auto()
    STARTED = auto()
    ASKING = auto()


class Reaper:
    """Kills one worker each time it is armed: the first that comes to that moment with a bell of that queue."""

    def __init__(self) -> None:
        self._armed: tuple[bytes, Moment] | None = None
        self._asked: set[Link] = set()  # connections on which the answer is the moment
        self._struck: asyncio.Future[tuple[int, float]] = asyncio.Future()

    def arm(self, queue: str, moment: Moment) -> "asyncio.Future[tuple[int, float]]":
        """Comes true with the worker's number and the time of the kill, seconds of the wall clock."""
        self._asked.clear()
        self._struck = asyncio.get_running_loop().create_future()
        self._armed = queue.encode(), moment
        return self._struck

    def witness(self, worker: int, program: Program) -> Callable[[int, bytes, bool], None]:
        """For the proxy before that worker."""

        def sees(number: int, chunk: bytes, up: bool) -> None:
            if self._armed and self._is_moment((worker, number), chunk, up=up):
                os.kill(program.pid, signal.SIGKILL)
                self._armed = None
                self._struck.set_result((worker, time.time()))
                raise ConnectionResetError("its client is dead")

        return sees

    def _is_moment(self, link: Link, chunk: bytes, *, up: bool) -> bool:
        if not up:
            asked = link in self._asked
            self._asked.discard(link)
            return asked and chunk != EMPTY and not chunk.startswith(b"-")
        if self._leads_there(chunk):
            self._asked.add(link)
        return self._armed is not None and self._armed[1] is Moment.ASKING and link in self._asked

    def _leads_there(self, chunk: bytes) -> bool:
        """Whether the client sends what the moment is the answer to; or, of ASKING, the very moment."""
        assert self._armed
        queue, moment = self._armed
        match moment:
            case Moment.TAKEN:
                return CLAIM_SHA in chunk and b"rq:queue:" + queue + b"\r\n" in chunk
            case Moment.STARTED:
                return b"LREM" in chunk and b"rq:queue:" + queue + b":intermediate" in chunk
            case Moment.ASKING:
                return b"\r\nclaim\r\n" in chunk and b'"queue":"' + queue + b'"' in chunk
