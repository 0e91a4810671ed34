"""SQLite's loop: die before and after the first effect, the second, the third … until a run comes through alive.

After each death a fresh process takes over, all bells are lost, and the sweep alone must heal what was begun.
"""

from dataclasses import replace
from itertools import count
from typing import Final, get_args

import pytest

from tests.sim.scenarios import HEALED_WITHIN_S, SCENARIOS, Scenario, cancel, lived
from tests.sim.town import Sim
from tests.sim.world import Crash, When


async def cancel_in_any_case(sim: Sim) -> None:
    """Whoever dies before both of its POSTs has bought nothing, and never will."""
    job_id = await sim.order("a lighthouse") or ""
    await sim.until(lambda: bool(sim.provider.ledger) or sim.job(job_id).ended, HEALED_WITHIN_S)
    await sim.cancel(job_id)


PAIRED: Final = tuple(replace(each, act=cancel_in_any_case) if each.act is cancel else each for each in SCENARIOS)


@pytest.mark.soak
@pytest.mark.parametrize("scenario", PAIRED, ids=lambda scenario: scenario.name)
def test_two_deaths_at_any_two_effects_are_healed(scenario: Scenario) -> None:
    pairs = 0
    for first in count(1):
        died = 0
        for second in count(first + 1):
            whens = [(one, other) for one in get_args(When) for other in get_args(When)]
            died = max(lived(scenario, (Crash(first, one), Crash(second, other)))[1] for one, other in whens)
            pairs += 1
            if died < len((first, second)):
                break
        if not died:
            break
    print(f"{scenario.name}: {pairs} pairs of deaths, each before and after")
    assert pairs >= scenario.points * (scenario.points - 1) // 2


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_a_death_at_any_effect_is_healed_by_the_sweep_alone(scenario: Scenario) -> None:
    effects, _ = lived(scenario, ())
    for at in count(1):
        deaths = [lived(scenario, (Crash(at, when),))[1] for when in get_args(When)]
        if not any(deaths):
            break
    print(f"{scenario.name}: {at - 1} effects, each died of before and after")
    assert at - 1 == effects >= scenario.points
