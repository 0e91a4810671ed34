"""A provider that will not, cannot or does not say, under the virtual clock: what it is asked, and what is bought."""

import asyncio
import random
from collections import Counter, deque
from itertools import pairwise
from typing import Final

import pytest

from service.storage.terms import Limits
from tests.sim.provider import Manners
from tests.sim.staff import Terms, Worker
from tests.sim.test_afternoons import CAP, HOUR_S, TERMS, few_or, peak, told
from tests.sim.town import Sim
from workers.retry import SUBMIT

HELD_S: Final = 300.0
PROBE_S: Final = 30.0
SETTLED_S: Final = 5.0  # what was on its way when the first refusal came
KILLS_EACH_S: Final = 10.0
REFUSED_S: Final = 600.0
RETRIES_AHEAD: Final = 20  # how many more retries there may be than jobs that were submitted
SWEEP_S: Final = 1.0  # as in earnest: who comes back does so in a round of the sweep
OVERLOADED: Final = {"overloaded": 1.0}


def ends(sim: Sim) -> Counter[str]:
    return Counter(str(sim.job(job_id).status) for job_id in sim.world.memory.jobs)


def bought(sim: Sim) -> Counter[int]:
    """How many jobs were bought how often."""
    return Counter(Counter(row["job_id"] for row in sim.provider.ledger).values())


def test_an_account_without_credit_is_asked_once_in_half_a_minute_and_no_job_fails() -> None:
    """F30: 402 for five minutes, and 50 jobs."""

    async def story(dice: random.Random) -> None:
        sim = Sim(dice, Manners(held=1.0), TERMS, workers=2)
        for number in range(50):
            await sim.order(f"picture {number}")
        await asyncio.sleep(HELD_S - sim.world.now_s())
        asked = [at_s for at_s, _ in sim.provider.asked]
        probes = [at_s for at_s in asked if at_s > asked[0] + SETTLED_S]
        assert (sim.provider.ledger, ends(sim)["failed"]) == ([], 0)
        assert max(at_s - before for before, at_s in pairwise(probes)) < 2 * PROBE_S, "it asks on"
        sim.provider.manners = Manners(takes_s=(2.0, 6.0))
        await sim.until(sim.quiet, HOUR_S)
        print(f"50 jobs, 402 for {HELD_S:.0f} s: {len(asked) - len(probes)} submissions at once, then {len(probes)};")
        print(f"{dict(ends(sim))}, the last {sim.world.now_s() - HELD_S:.0f} s after it, bought {dict(bought(sim))}")
        assert sim.faults() == []
        assert len(probes) <= HELD_S / PROBE_S
        assert (ends(sim), bought(sim)) == ({"succeeded": 50}, {1: 50})
        assert {sim.job(job_id).refusals for job_id in sim.world.memory.jobs} == {0}, "no attempt was burnt"

    told(story)


@few_or(1000, 10)
def test_while_everything_is_refused_one_submission_in_half_a_minute_is_all_that_is_tried(jobs: int) -> None:
    """F32: JSON 503 for ten minutes. What is tried again is bounded, and burns nothing."""

    async def story(dice: random.Random) -> None:
        sim = Sim(dice, Manners(overloaded=1.0), TERMS, workers=2)
        ids = [await sim.order(f"picture {number}") or "" for number in range(jobs)]
        await asyncio.sleep(REFUSED_S - sim.world.now_s())
        asked = [at_s for at_s, _ in sim.provider.asked]
        probes = [at_s for at_s in asked if at_s > asked[0] + SETTLED_S]
        fresh = sum(sim.job(job_id).attempt > 0 for job_id in ids)
        burnt = max(sim.job(job_id).refusals for job_id in ids)
        print(f"{jobs} jobs, all refused for {REFUSED_S:.0f} s: {len(asked) - len(probes)} submissions at once, then")
        print(
            f"{len(probes)}; of {len(asked)} submissions {len(asked) - fresh} were retries, {burnt} try burnt at most"
        )
        assert (sim.provider.ledger, ends(sim)["failed"]) == ([], 0)
        assert max(at_s - before for before, at_s in pairwise(probes)) < 2 * PROBE_S, "it asks on"
        assert len(probes) <= REFUSED_S / PROBE_S
        assert len(asked) - fresh <= fresh + RETRIES_AHEAD
        sim.provider.manners = Manners(takes_s=(2.0, 6.0))
        await sim.until(sim.quiet, HOUR_S)
        back_s = [at_s for at_s, status in sim.provider.asked if status == 200]
        print(f"{dict(ends(sim))}, bought {dict(bought(sim))}, at most {peak(back_s)} submissions a second")
        assert sim.faults() == []
        assert (ends(sim), bought(sim)) == ({"succeeded": jobs}, {1: jobs})
        assert peak(back_s) <= CAP

    told(story)


