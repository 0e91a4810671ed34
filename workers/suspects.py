"""Runs suspects apart: one group at a time, in a child process, whose end says whether one of them is guilty.

Killed anywhere: the child ends with us, nobody is blamed for that, and the group's lease runs out.
"""

import asyncio
import logging
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from dataclasses import dataclass
from typing import Final

from service.domain import events
from service.storage.connection import RedisError
from service.storage.desk import NEWER_AGAIN_S, Desk
from service.storage.quarantine import Crashed, Group
from service.storage.record import CorruptRecord, NewerRecord

ALONE: Final = "workers.alone"
EXIT_NOT_RUN: Final = 75  # EX_TEMPFAIL of sysexits.h: the child's word for "nobody is to blame"
RUN_S_MAX: Final = 180.0  # more than any step's own deadlines add up to
KEEPERS_MOST: Final = 3  # that die with one group in the hands of their child, until it counts as a crash
AGAIN_S: Final = 5.0  # until a group that could not be run is tried again
WAIT_MOST_S: Final = 3600.0
DOUBLINGS_MOST: Final = 10  # more than lead from AGAIN_S to WAIT_MOST_S

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Terms:
    """The settings of this loop. `module` is what runs a group: it takes the group's id, and its jobs'."""

    lease_s: float
    interval_s: float
    retry_s: tuple[float, ...]  # before the second try alone, the third …; one crash more is the last
    module: str = ALONE

    def wait_s(self, crashes: int) -> float:
        """Before one more try of a job that has ended and whose chores still crash: doubled by each, up to an hour."""
        doublings = min(crashes - len(self.retry_s), DOUBLINGS_MOST)
        return min(WAIT_MOST_S, max(AGAIN_S, self.retry_s[-1]) * 2.0**doublings)


class Suspects:
    """`stop()` ends `run`, and the child that runs meanwhile."""

    def __init__(self, desk: Desk, terms: Terms) -> None:
        self._desk = desk
        self._quarantine = desk.store.quarantine
        self._terms = terms
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        self._stopping.set()

    async def run(self) -> None:
        while not self._stopping.is_set():
            try:
                busy = await self.round()
            except RedisError as error:
                log.warning("suspects wait for Redis: %s", type(error).__name__)
                busy = False
            if not busy:
                await self._pause()

    async def round(self) -> bool:
        """Run the group that is due, to its verdict. False: there is none."""
        await self._end(await self._quarantine.bereave(self._terms.retry_s, most=KEEPERS_MOST))
        group = await self._quarantine.isolate(self._terms.lease_s)
        if group is None:
            return False
        if not group.jobs:
            await self._quarantine.clear(group)
            return True
        log.warning("suspects run apart", extra=_told(group) | {"crashes": group.crashes})
        try:
            child = await asyncio.create_subprocess_exec(
                sys.executable, "-m", self._terms.module, group.id, *group.jobs, stdin=PIPE, stdout=DEVNULL
            )
        except OSError as error:  # no process or no memory to be had
            log.warning("suspects cannot be run: %s", type(error).__name__)
            await self._quarantine.give_back(group, AGAIN_S)
            return True
        try:
            held = await self._await_end(child, group)
            stopped = self._stopping.is_set() and child.returncode is None
        finally:
            if child.returncode is None:
                child.kill()
                await child.wait()
        if held is not None and stopped:
            await self._quarantine.give_back(held, 0)
        elif held is not None:
            await self._judge(held, child.returncode)
        return True

    async def _await_end(self, child: Process, group: Group) -> Group | None:
        """The group as it is held when the child has ended or must end; None: it is another's."""
        ending = asyncio.create_task(child.wait())
        stopping = asyncio.create_task(self._stopping.wait())
        held: Group | None = group
        try:
            async with asyncio.timeout(RUN_S_MAX):
                while held is not None and not (ending.done() or stopping.done()):
                    gap_s = self._terms.lease_s / 3
                    await asyncio.wait({ending, stopping}, timeout=gap_s, return_when=asyncio.FIRST_COMPLETED)
                    if not stopping.done():
                        held = await self._quarantine.keep(held, self._terms.lease_s)
        except TimeoutError:
            log.warning("suspects do not end", extra={"group": group.id})
        finally:
            ending.cancel()
            stopping.cancel()
        return held

    async def _judge(self, group: Group, code: int | None) -> None:
        if code == 0:
            await self._quarantine.clear(group)
        elif code == EXIT_NOT_RUN:
            await self._quarantine.give_back(group, AGAIN_S)
        else:
            log.error("a process of suspects has crashed", extra=_told(group) | {"code": code})
            await self._end(await self._quarantine.blame(group, self._terms.retry_s, again_s=AGAIN_S))

    async def _end(self, crashed: Crashed | None) -> None:
        if crashed is not None and crashed.times > len(self._terms.retry_s):
            await self._poisoned(crashed)

    async def _poisoned(self, crashed: Crashed) -> None:
        detail = f"its step ended its process {crashed.times} times, each time alone"
        try:
            told = await self._desk.tell(crashed.job_id, events.Poisoned(detail=detail))
        except CorruptRecord as error:
            await self._desk.condemn(error)
            await self._quarantine.acquit(crashed.job_id)
            return
        except NewerRecord as error:
            log.warning("left alone: %s", error, extra={"job": crashed.job_id})
            await self._quarantine.adjourn(crashed.job_id, NEWER_AGAIN_S)
            return
        if told.job is None or told.changed:
            log.error("poisoned: %s", detail, extra={"job": crashed.job_id})
            await self._quarantine.acquit(crashed.job_id)
        else:
            await self._adjourned(crashed)

    async def _adjourned(self, crashed: Crashed) -> None:
        """Its end stands (or its image is sealed), so only its chores can crash: in a worker they would hit others."""
        wait_s = self._terms.wait_s(crashed.times)
        told = {"job": crashed.job_id, "crashes": crashed.times, "again_s": wait_s}
        log.error("a job has ended, and what is left to do for it crashes: it stays apart", extra=told)
        await self._quarantine.adjourn(crashed.job_id, wait_s)

    async def _pause(self) -> None:
        try:
            await asyncio.wait_for(self._stopping.wait(), self._terms.interval_s)
        except TimeoutError:
            return


def _told(group: Group) -> dict[str, int | str]:
    """For a line of the log; one job is named, so that it can be looked up."""
    told: dict[str, int | str] = {"group": group.id, "jobs": len(group.jobs)}
    return told | {"job": group.jobs[0]} if len(group.jobs) == 1 else told
