"""A worker process in which some prompts are poison, as a broken image may be for the library that reads it.

`python -m tests.poison` serves like `python -m workers`; with `GROUP JOB…` behind it, it is what runs suspects.
"""

import os
import re
import resource
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvloop

from service import logs, settings
from service.domain.job import Job
from service.settings import Settings
from workers import __main__ as worker
from workers import alone, wiring
from workers.close import Closer
from workers.lease import Lease
from workers.pull import Puller
from workers.wiring import House

MEMORY_BYTES = 2 << 30


class Poisonable(Puller):
    """Pulls, unless the prompt says how it kills the process."""

    def __init__(self, puller: Puller) -> None:
        self.__dict__.update(puller.__dict__)

    async def pull(self, job: Job, lease: Lease) -> None:
        strike(job.request["prompt"])
        await super().pull(job, lease)


class PoisonableAtLast(Closer):
    """Writes down how a job ended, unless the prompt says that this, too, kills the process."""

    def __init__(self, closer: Closer) -> None:
        self.__dict__.update(closer.__dict__)

    async def close(self, job: Job, lease: Lease) -> None:
        if "[deadly end]" in job.request["prompt"]:
            os.kill(os.getpid(), signal.SIGSEGV)
        await super().close(job, lease)


def strike(prompt: str) -> None:
    if "[segfault]" in prompt:
        os.kill(os.getpid(), signal.SIGSEGV)
    if "[oom]" in prompt:
        exhaust()
    if "[spin]" in prompt:
        while True:
            pass
    if "[deaf spin]" in prompt:  # in C, with the interpreter held
        re.match(r"(a+)+$", "a" * 60 + "b")
    if "[container]" in prompt:  # ended as a whole: what runs suspects dies with the worker that keeps it
        if len(sys.argv) > 1:
            os.kill(os.getppid(), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)


def exhaust() -> None:
    """What the kernel does to the process that has taken the most."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    try:
        bytearray(MEMORY_BYTES)
    except MemoryError:
        os.kill(os.getpid(), signal.SIGKILL)


@asynccontextmanager
async def opened(loaded: Settings) -> AsyncIterator[House]:
    async with wiring.opened(loaded, alone=__spec__.name) as house:
        house.collector._puller = Poisonable(house.collector._puller)
        house.collector._closer = PoisonableAtLast(house.collector._closer)
        yield house


def main() -> int:
    if len(sys.argv) > 1:
        return alone.main(sys.argv[1:], opened)
    loaded = settings.of_process("workers")
    logs.configure(loaded.log_level)
    uvloop.run(worker.serve(loaded, frozenset(worker.ROLES), opened))
    return 0


if __name__ == "__main__":
    sys.exit(main())