@few_or(1000, 300)
def test_jobs_that_are_refused_together_do_not_come_back_together(jobs: int) -> None:
    """F32: three of four are refused in one instant, while the fourth gets through, so that the gate stays open. There
    is no cap: nothing but the jitter spreads them.
    """

    async def story(dice: random.Random) -> None:
        terms = Terms(limits=Limits(max_in_flight=0), sweep_s=SWEEP_S)
        sim = Sim(dice, Manners(takes_s=(2.0, 6.0)), terms, workers=0)
        ids = [await sim.order(f"picture {number}") or "" for number in range(4 * jobs // 3)]
        sim.provider.first = deque([OVERLOADED, OVERLOADED, OVERLOADED, {}] * (jobs // 3))
        for number in range(8):
            sim.workers[f"worker-{number}"] = Worker(sim.town, f"worker-{number}")
        await sim.until(sim.quiet, HOUR_S)
        refused_s = [at_s for at_s, status in sim.provider.asked if status == 503]
        back_s = [at_s - refused_s[-1] for at_s, _ in sim.provider.asked[len(ids) :]]
        mean = len(back_s) / SUBMIT.base_s  # a second of the longest that one may wait
        within_s = refused_s[-1] - refused_s[0]
        print(f"{len(refused_s)} jobs refused within {within_s:.2f} s came back in {max(back_s):.1f} s:")
        print(f"{mean:.0f} a second, {peak(back_s)} at most, which is {peak(back_s) / mean:.2f} times that")
        assert sim.faults() == []
        assert len(back_s) == len(refused_s) >= jobs - 3
        assert ends(sim) == {"succeeded": len(ids)}
        assert peak(back_s) <= 2 * mean

    told(story)


@few_or(500, 60)
def test_a_cap_that_the_provider_enforces_is_kept_also_by_processes_that_die(jobs: int) -> None:
    """F31: 24 outstanding at most, refusals of one in a hundred at most, and no slot leaks."""

    async def story(dice: random.Random) -> None:
        sim = Sim(dice, Manners(takes_s=(2.0, 6.0), cap=CAP), TERMS, workers=2)
        ids = [await sim.order(f"picture {number}") for number in range(jobs)]
        kills = 0
        while not sim.quiet():
            await asyncio.sleep(dice.expovariate(1 / KILLS_EACH_S))
            if alive := [worker for worker in sim.workers.values() if worker.alive]:
                dice.choice(alive).kill()
                kills += 1
        refused = sum(status == 429 for _, status in sim.provider.asked)
        print(f"{len(ids)} jobs, {kills} kills: {dict(ends(sim))}, {refused} x 429, bought {dict(bought(sim))}")
        assert sim.faults() == []
        assert ends(sim) == {"succeeded": jobs}
        assert refused <= jobs / 100
        assert not sim.world.memory.zsets["slots"]

    told(story)


@few_or(200, 30)
@pytest.mark.parametrize("callbacks", [True, False], ids=["callbacks", "none"])
def test_a_provider_that_accepts_and_never_answers(jobs: int, callbacks: bool) -> None:
    """F33: with callbacks nothing is bought twice; without, at most once more, and the job says so."""

    async def story(dice: random.Random) -> None:
        terms = Terms(limits=Limits(max_in_flight=CAP), callbacks=callbacks)
        sim = Sim(dice, Manners(takes_s=(2.0, 6.0), silent=True), terms, workers=2)
        ids = [await sim.order(f"picture {number}") or "" for number in range(jobs)]
        await sim.until(sim.quiet, 10 * HOUR_S)
        extra = len(sim.provider.ledger) - jobs
        flagged = sum(sim.job(job_id).possible_duplicate for job_id in ids)
        print(f"{jobs} jobs, callbacks {callbacks}: {dict(ends(sim))}, {extra} extra purchases, {flagged} flagged")
        assert sim.faults() == []
        assert (extra, flagged) == ((0, 0) if callbacks else (jobs, jobs))
        assert max(bought(sim)) == (1 if callbacks else 2)
        assert ends(sim) == {("succeeded" if callbacks else "failed"): jobs}

    told(story)


@few_or(1000, 100)
def test_ids_that_a_provider_gives_twice_cross_no_images(jobs: int) -> None:
    """F34: one submission in ten is answered with the id of another job's task; each image names its own."""

    async def story(dice: random.Random) -> None:
        sim = Sim(dice, Manners(takes_s=(2.0, 6.0), same_id=0.1), TERMS, workers=2)
        for number in range(jobs):
            await sim.order(f"picture {number}")
        await sim.until(sim.quiet, 10 * HOUR_S)
        unknown = sum(entry.data["reason"] == "outcome_unknown" for entry in sim.world.memory.events)
        print(
            f"{jobs} jobs, {unknown} ids of somebody else: {dict(ends(sim))}, 0 mismatches, bought {dict(bought(sim))}"
        )
        assert sim.faults() == [], "each image is of a task of its own job"
        assert unknown > jobs / 100, "else nothing was tried"
        assert ends(sim) == {"succeeded": jobs}

    told(story)
