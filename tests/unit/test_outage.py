"""Who may call a store that is away."""

import pytest

from workers.outage import PROBE_MS, Outage


def test_a_store_that_answers_is_everybodys() -> None:
    outage = Outage()
    assert all(outage.may_try(now) for now in range(5))


def test_while_it_is_away_one_in_a_while_may_try() -> None:
    outage = Outage()
    outage.failed(0, began=0, detail="cut")
    tries = [now for now in range(0, 3 * PROBE_MS + 1, 100) if outage.may_try(now)]
    assert tries == [PROBE_MS, 2 * PROBE_MS, 3 * PROBE_MS]


def test_one_that_worked_ends_it() -> None:
    outage = Outage()
    outage.failed(0, began=0, detail="cut")
    outage.worked(0)
    assert outage.may_try(0)
    assert outage.may_try(0)


def test_an_outage_is_told_once_and_its_end_once(caplog: pytest.LogCaptureFixture) -> None:
    outage = Outage()
    for now in range(3):
        outage.failed(now, began=now, detail="put: ReadTimeoutError")
    outage.worked(3)
    outage.worked(4)
    assert caplog.messages == ["the store is away: put: ReadTimeoutError", "the store is back"]


def test_one_call_that_fails_while_others_do_well_is_no_outage() -> None:
    outage = Outage()
    outage.worked(500)
    outage.failed(1_000, began=400, detail="cut")
    assert all(outage.may_try(now) for now in range(1_000, 1_005)), "it hung; the store has served another since"
    outage.failed(1_100, began=600, detail="cut")
    assert not outage.may_try(1_101)
