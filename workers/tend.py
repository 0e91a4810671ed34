"""Tending a spool: show that it is served, clear away what nobody waits for, and stop buying before it is full.

Runs in every process that collects. Killed anywhere: another process of this machine tends it, or this one's successor.
"""

import asyncio
import logging
from typing import Final

from service.clock import Clock
from service.storage.connection import RedisError
from service.storage.desk import Desk
from service.storage.record import CorruptRecord, NewerRecord
from service.storage.terms import STORAGE
from workers.spool import Spool

BEAT_S: Final = 5.0  # 30 s without a beat, and nobody serves the spool
HOLD_S: Final = 15.0
CLEAR_GAP_S: Final = 60.0
# A record may be away for a while (a replica that took over, a backup being restored), and bytes are not bought twice.
GONE_S: Final = 3600.0

log = logging.getLogger(__name__)


class Tender:
    """`stop()` ends `run` after the round that is under way."""

    def __init__(self, desk: Desk, spool: Spool, clock: Clock) -> None:
        self._desk = desk
        self._spool = spool
        self._clock = clock
        self._stopping = asyncio.Event()
        self._cleared_s = float("-inf")

    def stop(self) -> None:
        self._stopping.set()

    async def run(self) -> None:
        while not self._stopping.is_set():
            try:
                await self.round()
            except (RedisError, OSError) as error:
                log.warning("the spool is not tended: %s", type(error).__name__)
            await self._pause()

    async def round(self) -> None:
        await self._desk.store.tend()
        if await asyncio.to_thread(lambda: self._spool.crowded):
            log.warning("the spool is more than half full: submissions pause")
            await self._desk.store.hold(STORAGE, HOLD_S)
        if self._clock.monotonic_s() - self._cleared_s > CLEAR_GAP_S:
            await self.clear()
            self._cleared_s = self._clock.monotonic_s()

    async def clear(self) -> int:
        """Drop what lies here of jobs that have ended, are sealed, or are gone for good; how many."""
        held = await self._spool.held()
        orphans = [job_id for job_id, age_s in held.items() if await self._unwanted(job_id, age_s)]
        for job_id in orphans:
            await self._spool.drop(job_id)
        return len(orphans)

    async def _unwanted(self, job_id: str, age_s: float) -> bool:
        try:
            job = await self._desk.store.get(job_id)
        except (CorruptRecord, NewerRecord):
            return False
        return age_s > GONE_S if job is None else job.ended or job.sealed

    async def _pause(self) -> None:
        try:
            await asyncio.wait_for(self._stopping.wait(), BEAT_S)
        except TimeoutError:
            return
