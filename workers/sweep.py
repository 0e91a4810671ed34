"""The sweep: rings for whatever is due and unclaimed. It is what makes every lost bell and every dead worker harmless.

Several sweeps may run, and any one suffices: what one has rung for, the others leave alone for a while. Killed
anywhere: the next round, here or elsewhere, finds the same work due. Chores go on beside the rounds: a store that hangs
must keep nobody from being rung for.
"""

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from service.clock import Clock
from service.domain import layout
from service.domain.job import Queue
from service.storage.bell import Ringer
from service.storage.bucket import Bucket
from service.storage.connection import RedisError
from service.storage.desk import Desk
from service.storage.objects import BucketError
from service.storage.record import CorruptRecord, NewerRecord
from service.storage.terms import STORAGE, Bell
from workers.close import LATE_PUT_S, Closer

log = logging.getLogger(__name__)

# What is due, by kind (of a job: whose step is next), and the queue whose worker looks at it.
RUNG: Final = {
    **{queue.value: queue.value for queue in Queue},
    "close": Queue.COLLECT.value,
    "batch": "batches",
    "notify": "notify",
}
QUEUE_MOST: Final = 500  # entries that wait in a queue; the rest wait in the due set
CLOSE_MOST: Final = QUEUE_MOST // 2  # ends to be written down wait while so many stand there: a poll does not
CLOSE_LEAST: Final = 50  # of them in a round, or half of what is free
CHORES_MOST: Final = 20  # uploads cleared and jobs erased in one round
FORGET_GAP_S: Final = 10.0
FORGET_AT_ONCE: Final = 100  # records in one run of the script
FORGETS_MOST: Final = 3  # such runs in one round, of some 15 ms each on a busy machine
HOLD_S: Final = 5.0  # several rounds: it goes on as long as there is cause
ERASED_AT_ONCE: Final = 100
CHORE_LATER_S: Final = 15.0


@dataclass(frozen=True, slots=True)
class Terms:
    """The settings of this loop."""

    interval_s: float
    again_s: float  # a bell that led to nothing goes out again after this
    lost_s: float = 8.0  # a process without a heartbeat for so long is dead
    behind_s: float = 60.0  # an image that has waited at its URL for so long, of ten minutes, waits too long
    behind_most: int = 20  # one bad URL must not stop everybody; this many are pulls that cannot keep up


