"""Long afternoons under the virtual clock: what a user waits for, and what a provider is asked, in figures."""

import asyncio
import random
import statistics
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any, Final

import pytest

from service.storage.terms import Limits
from tests.sim.loop import run
from tests.sim.provider import Manners
from tests.sim.staff import Terms, Worker
from tests.sim.town import Sim
from tests.sim.world import entropy
from workers.sweep import QUEUE_MOST

CAP: Final = 24
OUTAGE_S: Final = 1800.0
HOUR_S: Final = 3600.0
DEADLINE_S: Final = 300
TERMS: Final = Terms(limits=Limits(max_in_flight=CAP))


def few_or(many: int, few: int) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("jobs", [few, pytest.param(many, marks=pytest.mark.soak)])


def told(story: Callable[[random.Random], Coroutine[Any, Any, None]]) -> None:
    """One run of it, whose seed is printed."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    with entropy(random.Random(seed)):
        run(lambda: story(random.Random(seed)))


def peak(at_s: list[float]) -> int:
    """The most within one second."""
    return max(Counter(int(each) for each in at_s).values())


@few_or(1000, 150)
def test_a_provider_that_is_away_for_half_an_hour_costs_time_and_nothing_else(jobs: int) -> None:
    """F38: accepted meanwhile, ended only by a caller's own deadline, then drained oldest first without a storm."""

    async def story(dice: random.Random) -> None:
        sim = Sim(dice, Manners(takes_s=(3.0, 8.0), cap=CAP), TERMS, workers=2)
        sim.world.weather.away["flux"] = OUTAGE_S
        ids, hasty = [], []
        for number in range(jobs):
            ids.append(await sim.order(f"patient {number}") or "")
            if number % 10 == 0:
                hasty.append(await sim.order(f"hasty {number}", deadline_s=DEADLINE_S) or "")
            await asyncio.sleep(OUTAGE_S / 2 / jobs)
        await asyncio.sleep(OUTAGE_S - sim.world.now_s())
        assert {str(sim.job(job_id).status) for job_id in ids} == {"queued"}
        late = [sim.job(job_id) for job_id in hasty]
        assert {job.error.code if job.error else "" for job in late} == {"deadline_exceeded"}
        assert min((job.finished_at or 0) - job.created_at for job in late) >= DEADLINE_S * 1000
        assert sim.provider.ledger == []
        await sim.until(sim.quiet, HOUR_S)
        assert sim.faults() == []
        assert {str(sim.job(job_id).status) for job_id in ids} == {"succeeded"}
        # Those that tried whether the provider is back have had their turn, and take a new one.
        order = [row["job_id"] for row in sim.provider.ledger if sim.job(row["job_id"]).attempt == 1]
        ahead = max(sorted(order).index(job_id) - number for number, job_id in enumerate(order))
        at_s = [row["at_s"] for row in sim.provider.ledger]
        print(f"{jobs} jobs, {len(hasty)} with a deadline: all drained {sim.world.now_s() - OUTAGE_S:.0f} s after it,")
        print(
            f"at most {peak(at_s)} submissions a second; {jobs - len(order)} had tried before, the others went in turn"
        )
        assert len(at_s) == jobs
        assert peak(at_s) <= CAP
        assert ahead < CAP, "oldest first, but for who runs side by side"

    told(story)


@few_or(2000, 200)
def test_three_in_ten_refusals_cost_few_jobs_and_few_tries(jobs: int) -> None:
    """F32: four tries each, while others get through."""

    async def story(dice: random.Random) -> None:
        sim = Sim(dice, Manners(overloaded=0.3, takes_s=(2.0, 6.0)), TERMS, workers=2)
        ids = [await sim.order(f"picture {number}") or "" for number in range(jobs)]
        await sim.until(sim.quiet, 10 * HOUR_S)
        assert sim.faults() == []
        ends = Counter(str(sim.job(job_id).status) for job_id in ids)
        tries = sim.world.tally["flux.submit"] / jobs
        print(f"{jobs} jobs: {dict(ends)}, {tries:.2f} tries a job")
        few = jobs < 2000  # of which 0.3 ** 4, 0.8 in a hundred, fail: chance shows more in few
        assert ends["succeeded"] >= jobs * (0.95 if few else 0.985)
        assert tries <= (1.8 if few else 1.6)

    told(story)


