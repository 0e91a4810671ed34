"""Ends a process whose event loop has not turned for too long: it serves nobody, and renews no lease.

A thread counts its own ticks, not seconds, so that a process that was stopped and wakes is not taken for one that
spins. It cannot run while C code holds the interpreter (a regular expression that backtracks for ever): for that a
timer of the kernel counts the process's own CPU time, which the loop sets back whenever it turns.
Whatever was in flight is then suspect like that of any process that dies.
"""

import asyncio
import faulthandler
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

EXIT_STUCK: Final = 70  # EX_SOFTWARE of sysexits.h
TICKS: Final = 10  # looks in one patience
FRAMES_MAX: Final = 12
LAST_WORDS_S: Final = 2.0

log = logging.getLogger(__name__)


class Watchdog:
    """Of the loop of the thread that builds it."""

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._tick_s = patience_s / TICKS
        self._watched = threading.get_ident()
        self._turned = True
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    async def turn(self) -> None:
        """Show that the loop turns, until cancelled."""
        self._thread.start()
        faulthandler.register(signal.SIGVTALRM, all_threads=False, chain=True)
        cores = os.cpu_count() or 1
        try:
            while True:
                self._turned = True
                signal.setitimer(signal.ITIMER_VIRTUAL, self._patience_s * cores)
                await asyncio.sleep(self._tick_s)
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            self._over.set()

    def _watch(self) -> None:
        missed = 0
        while not self._over.wait(self._tick_s):
            missed, self._turned = 0 if self._turned else missed + 1, False
            if missed >= TICKS:
                self._end()

    def _end(self) -> None:
        faulthandler.dump_traceback_later(LAST_WORDS_S, exit=True)  # should the log's lock be held by what hangs
        extra = {"at_s": self._patience_s, "stack": stack(self._watched)}
        log.critical("the loop does not turn: the process ends", extra=extra)
        os._exit(EXIT_STUCK)


def stack(thread: int) -> str:
    """Where a thread is, innermost call last: files, lines and names, no values."""
    frame = sys._current_frames().get(thread)  # noqa: SLF001 documented, "for debugging deadlocks"
    calls = [(each.f_code, line) for each, line in traceback.walk_stack(frame)][:FRAMES_MAX]
    return " > ".join(f"{Path(code.co_filename).name}:{line} {code.co_name}" for code, line in reversed(calls))


@asynccontextmanager
async def watched(patience_s: float) -> AsyncIterator[None]:
    """The running loop must turn for as long as the block runs."""
    turning = asyncio.create_task(Watchdog(patience_s).turn())
    try:
        yield
    finally:
        turning.cancel()
        await asyncio.wait([turning])
