"""kill -9 of every part in the middle of the work, and how long each job that was on its way then takes to its end."""

import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.integration import chronicle
from tests.integration.house import ENDED, House, opened

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
    chronicle.bought_once_or_flagged(house, jobs)
    assert chronicle.violations(house, jobs, unknown_wait_s=UNKNOWN_WAIT_S) == []
    assert len(house.keys("images/")) == len(jobs), "no image but the jobs' own"
    assert house.fsck() == {}
    lines = chronicle.lines(house)
    for part in dict.fromkeys(PARTS):
        mine = [kill for kill in kills if kill.part == part]
        known, unknown = (ended_after_s(mine, lines, submitting=cut) for cut in (False, True))
        print(f"{part}, {len(mine)} kills: itself back after {told([kill.back_s for kill in mine])}")
        print(f"  jobs ended after {told(known)}; of those in `submitting` {told(unknown)}")
        assert known, "it died over work that was on its way"
        assert max(known) < RECOVERY_S
        assert max(unknown, default=0) < UNKNOWN_WAIT_S + RECOVERY_S


@pytest.mark.soak
@pytest.mark.parametrize("rounds", [3])
def test_what_was_being_submitted_when_its_workers_died_is_waited_out(tmp_path: Path, rounds: int) -> None:
    """Bought, and nobody can know: no answer, no callback, and who had asked is dead."""
    wait_s = 50.0  # more than a model's slowest and 40 s, under which no wait goes
    for house in opened(tmp_path, workers=2, UNKNOWN_WAIT_S=str(wait_s)):
        kills = [killed_while_submitting(house, f"both workers die, {number}") for number in range(rounds)]
        jobs = house.await_ended([job_id for kill in kills for job_id in kill.ids])
        house.audit(jobs)
        assert set(house.purchases(jobs).values()) == {2}
        assert all(job["possible_duplicate"] for job in jobs)
        assert chronicle.violations(house, jobs, unknown_wait_s=wait_s) == []
        took_s = ended_after_s(kills, chronicle.lines(house), submitting=True)
        print(f"UNKNOWN_WAIT_S={wait_s:.0f}: in `submitting`, ended after {told(took_s)}")
        assert max(took_s) < wait_s + RECOVERY_S


def killed(house: House, part: str, name: str, done: int) -> Kill:
    """Over fresh work, of which more than `done` are done and not all; then everything ends."""
    ids = house.post_many(JOBS, name)
    house.await_that(lambda: house.statuses(ids)["succeeded"] > done, 60)
    return dead(house, (part,), ids)


def killed_while_submitting(house: House, name: str) -> Kill:
    """Both workers, while the provider has taken all that they posted, and answers none of it."""
    house.provider.post("/_control", json={"accept_hang": 1, "callback_loss": 1}).raise_for_status()
    ids = house.post_many(JOBS, name)
    house.await_that(lambda: house.statuses(ids)["submitting"] == JOBS, 60)
    house.provider.post("/_control", json={"accept_hang": 0, "callback_loss": 0}).raise_for_status()
    return dead(house, ("workers-1", "workers-2"), ids)


def dead(house: House, parts: Sequence[str], ids: list[str]) -> Kill:
    before = {part: house.stack.kill(part) for part in parts}
    at_s = time.time()
    for part, pid in before.items():
        house.stack.await_next(part, pid)
    back_s = time.time() - at_s
    house.await_ended(ids)
    return Kill(parts[0], round(at_s * 1000), back_s, ids)


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
