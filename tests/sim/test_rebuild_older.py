"""Redis comes back as it was some time ago, what has ended since is made again, and then the workers go on.

A batch that ran then has ended meanwhile: it ends again, as it did, and nothing of it is bought twice.
"""

import asyncio
import random
from typing import Final

from service.commands.rebuild import lines
from service.domain.batch import Batch
from service.domain.job import Status
from service.rebuild import Report
from tests.sim.memory import Memory, MemoryStore
from tests.sim.provider import Manners
from tests.sim.split import copied
from tests.sim.staff import Terms
from tests.sim.storm import IMAGE
from tests.sim.test_rebuild_crashes import LONG_S, Clerk, told
from tests.sim.town import Sim

SOON_S: Final = 300.0


async def back_at(sim: Sim, then: Memory, after_s: float = 0.0) -> Report:
    """Redis is what it was then, and no worker starts before the rebuild is over."""
    sim.world.on_crash = lambda _: None
    for worker in sim.workers.values():
        worker.kill()
    await asyncio.sleep(after_s)
    sim.world.silence()
    sim.move(then, list(sim.town.stores))
    sim.world.memory, sim.store = then, MemoryStore(then, sim.town.terms.limits)
    report = await Clerk(sim.town).run()
    assert report is not None
    return report


async def ended_again(sim: Sim, batch_id: str, then: Memory) -> Batch:
    """The batch, whose lines were no jobs yet."""
    assert then.lines[batch_id]
    await sim.until(sim.quiet, LONG_S)
    sold = len(sim.provider.ledger)
    assert (await back_at(sim, then)).jobs == 2
    sim.hire("another worker")
    await sim.until(lambda: sim.over(batch_id), SOON_S)
    assert len(sim.provider.ledger) == sold
    batch = await sim.store.batches.get(batch_id)
    assert batch is not None
    return batch


def test_a_batch_whose_lines_have_become_jobs_since_is_over_again() -> None:
    async def main() -> Batch:
        sim = Sim(random.Random(1), Manners(), Terms())
        spring = await sim.upload("spring", "a lighthouse", "a heron")
        return await ended_again(sim, spring, copied(sim.world.memory))

    batch = told(main)
    assert (batch.total, batch.counts[Status.SUCCEEDED]) == (2, 2)


def test_a_batch_that_retries_is_over_again_with_the_jobs_it_had() -> None:
    async def main() -> Batch:
        sim = Sim(random.Random(1), Manners(), Terms())
        sim.provider.first += [{"moderated": 1.0}] * 2
        spring = await sim.upload("spring", "a lighthouse", "a heron")
        await sim.until(lambda: sim.over(spring), LONG_S)
        again, _ = await sim.retry_batch(spring)
        return await ended_again(sim, again, copied(sim.world.memory))

    batch = told(main)
    assert (batch.total, batch.rest, batch.counts[Status.SUCCEEDED]) == (2, 0, 2)


def test_a_job_that_waited_then_and_has_ended_since_is_not_bought_again() -> None:
    async def main() -> tuple[Report, int, int, Status]:
        sim = Sim(random.Random(1), Manners(), Terms())
        job_id = await sim.order("a lighthouse")
        assert job_id
        then = copied(sim.world.memory)
        assert then.jobs[job_id]["status"] == "queued"
        await sim.until(sim.quiet, LONG_S)
        sold = len(sim.provider.ledger)
        report = await back_at(sim, then)
        sim.hire("another worker")
        await asyncio.sleep(SOON_S)
        job = await sim.store.get(job_id)
        assert job
        return report, sold, len(sim.provider.ledger), job.status

    report, sold, sold_in_all, status = told(main)
    assert (report.jobs, report.overruled, sold, sold_in_all, status) == (1, 1, 1, 1, Status.SUCCEEDED)


def test_what_ended_before_the_retention_fills_no_redis_and_is_not_told_as_if_it_had_not_ended() -> None:
    async def main() -> tuple[Report, Memory]:
        sim = Sim(random.Random(1), Manners(), Terms())
        await sim.order("a lighthouse", image_prompt=IMAGE)
        await sim.upload("spring", "a heron", image_prompt=IMAGE)
        await sim.until(sim.quiet, LONG_S)
        assert {key.partition("/")[0] for key in sim.shelf.things} == {"batches", "images", "inputs", "jobs"}
        empty = Memory(sim.world.memory.now_ms)
        return await back_at(sim, empty, sim.town.terms.limits.retention_s), empty

    report, memory = told(main)
    assert report == Report(aged=3)
    assert lines(report)[1].startswith("3 ended longer than JOB_RETENTION_DAYS ago: ")
    assert (memory.jobs, memory.batches, memory.keys) == ({}, {}, {})
