"""One part ends again and again, killed or told to, under callers who go on: what was taken is there, bought once."""

import os
import random
import signal
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.storage.connection import RedisError, connect_sync
from tests.integration.callers import Callers, posting, posting_steadily
from tests.integration.chronicle import bought_once_or_flagged, violations
from tests.integration.house import House, opened

pytestmark = [pytest.mark.processes, pytest.mark.timeout(900)]

UNKNOWN_WAIT_S = 10
PING_S = 0.5
BACK_WITHIN_S = 240.0
LONG = [pytest.mark.soak, pytest.mark.timeout(7200)]
ENDED_WITHIN_S = 1800.0


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    """Two worker processes; what nobody ever answers for is given up soon."""
    for house in opened(tmp_path, workers=2, UNKNOWN_WAIT_S=str(UNKNOWN_WAIT_S), SUSPECT_RETRY_S="1,2"):
        house.control(latency_s=0.5, latency_spread_s=0.2, max_in_flight=24)
        yield house


@pytest.mark.parametrize(("jobs", "kills"), [pytest.param(3000, 300, marks=LONG)], ids=["soak"])
def test_a_retry_finds_the_job_of_an_http_process_that_was_killed(house: House, jobs: int, kills: int) -> None:
    """F02: each kill comes between two answers, among posts that are under way."""
    seed = int(os.environ.get("KILLS_SEED", random.randrange(10**6)))
    print(f"KILLS_SEED={seed}")
    dice, each = random.Random(seed), jobs // kills
    with posting(house, jobs, "killed") as callers:
        for kill in range(kills):
            callers.await_taken(kill * each + dice.randrange(each))
            house.stack.await_next("http", house.stack.kill("http"), BACK_WITHIN_S)
    ids = callers.taken
    print(
        f"{kills} kills over {jobs} posts: {callers.found} jobs were made by a process that could not say so any more"
    )
    assert len(set(ids)) == jobs
    assert sum(house.statuses(ids).values()) == jobs
    everything_is_there(house, ids)


@pytest.mark.parametrize(("rolls", "per_s"), [(2, 2.0), pytest.param(10, 20.0, marks=LONG)], ids=["small", "soak"])
def test_rolling_restarts_burn_nothing(house: House, rolls: int, per_s: float) -> None:
    """F09: every process of ours is told to stop, one after the other, and the next takes over."""
    took_s = []
    with posting_steadily(house, per_s, "rolled") as callers:
        for name in ("workers-1", "workers-2", "http") * rolls:
            before, began = house.stack.pids[name], time.monotonic()
            os.kill(before, signal.SIGTERM)
            house.stack.await_next(name, before, BACK_WITHIN_S)
            took_s.append(time.monotonic() - began)
    jobs = house.await_ended(callers.taken, ENDED_WITHIN_S)
    house.audit(jobs)
    print(f"{rolls} rolling restarts, {len(jobs)} jobs at {per_s:g} a second: all succeed")
    print(f"told to stop, until the next one works (s): {spread(took_s)}")
    assert set(house.purchases(jobs).values()) == {1}
    assert {job["attempts"] for job in jobs} == {1}


@pytest.mark.parametrize(("jobs", "kills"), [(150, 4), pytest.param(5000, 50, marks=LONG)], ids=["small", "soak"])
def test_every_202_survives_the_death_of_redis(house: House, jobs: int, kills: int) -> None:
    """F13."""
    back_s = []
    with posting(house, jobs, "acknowledged") as callers:
        for kill in range(kills):
            callers.await_taken(kill * jobs // kills)
            before = house.stack.kill("redis")
            back_s.append(taken_after_ping(house, callers))
            house.stack.await_next("redis", before, BACK_WITHIN_S)
    ids = callers.taken
    print(f"{kills} kills of Redis: {len(set(ids))} jobs acknowledged")
    print(f"from its first PONG to the first job that was taken (s): {spread(back_s)}")
    assert len(set(ids)) == jobs
    everything_is_there(house, ids)


def taken_after_ping(house: House, callers: Callers) -> float:
    """Seconds from the first PONG of the next Redis to the next answer that took a job."""
    house.await_that(lambda: not pings(house), BACK_WITHIN_S)
    until = time.monotonic() + BACK_WITHIN_S
    while not pings(house):
        assert time.monotonic() < until, "Redis did not come back"
    began, count = time.monotonic(), len(callers.taken)
    callers.await_taken(count + 1)
    return time.monotonic() - began


def pings(house: House) -> bool:
    with connect_sync(house.stack.redis.url, timeout_s=PING_S) as redis:
        try:
            return bool(redis.ping())
        except RedisError:
            return False


def everything_is_there(house: House, ids: list[str]) -> None:
    """Each job succeeded, with its own image, bought once, or twice and flagged; nothing else is anywhere."""
    jobs = house.await_ended(ids, ENDED_WITHIN_S)
    house.audit(jobs)
    print(f"{len(jobs)} succeed; purchases beside one each: {bought_once_or_flagged(house, jobs)}, all flagged")
    assert violations(house, jobs, unknown_wait_s=UNKNOWN_WAIT_S) == []
    assert len(house.keys("images/")) == len(jobs), "no image but the jobs' own"
    assert house.fsck() == {}


def spread(took_s: list[float]) -> str:
    return f"median {statistics.median(took_s):.2f}, most {max(took_s):.2f}"
