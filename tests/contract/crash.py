"""`python -m tests.contract.crash GROUP JOB…`: takes its suspects in hand, and is killed as by a step that crashes.

With CRASH_NOT in the environment it holds them until it is killed.
"""

import asyncio
import os
import signal
import sys
from contextlib import suppress

from service.domain.job import Queue
from service.storage.connection import connect
from service.storage.record import CorruptRecord, NewerRecord
from service.storage.store import Store
from service.storage.terms import Limits

LEASE_S = 3600.0


async def main(group: str, *jobs: str) -> None:
    store = Store(connect(os.environ["REDIS_URL"], timeout_s=5), Limits(max_in_flight=0), uid="child")
    for job_id in jobs:
        for queue in Queue:
            with suppress(CorruptRecord, NewerRecord):  # the lease is on it all the same
                await store.claim(queue, job_id, LEASE_S, alone=group)
    if "CRASH_NOT" in os.environ:
        signal.pause()
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
