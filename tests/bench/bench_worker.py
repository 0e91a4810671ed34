"""How many bells an AsyncWorker serves in a second. Run: python -m tests.bench.bench_worker

Nothing is asserted: figures belong to the machine. Aims on two idle cores: 1,500 no-ops/s with 100 slots, 1,000/s of
200 ms with 400 slots.
"""

import asyncio
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

import rq

from service.storage.connection import connect, connect_sync
from tests.contract.valkey import running
from workers.worker import AsyncWorker, ListedJob

RUNS: Final = (("no_op", 6_000, 100), ("sleep", 6_000, 400))
SLEEP_S: Final = 0.2
TIMEOUT_S: Final = 10.0


class Count:
    """How often a task has ended, and the moment when `wanted` have."""

    def __init__(self) -> None:
        self.done, self.wanted, self.reached = 0, 0, asyncio.Event()

    def up(self) -> None:
        self.done += 1
        if self.done == self.wanted:
            self.reached.set()


count = Count()


async def no_op(_id: str) -> None:
    count.up()


async def sleep(_id: str) -> None:
    await asyncio.sleep(SLEEP_S)
    count.up()


class BenchJob(ListedJob):
    listed = ("tests.bench.bench_worker.no_op", "tests.bench.bench_worker.sleep")


async def bench(url: str, task: str, jobs: int, slots: int) -> None:
    """Ring `jobs` bells, then time from the first claim to the end of the last task and its commit."""
    connection, sync = connect(url, timeout_s=TIMEOUT_S), connect_sync(url, timeout_s=TIMEOUT_S)
    queue = rq.Queue("bench", connection=sync, serializer="json")
    with sync.pipeline() as pipe:
        for number in range(jobs):
            queue.enqueue(f"tests.bench.bench_worker.{task}", str(number), result_ttl=0, description="x", pipeline=pipe)
        pipe.execute()
    count.done, count.wanted, count.reached = 0, jobs, asyncio.Event()
    worker = AsyncWorker("bench", connection, sync, slots=slots, job_class=BenchJob)
    started, cpu = time.perf_counter(), time.process_time()
    running_ = asyncio.create_task(worker.run())
    await count.reached.wait()
    worker.stop()
    await running_
    took_s, cpu_s = time.perf_counter() - started, time.process_time() - cpu
    ms = 1000 * cpu_s / jobs
    sys.stdout.write(f"{task:>6}, {slots} slots: {jobs / took_s:,.0f} jobs/s, {ms:.2f} ms of CPU a job\n")
    await connection.aclose()
    sync.close()


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, running(Path(folder)) as valkey:
        for task, jobs, slots in RUNS:
            asyncio.run(bench(valkey.url, task, jobs, slots))


if __name__ == "__main__":
    from tests.bench import bench_worker  # RQ calls its tasks by this name, not as __main__

    bench_worker.main()