@few_or(5000, 400)
def test_all_that_comes_due_at_once_goes_out_by_slots_and_floods_no_queue(jobs: int) -> None:
    """F64: nobody works, thousands of jobs and as many lost bells; then all processes start together."""

    async def story(dice: random.Random) -> None:
        sim = Sim(dice, Manners(takes_s=(2.0, 6.0), cap=CAP), TERMS, workers=0)
        for number in range(jobs):
            await sim.order(f"picture {number}")
        most = Counter[str]()
        for number in range(3):
            sim.workers[f"worker-{number}"] = Worker(sim.town, f"worker-{number}")
        watch = asyncio.ensure_future(_watch(sim, most))
        await sim.until(sim.quiet, 10 * HOUR_S)
        watch.cancel()
        assert sim.faults() == []
        at_s = [row["at_s"] for row in sim.provider.ledger]
        print(f"{jobs} jobs at once: at most {most['outstanding']} outstanding, {peak(at_s)} submissions a second,")
        print(f"{most['bells']} bells in a queue")
        assert most["outstanding"] <= CAP
        assert peak(at_s) <= CAP
        assert most["bells"] <= QUEUE_MOST

    told(story)


async def _watch(sim: Sim, most: Counter[str]) -> None:
    while True:
        most["outstanding"] = max(most["outstanding"], sim.provider.outstanding())
        most["bells"] = max(most["bells"], *(bells.ids.qsize() for bells in sim.world.bells.values()))
        await asyncio.sleep(0.1)


@few_or(500, 100)
@pytest.mark.parametrize("takes_s", [(3.0, 12.0), (20.0, 100.0)], ids=["quick", "slow"])
def test_losing_every_callback_costs_a_poll_gap(jobs: int, takes_s: tuple[float, float]) -> None:
    """F39, P7: how long after the provider was ready somebody noticed."""

    async def story(dice: random.Random) -> None:
        sim = Sim(dice, Manners(call_lost=1.0, takes_s=takes_s), TERMS, workers=2)
        for number in range(jobs):
            await sim.order(f"picture {number}")
            await asyncio.sleep(dice.expovariate(1.0))
        await sim.until(sim.quiet, HOUR_S)
        assert sim.faults() == []
        began_ms = sim.world.memory.now_ms() - sim.world.now_s() * 1000
        ready = {task.job_id: task.ends_s for task in sim.provider.tasks.values()}
        seen = {job_id: sim.job(job_id) for job_id in ready}
        added_s = sorted(((job.ready_at or 0) - began_ms) / 1000 - ready[job_id] for job_id, job in seen.items())
        median_s = statistics.median(added_s)
        print(f"{jobs} jobs, no callback: found {median_s:.1f} s late (median), {added_s[-1]:.1f} s at most")
        assert {(str(job.status), str(job.found_by)) for job in seen.values()} == {("succeeded", "poll")}
        assert median_s <= (15 if takes_s[1] < 60 else 20)
        assert added_s[-1] <= 72

    told(story)


@pytest.mark.parametrize("sweeps", [0, 1, 3])
def test_any_one_sweep_suffices_and_without_one_the_age_of_what_is_due_tells(sweeps: int) -> None:
    """F07: half of all bells are lost, or every one."""

    async def story(dice: random.Random) -> None:
        sim = Sim(dice, Manners(takes_s=(2.0, 6.0)), TERMS, workers=0)
        for number in range(3):
            worker = Worker(sim.town, f"worker-{number}", sweeps=number < sweeps)
            sim.workers[worker.name] = worker
        sim.world.memory.watch = lambda _: None
        sim.town.bells_lost = 0.5 if sweeps else 1.0
        began_s = sim.world.now_s()
        for number in range(20):
            await sim.order(f"picture {number}")
        if sweeps:
            await sim.until(sim.quiet, 600)
            assert sim.faults() == []
            print(f"{sweeps} sweeps: all ended after {sim.world.now_s() - began_s:.0f} s")
            return
        while (await sim.store.figures()).oldest_due_s <= 30:
            await asyncio.sleep(1)
            assert sim.world.now_s() - began_s <= 35
        print(f"no sweep: the oldest due work is 30 s late after {sim.world.now_s() - began_s:.0f} s")
        assert sim.provider.ledger == []

    told(story)
