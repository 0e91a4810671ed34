"""What a run may be about, each short enough to be lived through once for every place where it can be broken off."""

import base64
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

from service.domain.errors import ErrorCode
from service.domain.job import Job
from tests.sim.loop import run
from tests.sim.provider import Manners
from tests.sim.staff import Terms
from tests.sim.storm import HOOK
from tests.sim.town import Sim
from tests.sim.world import Blade, Crash, entropy

HEALED_WITHIN_S: Final = 1800.0
IMAGE: Final = base64.b64encode(b"\x89PNG\r\n\x1a\n an input").decode()


@dataclass(frozen=True)
class Scenario:
    """`points`: effects of a run without a crash, which may grow and must not shrink."""

    name: str
    points: int
    act: Callable[[Sim], Awaitable[None]]
    ends: frozenset[str] = frozenset({"succeeded"})
    first: tuple[str, ...] = ()
    manners: Manners = field(default_factory=Manners)
    terms: Terms = field(default_factory=Terms)


async def order(sim: Sim) -> None:
    await sim.order("a lighthouse")


async def order_with_an_input(sim: Sim) -> None:
    await sim.order("a lighthouse", image_prompt=IMAGE)


async def cancel(sim: Sim) -> None:
    job_id = await sim.order("a lighthouse") or ""
    await sim.until(lambda: bool(sim.provider.ledger), HEALED_WITHIN_S)
    await sim.cancel(job_id)


async def retry(sim: Sim) -> None:
    job_id = await sim.order("a lighthouse") or ""
    await sim.until(lambda: sim.job(job_id).ended, HEALED_WITHIN_S)
    await sim.retry(job_id)


async def delete(sim: Sim) -> None:
    job_id = await sim.order("a lighthouse", image_prompt=IMAGE) or ""
    await sim.until(lambda: sim.job(job_id).ended, HEALED_WITHIN_S)
    await sim.delete(job_id)


async def batch(sim: Sim) -> None:
    await sim.upload("spring", "a lighthouse", "a heron")


async def batch_with_an_input(sim: Sim) -> None:
    await sim.upload("spring", "a lighthouse", image_prompt=IMAGE)


async def batch_cancelled(sim: Sim) -> None:
    batch_id = await sim.upload("spring", "a lighthouse", "a heron")
    await sim.cancel_batch(batch_id)


async def batch_retried(sim: Sim) -> None:
    batch_id = await sim.upload("spring", "a lighthouse", "a heron")
    await sim.until(lambda: sim.over(batch_id), HEALED_WITHIN_S)
    await sim.retry_batch(batch_id)


async def order_and_be_told(sim: Sim) -> None:
    await sim.order("a lighthouse", callback_url=HOOK)


async def batch_and_be_told(sim: Sim) -> None:
    await sim.upload("spring", "a lighthouse", callback_url=HOOK)


EITHER: Final = frozenset({"succeeded", "failed"})
SCENARIOS: Final = (
    Scenario("called back", 34, order),
    Scenario("not called back", 44, order, terms=Terms(callbacks=False)),
    Scenario("all callbacks lost", 44, order, manners=Manners(call_lost=1.0)),
    Scenario("refused once", 39, order, first=("overloaded",)),
    Scenario("throttled once", 39, order, first=("throttled",)),
    Scenario("moderated, then retried", 54, retry, EITHER, first=("moderated",)),
    Scenario("cancelled", 33, cancel, frozenset({"succeeded", "cancelled"})),
    Scenario("deleted", 48, delete),
    Scenario("with an input image", 37, order_with_an_input),
    Scenario("outcome unknown, then called back", 34, order, first=("garbled",)),
    Scenario("a batch", 76, batch),
    Scenario("a batch with an input image", 60, batch_with_an_input),
    Scenario("a batch, cancelled", 47, batch_cancelled, frozenset({"succeeded", "cancelled"})),
    Scenario("a batch, its failed line retried", 121, batch_retried, EITHER, first=("moderated",)),
    Scenario("told of", 39, order_and_be_told),
    Scenario("a batch, told of", 60, batch_and_be_told),
    Scenario("outcome unknown", 100, order, EITHER, first=("garbled",), manners=Manners(call_lost=1.0)),
)


def lived(scenario: Scenario, crashes: tuple[Crash, ...] = (), blade: Blade | None = None) -> tuple[int, int]:
    """How many effects the run had, and how many of its processes died. AssertionError: it broke a promise."""
    many = len(crashes) > 1

    async def main() -> tuple[int, int]:
        sim = Sim(random.Random(1), scenario.manners, scenario.terms, crashes=crashes)
        sim.provider.first.extend({name: 1.0} for name in scenario.first)
        sim.deafening = True
        sim.world.blade = blade
        await scenario.act(sim)
        await sim.until(sim.quiet, HEALED_WITHIN_S)
        faults = sim.faults()
        ends = {job_id: sim.job(job_id) for job_id in sim.world.memory.jobs}
        wrong = [job for job in ends.values() if job.status not in scenario.ends and not (many and untold(job))]
        faults += [f"{job.id}: ended {job.error}" for job in wrong]
        assert not faults, f"{scenario.name}, died {sim.world.crashed} by {crashes or blade}: {faults}"
        return sim.world.effects, len(sim.world.crashed)

    with entropy(random.Random(1)):
        return run(main)


def untold(job: Job) -> bool:
    """Died in both of its submissions: nobody can know, and it says so."""
    return job.error is not None and job.error.code is ErrorCode.OUTCOME_UNKNOWN
