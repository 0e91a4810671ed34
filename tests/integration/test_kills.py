"""kill -9 of every part in the middle of the work, and how long each job that was on its way then takes to its end."""

import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass

import pytest

from tests.integration import chronicle
from tests.integration.house import ENDED, House, JobView

pytestmark = [pytest.mark.processes, pytest.mark.timeout(3600)]

PARTS = ("workers-1", "http", "redis", "store", "workers-2")
JOBS = 20  # on their way when a part dies
UNKNOWN_WAIT_S = 20.0  # as `fragile_house` has it
RECOVERY_S = 30.0  # 15 are promised, and printed; twice that, so that a busy machine fails no run


@dataclass(frozen=True, slots=True)
class Kill:
    part: str
    at_ms: int
    back_s: float  # until the part itself did its work again
    ids: list[str]


@pytest.mark.parametrize("rounds", [1, pytest.param(20, marks=pytest.mark.soak)])
def test_each_part_may_die_in_the_middle_of_the_work(fragile_house: House, rounds: int) -> None:
    house = fragile_house
    kills = [
        killed(house, part, f"{part} dies, {number}", done=number % 10) for number in range(rounds) for part in PARTS
    ]
    jobs = house.await_ended([job_id for kill in kills for job_id in kill.ids])
    house.audit(jobs)
    assert_bought_once_or_flagged(house, jobs)
    assert chronicle.violations(house, jobs, unknown_wait_s=UNKNOWN_WAIT_S) == []
    assert len(house.keys("images/")) == len(jobs), "no image but the jobs' own"
    assert house.fsck() == {}
    lines = chronicle.lines(house)
    for part in dict.fromkeys(PARTS):
        mine = [kill for kill in kills if kill.part == part]
        known, unknown = (ended_after_s(mine, lines, submitting=cut) for cut in (False, True))
        print(f"{part}, {len(mine)} kills: itself back after {told([kill.back_s for kill in mine])}")
        print(f"  jobs ended after {told(known)}; of those in `submitting` {told(unknown)}")
        assert max(known, default=0) < RECOVERY_S
        assert max(unknown, default=0) < UNKNOWN_WAIT_S + RECOVERY_S


def killed(house: House, part: str, name: str, done: int) -> Kill:
    """Over fresh work, of which more than `done` are done and not all; then everything ends."""
    ids = house.post_many(JOBS, name)
    house.await_that(lambda: house.statuses(ids)["succeeded"] > done, 60)
    before = house.stack.kill(part)
    at_s = time.time()
    house.stack.await_next(part, before)
    back_s = time.time() - at_s
    house.await_ended(ids)
    return Kill(part, round(at_s * 1000), back_s, ids)


def ended_after_s(kills: Iterable[Kill], lines: list[dict[str, str]], *, submitting: bool) -> list[float]:
    """From the kill to its end, of each job that was on its way then: of those in `submitting`, or of the others."""
    took = []
    for kill in kills:
        stories = {job_id: [line for line in lines if line["id"] == job_id] for job_id in kill.ids}
        for story in stories.values():
            then = [line["status"] for line in story if int(line["at"]) <= kill.at_ms][-1]
            if then not in ENDED and (then == "submitting") == submitting:
                end = next(line for line in story if line["status"] in ENDED)
                took.append((int(end["at"]) - kill.at_ms) / 1000)
    return took


def told(took_s: list[float]) -> str:
    if not took_s:
        return "none"
    return f"{statistics.median(took_s):.1f} s (median of {len(took_s)}), {max(took_s):.1f} s at most"


def assert_bought_once_or_flagged(house: House, jobs: list[JobView]) -> None:
    purchases = house.purchases(jobs)
    for job in jobs:
        extra = purchases[job["request"]["prompt"]] - 1
        assert extra in (0, 1)
        assert job["possible_duplicate"] or extra == 0
