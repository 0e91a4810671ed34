"""A provider that will not, cannot or does not say, under the virtual clock: what it is asked, and what is bought."""

import asyncio
import random
from collections import Counter
from itertools import pairwise
from typing import Final

import pytest

from service.storage.terms import Limits
from tests.sim.provider import Manners
from tests.sim.staff import Terms
from tests.sim.test_afternoons import CAP, HOUR_S, TERMS, few_or, told
from tests.sim.town import Sim

HELD_S: Final = 300.0
PROBE_S: Final = 30.0
SETTLED_S: Final = 5.0  # what was on its way when the first refusal came
KILLS_EACH_S: Final = 10.0


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
        assert unknown > jobs / 20
        assert ends(sim) == {"succeeded": jobs}

    told(story)