class Sweep:
    """`stop()` ends `run` after the round that is under way."""

    def __init__(self, desk: Desk, bells: Ringer, bucket: Bucket, closer: Closer, clock: Clock, terms: Terms) -> None:
        self._desk = desk
        self._bells = bells
        self._bucket = bucket
        self._closer = closer
        self._clock = clock
        self._terms = terms
        self._stopping = asyncio.Event()
        self._forgot_s = float("-inf")
        self._doing: dict[Bell, asyncio.Task[None]] = {}
        self._chores = {
            "stage": self._clear,
            "erase": self._erase,
            "late": self._empty,
            "scrub": self._scrub,
            "settle": closer.vacate,
        }

    def stop(self) -> None:
        self._stopping.set()

    async def run(self) -> None:
        away = False
        while not self._stopping.is_set():
            try:
                await self._look()
                away = False
            except RedisError as error:
                if not away:
                    log.warning("the sweep waits for Redis: %s", type(error).__name__)
                away = True
            await self._pause()
        for chore in self._doing.values():
            chore.cancel()  # it stays due

    async def round(self) -> None:
        """One round, with its chores done."""
        await self._look()
        await asyncio.gather(*self._doing.values())

    async def _look(self) -> None:
        """Look for dead processes, ring for what is due, begin the chores, forget what ended long ago."""
        for uid in await self._desk.store.quarantine.reap(self._terms.lost_s):
            log.warning("a worker process is dead", extra={"uid": uid})
        room = {kind: max(0, QUEUE_MOST - await self._bells.waiting(queue)) for kind, queue in RUNG.items()}
        room["close"] = room_to_close(room["collect"])
        room["collect"] -= room["close"]
        chores = dict.fromkeys(self._chores, max(0, CHORES_MOST - len(self._doing)))
        ripe = await self._desk.store.ripen(room | chores, again_s=self._terms.again_s)
        self._desk.ring(Bell(RUNG[bell.queue], bell.id) for bell in ripe if bell.queue in RUNG)
        for bell in ripe:
            if bell.queue not in RUNG and bell not in self._doing:
                self._begin(bell)
        await self._hold_if_behind()
        if self._clock.monotonic_s() - self._forgot_s > FORGET_GAP_S:
            if missed := await self._desk.store.miss():
                log.warning("callbacks that never came: %d", missed)
            if await self._forget():
                self._forgot_s = self._clock.monotonic_s()

    async def _forget(self) -> bool:
        """Whether nothing is left that ended long ago. Else the next round goes on: Redis must not grow for ever."""
        for _ in range(FORGETS_MOST):
            if await self._desk.store.expire(FORGET_AT_ONCE) < FORGET_AT_ONCE:
                return True
        return False

    async def _hold_if_behind(self) -> None:
        """No more is bought while what has been bought is not pulled in time."""
        if await self._desk.store.behind(self._terms.behind_s, self._terms.behind_most) >= self._terms.behind_most:
            await self._desk.store.hold(STORAGE, HOLD_S)

    def _begin(self, bell: Bell) -> None:
        chore = self._doing[bell] = asyncio.create_task(self._chore(bell))
        chore.add_done_callback(lambda _: self._doing.pop(bell))

    async def _chore(self, bell: Bell) -> None:
        try:
            done = await self._chores[bell.queue](bell.id)
        except BucketError as error:
            log.warning("a chore waits for the store: %s", error.detail, extra={"job": bell.id})
            done = False
        except RedisError as error:
            log.warning("a chore waits for Redis: %s", type(error).__name__, extra={"job": bell.id})
            return  # still due
        await self._plan(bell, done=done)

    async def _plan(self, bell: Bell, *, done: bool) -> None:
        with suppress(RedisError):  # then it stays due, and is done once more
            await self._desk.store.plan(bell.queue, bell.id, None if done else CHORE_LATER_S)

    async def _clear(self, job_id: str) -> bool:
        """Inputs of a job that was never created (its caller's process died between the upload and the record)."""
        try:
            if await self._desk.store.get(job_id) is not None:
                return True
        except (CorruptRecord, NewerRecord):
            return True  # there is a job; what is wrong with it is for its own step to see
        return await self._bucket.delete_prefix(layout.inputs_prefix(job_id), ERASED_AT_ONCE) < ERASED_AT_ONCE

    async def _scrub(self, job_id: str) -> bool:
        """An image that was put after its job had ended, by a step that then could not reach the bucket."""
        await self._closer.scrub(job_id)
        return True

    async def _erase(self, job_id: str) -> bool:
        """All that a deleted job has in the bucket; and, later, what a put that was given up on has put there since."""
        if not await self._empty(job_id):
            return False
        await self._desk.store.plan("late", job_id, LATE_PUT_S)
        return True

    async def _empty(self, job_id: str) -> bool:
        await self._closer.scrub(job_id, wanted=False)
        await self._bucket.delete(layout.sidecar_key(job_id))
        return await self._bucket.delete_prefix(layout.inputs_prefix(job_id), ERASED_AT_ONCE) < ERASED_AT_ONCE

    async def _pause(self) -> None:
        try:
            await asyncio.wait_for(self._stopping.wait(), self._terms.interval_s)
        except TimeoutError:
            return


def room_to_close(free: int) -> int:
    """How many ends may be rung for in a round, of the free places in `collect`; the others are for polls and pulls."""
    return max(min(free // 2, CLOSE_LEAST), free - (QUEUE_MOST - CLOSE_MOST))
