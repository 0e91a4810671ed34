"""kill -9 of every part, once each, in the middle of the work."""

import time

import pytest

from tests.integration.chronicle import violations
from tests.integration.house import House

pytestmark = [pytest.mark.processes, pytest.mark.timeout(500)]

PARTS = ("workers-1", "http", "redis", "store", "workers-2")
JOBS = 100
UNKNOWN_WAIT_S = 20.0  # as `fragile_house` has it
RECOVERY_S = 30.0  # 15 are promised, and printed; twice that, so that a busy machine fails no run


def test_each_part_may_die_in_the_middle_of_a_hundred_jobs(fragile_house: House) -> None:
    house, stack = fragile_house, fragile_house.stack
    ids: list[str] = []
    done = 0
    recoveries = {}
    for name in PARTS:  # each finds fresh work to die over, however slow the machine is
        ids += house.post_many(JOBS // len(PARTS), f"before {name} dies")
        await_more(house, ids, done)
        before = stack.kill(name)
        killed_at = time.monotonic()
        stack.await_next(name, before)
        done = ended(house, ids)
        if done < len(ids):
            await_more(house, ids, done)
        recoveries[name] = time.monotonic() - killed_at
    jobs = house.await_ended(ids)
    print("recovered after (s):", {name: round(took, 1) for name, took in recoveries.items()})
    house.audit(jobs)
    purchases = house.purchases(jobs)
    for job in jobs:
        extra = purchases[job["request"]["prompt"]] - 1
        assert extra in (0, 1)
        assert job["possible_duplicate"] or extra == 0
    assert violations(house, jobs, unknown_wait_s=UNKNOWN_WAIT_S) == []
    assert max(recoveries.values()) < RECOVERY_S
    assert len(house.keys("images/")) == JOBS, "no image but the jobs' own"
    assert house.fsck() == {}


def await_more(house: House, ids: list[str], than: int) -> None:
    house.await_that(lambda: ended(house, ids) > than, 60)


def ended(house: House, ids: list[str]) -> int:
    return house.statuses(ids)["succeeded"]
