"""Parts that die in any order, workers that sleep, a provider that will not: with real processes and signals."""

import os
import random
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import pytest

from service.storage.connection import connect_sync
from service.storage.store import PREFIX
from tests.integration.chronicle import bought_once_or_flagged, violations
from tests.integration.house import House, JobView, opened

pytestmark = [pytest.mark.processes, pytest.mark.timeout(900)]

UNKNOWN_WAIT_S = 10
PARTS = ("workers-1", "workers-2", "http", "redis", "store")


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    """Two worker processes; what nobody ever answers for is given up soon."""
    yield from opened(tmp_path, workers=2, UNKNOWN_WAIT_S=str(UNKNOWN_WAIT_S), SUSPECT_RETRY_S="1,2")


def since(job: JobView, start: str, end: str) -> float:
    """Seconds between two instants of a job."""
    return (datetime.fromisoformat(job[end]) - datetime.fromisoformat(job[start])).total_seconds()


def spread(took_s: list[float]) -> str:
    return f"median {statistics.median(took_s):.1f}, most {max(took_s):.1f}"


@pytest.mark.parametrize(
    ("jobs", "kills"), [(60, 8), pytest.param(1000, 100, marks=pytest.mark.soak)], ids=["small", "soak"]
)
def test_a_storm_of_kills_loses_nothing(house: House, jobs: int, kills: int) -> None:
    seed = int(os.environ.get("STORM_SEED", random.randrange(10**6)))
    print(f"STORM_SEED={seed}")
    dice = random.Random(seed)
    house.control(latency_s=1, latency_spread_s=0.5, max_in_flight=24)
    with ThreadPoolExecutor(1) as pool:
        posted = pool.submit(house.post_many, jobs, "storm")
        for _ in range(kills):
            name = dice.choice(PARTS)
            before = house.stack.kill(name)
            house.stack.await_next(name, before, 60)
        ids = posted.result()
    healed_at = time.monotonic()
    ended = house.await_ended(ids, 600)
    print(f"{jobs} jobs, {kills} kills: all ended {time.monotonic() - healed_at:.1f} s after the last")
    print("from ready to stored (s):", spread([since(job, "ready_at", "finished_at") for job in ended]))
    house.audit(ended)
    print(f"purchases beside one each: {bought_once_or_flagged(house, ended)}, all flagged")
    assert len(house.keys("images/")) == jobs, "no image but the jobs' own"
    assert violations(house, ended, unknown_wait_s=UNKNOWN_WAIT_S) == []
    assert house.fsck() == {}


@pytest.mark.parametrize("pauses", [1, pytest.param(20, marks=pytest.mark.soak)])
def test_a_worker_that_sleeps_over_its_leases_decides_nothing_stale(tmp_path: Path, pauses: int) -> None:
    """F12: stopped in the middle of the work for longer than its leases and its beat last; then it goes on."""
    stopped = {
        "LEASE_S": "2",
        "PROCESS_LOST_S": "3",
        "SWEEP_INTERVAL_S": "0.2",
        "WATCHDOG_S": "600",
        "UNKNOWN_WAIT_S": "10",
    }
    for house in opened(tmp_path, workers=2, **stopped):
        house.control(latency_s=0.5, latency_spread_s=0.2, max_in_flight=24)
        ids = [job_id for number in range(pauses) for job_id in worked_while_stopped(house, number)]
        jobs = house.await_ended(ids)
        house.audit(jobs)
        extra = bought_once_or_flagged(house, jobs)
        print(f"{pauses} pauses, {len(jobs)} jobs: all succeed, {extra} purchases beside one each, flagged")
        assert house.fsck() == {}


def worked_while_stopped(house: House, number: int) -> list[str]:
    """Jobs that were posted before and while one of the two workers was stopped, until it was missed."""
    beat = beating(house)
    before = house.post_many(20, f"before pause {number}")
    worker = psutil.Process(house.stack.pids[f"workers-{1 + number % 2}"])
    worker.suspend()
    try:
        others = house.post_many(10, f"in pause {number}")
        house.await_ended(others, 60)
        house.await_that(lambda: not beat <= beating(house), 30)
    finally:
        worker.resume()
    return before + others


def beating(house: House) -> set[bytes]:
    """The worker processes that are known to live."""
    with connect_sync(house.stack.redis.url, timeout_s=5) as redis:
        found: Any = redis.zrange(f"{PREFIX}procs", 0, -1)
    return set(found)


@pytest.mark.parametrize(
    "trouble",
    [{"no_credits": 1}, {"rate_429": 1}, pytest.param({"bad_key": 1}, marks=pytest.mark.soak)],
    ids=lambda each: next(iter(each)),
)
def test_a_provider_that_refuses_burns_no_job(house: House, trouble: dict[str, float]) -> None:
    house.control(latency_s=0.3, latency_spread_s=0, max_in_flight=24, **trouble)
    ids = house.post_many(20, f"refused by {trouble}")
    house.await_that(lambda: "darkroom_gate_closed" in closed(house), 30)
    assert house.ledger()["submissions"] == []
    house.provider.post("/_control", json=dict.fromkeys(trouble, 0)).raise_for_status()
    jobs = house.await_ended(ids)
    house.audit(jobs)
    assert set(house.purchases(jobs).values()) == {1}


def closed(house: House) -> str:
    """The lines of the metrics that say why submissions pause."""
    lines = house.http.get("/metrics").text.splitlines()
    return "\n".join(line for line in lines if line.startswith("darkroom_gate_closed{") and line.endswith(" 1.0"))
