"""Minutes of steady work: descriptors, threads and memory of our processes stay what they were (F65)."""

import os
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil
import pytest

from tests.integration.house import House, opened, pause

pytestmark = [pytest.mark.processes, pytest.mark.soak]

JOBS_A_SECOND: Final = 10
HOUR_S: Final = 3600.0
WARM_S: Final = 60.0
LASTS_S: Final = float(os.environ.get("LEAKS_S", "300"))
GROWTH_MOST: Final = 0.02  # of memory, from the first third to the last: an allocator settles
GROWTH_AN_HOUR_MOST: Final = 0.01  # where hours were measured
MORE_MOST: Final = 5  # descriptors, threads


@dataclass(frozen=True, slots=True)
class Sample:
    rss_bytes: int
    descriptors: int
    threads: int


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    yield from opened(tmp_path, workers=1)


def looked_at(process: psutil.Process) -> Sample:
    return Sample(process.memory_info().rss, process.num_fds(), process.num_threads())


def worked(house: House, for_s: float, look: Callable[[], None]) -> int:
    """Jobs posted at a steady pace; how many. Each is another one, so that nothing is found by its key."""
    began, posted = time.monotonic(), 0
    with ThreadPoolExecutor(8) as pool:
        while (passed_s := time.monotonic() - began) < for_s:
            while posted < passed_s * JOBS_A_SECOND:
                pool.submit(house.insist, f"steady {time.monotonic_ns()}")
                posted += 1
            look()
            pause()
    return posted


def test_minutes_of_steady_work_leak_nothing(house: House) -> None:
    house.control(latency_s=0.5, latency_spread_s=0.2, max_in_flight=24)
    ours = {name: psutil.Process(house.stack.pids[name]) for name in ("http", "workers-1")}
    samples: dict[str, list[Sample]] = {name: [] for name in ours}

    def look() -> None:
        for name, process in ours.items():
            samples[name].append(looked_at(process))

    worked(house, WARM_S, lambda: None)
    posted = worked(house, LASTS_S, look)
    house.await_that(lambda: not house.http.get("/v1/jobs", params={"status": "queued"}).json()["jobs"])
    for name, row in samples.items():
        third = len(row) // 3
        first, last = row[:third], row[-third:]
        rss = [statistics.median(each.rss_bytes for each in part) for part in (first, last)]
        fds = [statistics.median(each.descriptors for each in part) for part in (first, last)]
        threads = [statistics.median(each.threads for each in part) for part in (first, last)]
        growth = rss[1] / rss[0] - 1
        per_hour = growth / (LASTS_S * 2 / 3) * HOUR_S
        print(f"{name}: {posted} jobs in {LASTS_S:.0f} s")
        print(f"  memory {rss[0] / 2**20:.1f} MiB {growth:+.2%}, which is {per_hour:+.1%} an hour")
        print(f"  descriptors {fds[0]:.0f} to {fds[1]:.0f}, threads {threads[0]:.0f} to {threads[1]:.0f}")
        assert abs(fds[1] - fds[0]) <= MORE_MOST
        assert abs(threads[1] - threads[0]) <= MORE_MOST
        assert growth <= GROWTH_MOST
        assert LASTS_S < HOUR_S or per_hour <= GROWTH_AN_HOUR_MOST
