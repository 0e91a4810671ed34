"""What the simulation is worth: each mechanism, taken out, must break a promise within a few seeds."""

import asyncio
import logging
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import pytest

from tests.sim.loop import run
from tests.sim.provider import Manners
from tests.sim.staff import Terms
from tests.sim.storm import LINES, Storm
from tests.sim.town import Sim
from tests.sim.world import entropy

SEEDS_MOST: Final = 40
Run = Callable[[str, Mapping[str, Any], Mapping[str, str]], list[Any]]


@pytest.fixture(autouse=True)
def silence() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def no_version_check(sim: Sim) -> None:
    memory, verb_run = sim.world.memory, sim.world.memory.run

    def unfenced(verb: str, a: Mapping[str, Any], fields: Mapping[str, str]) -> list[Any]:
        row = memory.jobs.get(a.get("id", ""))
        told = {**a, "version": row["version"], "digest": row["sum"]} if verb == "apply" and row else a
        return verb_run(verb, told, fields)

    sim.world.memory.run = unfenced  # type: ignore[method-assign]  # sabotage


def no_due_time_for_what_is_claimed(sim: Sim) -> None:
    memory, verb_run = sim.world.memory, sim.world.memory.run

    def forgetful(verb: str, a: Mapping[str, Any], fields: Mapping[str, str]) -> list[Any]:
        reply = verb_run(verb, a, fields)
        if reply[0] == "claimed":
            memory.due.pop(f"job:{reply[3]}", None)
        return reply

    sim.world.memory.run = forgetful  # type: ignore[method-assign]  # sabotage


def no_wait_for_an_unknown_outcome(sim: Sim) -> None:
    verb_run = sim.world.memory.run

    def hasty(verb: str, a: Mapping[str, Any], fields: Mapping[str, str]) -> list[Any]:
        return verb_run(verb, {**a, "due_ms": 0} if a.get("event") == "intended" else a, fields)

    sim.world.memory.run = hasty  # type: ignore[method-assign]  # sabotage


def no_cap(sim: Sim) -> None:
    sim.world.memory._full = lambda group, priority: False  # type: ignore[method-assign]  # sabotage


def no_wait_for_the_last_job_of_a_batch(sim: Sim) -> None:
    memory, verb_run = sim.world.memory, sim.world.memory.run

    def impatient(verb: str, a: Mapping[str, Any], fields: Mapping[str, str]) -> list[Any]:
        if verb == "count_up":
            memory.closed[a["id"]] |= {str(number) for number in range(LINES)}
        return verb_run(verb, a, fields)

    sim.world.memory.run = impatient  # type: ignore[method-assign]  # sabotage


def no_notification_with_the_write_that_ends_a_job(sim: Sim) -> None:
    verb_run = sim.world.memory.run

    def silent(verb: str, a: Mapping[str, Any], fields: Mapping[str, str]) -> list[Any]:
        return verb_run(verb, {name: value for name, value in a.items() if name != "notify"}, fields)

    sim.world.memory.run = silent  # type: ignore[method-assign]  # sabotage


@pytest.mark.parametrize(
    "sabotage",
    [
        no_version_check,
        no_due_time_for_what_is_claimed,
        no_wait_for_an_unknown_outcome,
        no_cap,
        no_wait_for_the_last_job_of_a_batch,
        no_notification_with_the_write_that_ends_a_job,
    ],
    ids=lambda sabotage: str(sabotage.__name__),
)
def test_without_its_mechanism_a_promise_breaks(sabotage: Callable[[Sim], None]) -> None:
    for seed in range(SEEDS_MOST):
        try:
            Storm(seed, sabotage=sabotage).run()
        except Exception as broken:  # noqa: BLE001 -- whatever shows first
            print(f"{sabotage.__name__}: seed {seed}: {str(broken)[:300]}")
            return
    pytest.fail(f"{SEEDS_MOST} seeds did not notice: {sabotage.__name__}")


def put_by_two_who_stopped_before(*, once: bool) -> list[str]:
    """Two processes stop before they put other bytes of the same picture, and wake one after the other."""

    async def main() -> list[str]:
        sim = Sim(random.Random(1), Manners(redrawn=1.0), Terms(), workers=2)
        sim.shelf.once = once
        for worker, for_s in zip(sim.workers.values(), (200.0, 400.0), strict=True):
            worker.faint = ("bucket.put_file", for_s)
        await sim.order("a lighthouse")
        await asyncio.sleep(900)
        await sim.until(sim.quiet, 600)
        assert sim.world.tally["bucket.put_file"] > 1
        return sim.faults()

    with entropy(random.Random(1)):
        return run(main)


def test_without_put_once_a_late_process_replaces_a_sealed_image() -> None:
    assert put_by_two_who_stopped_before(once=True) == []
    assert ["P3" in fault for fault in put_by_two_who_stopped_before(once=False)] == [True]
