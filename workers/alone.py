"""`python -m workers.alone GROUP JOB…`: one step of each of these suspects, all at once, in a process of its own.

Exit 0: whatever came of the steps, none has crashed. EXIT_NOT_RUN: they were not run, or not all of them, and nobody is
to blame. Anything else, a signal above all, is a crash. It ends when its parent does: the pipe at stdin closes then.
"""

import asyncio
import logging
import os
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager

import uvloop

from service import logs, settings
from service.settings import BadSettings, Settings
from service.storage.connection import RedisError
from workers import wiring
from workers.suspects import EXIT_NOT_RUN
from workers.watchdog import watched
from workers.wiring import House

Opened = Callable[[Settings], AbstractAsyncContextManager[House]]

log = logging.getLogger(__name__)


def main(argv: Sequence[str], opened: Opened = wiring.opened) -> int:
    group, *jobs = argv
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    try:
        loaded = settings.of_process("workers")
        logs.configure(loaded.log_level)
        uvloop.run(run(loaded, group, jobs, opened))
    except (BadSettings, RedisError, OSError) as error:
        log.warning("suspects not run: %s", type(error).__name__)
        return EXIT_NOT_RUN
    return 0


async def run(loaded: Settings, group: str, jobs: Sequence[str], opened: Opened) -> None:
    """Raises RedisError where Redis went away meanwhile; a step that fails in any other way has run."""
    async with opened(loaded) as house, watched(loaded.watchdog_s):
        steps = [step.run(job, group) for job in jobs for step in (house.submitter, house.collector)]
        for error in await asyncio.gather(*steps, return_exceptions=True):
            if isinstance(error, RedisError):
                raise error
            if error is not None:
                log.error("a step alone failed: %s", type(error).__name__)


def _end_with_parent() -> None:
    os.read(sys.stdin.fileno(), 1)  # nothing is ever written; sys.stdin's own lock would be held at exit
    os._exit(EXIT_NOT_RUN)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
