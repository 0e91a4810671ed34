"""Redis is lost, and whoever makes its records again dies before and after the first effect, the second, the third …

Run again, it comes to the same end each time: what callers knew before is what they know afterwards.
"""

import asyncio
import random
from collections.abc import Callable, Coroutine, Mapping
from itertools import count
from typing import Any, Final, TypeVar, cast, get_args

import pytest

from service.domain import batch as batches
from service.domain.job import Status
from service.domain.view import view
from service.rebuild import Rebuild, Report
from service.storage.bucket import Bucket
from tests.sim.bucket import SimBucket, Thing
from tests.sim.loop import run
from tests.sim.provider import Manners
from tests.sim.staff import Terms, Town, desk_of
from tests.sim.storm import IMAGE
from tests.sim.town import Sim
from tests.sim.world import Crash, Process, When, entropy

T = TypeVar("T")

LONG_S: Final = 1800.0
HOUR_S: Final = 3600.0
POINTS: Final = 50
Known = dict[str, Any]


def told(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    with entropy(random.Random(1)):
        return run(main)


class Clerk(Process):
    """`python -m service rebuild`."""

    def __init__(self, town: Town) -> None:
        super().__init__(town.world, "rebuild")
        self._rebuild = Rebuild(desk_of(self, town).store, cast("Bucket", SimBucket(self, town.shelf)))

    async def run(self) -> Report | None:
        """None: it died."""
        work = self.start(self._rebuild.run())
        await asyncio.wait([work])
        return None if work.cancelled() else work.result()


async def known(sim: Sim) -> Known:
    """All that a caller can ask for, and what decides whether something is bought again."""
    memory = sim.world.memory
    jobs = {job_id: sim.job(job_id) for job_id in memory.jobs}
    groups = {batch_id: await sim.store.batches.get(batch_id) for batch_id in memory.batches}
    lists = {name for name, ids in memory.zsets.items() if ids and name.startswith(("jobs", "batches", "ended"))}
    return {
        "jobs": {job_id: view(job) for job_id, job in jobs.items()},
        "batches": {batch_id: batches.view(batch) for batch_id, batch in groups.items() if batch},
        "bought": {job_id for job_id, job in jobs.items() if job.bought},
        "retries": {job_id: job.retried_by for job_id, job in jobs.items()}
        | {batch_id: batch.retried_by for batch_id, batch in groups.items() if batch},
        "keys": {place: (digest, id_) for place, (digest, id_, _) in memory.keys.items() if id_ not in sim.deleted},
        "owners": {job.provider_id: memory.tasks[job.provider_id] for job in jobs.values() if job.provider_id},
        "lists": {name: sorted(memory.zsets[name]) for name in lists},
        "due": dict(memory.due),
    }


async def a_day(sim: Sim) -> None:
    """Jobs of each end, one retried, one deleted, one cancelled while it was posted and of which nothing was heard; a
    batch, the retry of its failed line, and a cancelled one.
    """

    async def ended(job_id: str | None) -> str:
        await sim.until(lambda: sim.job(job_id or "").ended, LONG_S)
        return job_id or ""

    await ended(await sim.order("good"))
    sim.provider.first.append({"moderated": 1.0})
    await ended(await sim.retry(await ended(await sim.order("bad"))))
    await sim.cancel(await sim.order("dropped") or "")
    sim.provider.first.append({"silent": True, "calls": False})
    unheard = await sim.order("unheard") or ""
    await sim.until(lambda: sim.job(unheard).status is Status.SUBMITTING, LONG_S)
    await sim.cancel(unheard)
    await sim.delete(await ended(await sim.order("unwanted", image_prompt=IMAGE)))
    sim.provider.first.append({"moderated": 1.0})
    spring = await sim.upload("spring", "a lighthouse", "a heron")
    await sim.until(lambda: sim.over(spring), LONG_S)
    await sim.retry_batch(spring)
    await sim.cancel_batch(await sim.upload("summer", "a beach", "a pier", caller="bob"), caller="bob")
    await sim.upload("autumn", "a leaf", image_prompt=IMAGE)
    await sim.until(sim.quiet, LONG_S)


@pytest.fixture(scope="module")
def before() -> tuple[dict[str, Thing], Known]:
    """What the bucket holds, and what Redis did."""

    async def main() -> tuple[dict[str, Thing], Known]:
        sim = Sim(random.Random(1), Manners(), Terms())
        await a_day(sim)
        assert sim.faults() == []
        return sim.shelf.things, await known(sim)

    return told(main)


def rebuilt(things: Mapping[str, Thing], crashes: tuple[Crash, ...]) -> tuple[Known, Report, int, int]:
    """What is known then, the last report, how many effects there were, and how many clerks died."""

    async def main() -> tuple[Known, Report, int, int]:
        sim = Sim(random.Random(1), Manners(), Terms(), crashes=crashes, workers=0)
        sim.world.on_crash = lambda _: None
        sim.shelf.things.update(things)
        await asyncio.sleep(HOUR_S)
        while (report := await Clerk(sim.town).run()) is None:
            pass
        assert sim.shelf.things == things
        return await known(sim), report, sim.world.effects, len(sim.world.crashed)

    return told(main)


def test_a_rebuild_that_dies_at_any_effect_and_is_run_again_brings_back_all_there_was(
    before: tuple[dict[str, Thing], Known],
) -> None:
    things, knew = before
    there = len(knew["jobs"]) + len(knew["batches"])
    effects = rebuilt(things, ())[2]
    for at in count(1):
        died = 0
        for when in get_args(When):
            knows, report, _, deaths = rebuilt(things, (Crash(at, cast("When", when)),))
            assert knows == knew, f"died {when} effect {at}"
            assert report.jobs + report.batches + report.known == there
            assert (report.unreadable, report.images, report.inputs, report.unmarked) == ([], [], [], [])
            died += deaths
        if not died:
            break
    print(f"rebuild: {at - 1} effects, each died of before and after: {there} records, difference 0")
    assert at - 1 == effects >= POINTS
