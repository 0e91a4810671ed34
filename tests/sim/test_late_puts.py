"""A process sleeps right before it puts something, for longer than any lease and any second look of the sweep."""

import asyncio
import random
from typing import Final

import pytest

from tests.sim.loop import run
from tests.sim.provider import Manners
from tests.sim.staff import Terms
from tests.sim.town import Sim
from tests.sim.world import entropy
from workers.close import LATE_PUT_S

SLEEP_S: Final = 2 * LATE_PUT_S
HEALED_WITHIN_S: Final = 600.0


async def slept_before(sim: Sim, effect: str) -> str:
    """The id of a job that another finishes while its first process sleeps before that effect."""
    for worker in sim.workers.values():
        worker.faint = (effect, SLEEP_S)
    job_id = await sim.order("a lighthouse") or ""
    await sim.until(lambda: any(worker.asleep for worker in sim.workers.values()), HEALED_WITHIN_S)
    for worker in sim.workers.values():
        worker.faint = None
    return job_id


@pytest.mark.parametrize("mute", [False, True], ids=["answered", "not answered"])
@pytest.mark.parametrize("put", ["bucket.put_file", "bucket.put_bytes"], ids=["image", "sidecar"])
def test_what_is_put_long_after_its_job_was_deleted_goes_too(put: str, mute: bool) -> None:
    async def main() -> list[str]:
        sim = Sim(random.Random(1), Manners(), Terms(), workers=2)
        job_id = await slept_before(sim, put)
        await sim.until(lambda: sim.job(job_id).ended, SLEEP_S / 2)
        assert await sim.delete(job_id) == 204
        await sim.until(sim.quiet, SLEEP_S)
        assert not sim.shelf.things
        assert any(worker.asleep for worker in sim.workers.values())
        puts, sim.shelf.mute = sim.world.tally[put], mute
        await sim.until(lambda: sim.world.tally[put] > puts, SLEEP_S)
        await asyncio.sleep(HEALED_WITHIN_S)
        await sim.until(sim.quiet, HEALED_WITHIN_S)
        return sim.faults()

    with entropy(random.Random(1)):
        assert run(main) == []
