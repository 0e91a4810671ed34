"""A step that is broken off anywhere, by our worker or by RQ's alarm, while its process lives on, is healed (F08)."""

import random
import sys
from itertools import count
from typing import Literal, get_args

import pytest

from tests.sim.blade import Alarm, Cut
from tests.sim.scenarios import SCENARIOS, Scenario, lived

Where = Literal["await", "effect"]


@pytest.mark.parametrize("where", get_args(Where))
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_a_step_cut_off_at_any_await_is_healed_by_the_sweep_alone(scenario: Scenario, where: Where) -> None:
    for at in count(1):
        blade = Cut(at, where)
        lived(scenario, blade=blade)
        if blade.reached < at:
            break
    print(f"{scenario.name}: cut off at each of {at - 1} {where}s of its steps")
    assert at > 1


# An alarm between the making of a coroutine, or of a file, and the line that takes care of it leaves it as it is, and
# Python says so when it clears it away.
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.parametrize("stride", [97, pytest.param(1, marks=[pytest.mark.soak, pytest.mark.timeout(7200)])])
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_rqs_alarm_at_any_line_is_healed_by_the_sweep_alone(scenario: Scenario, stride: int) -> None:
    places, blade = set[str](), Alarm(random.randrange(stride) + 1)
    while rings(scenario, blade):
        places.add(blade.place)
        blade = Alarm(blade.at + stride)
    print(
        f"{scenario.name}: {blade.reached} lines run, an alarm at every {stride}th: in {len(places)} places of the code"
    )
    assert places


def rings(scenario: Scenario, alarm: Alarm) -> bool:
    """Whether it went off before the run was over."""
    try:
        lived(scenario, blade=alarm)
    finally:
        sys.settrace(None)
    return alarm.went_off
