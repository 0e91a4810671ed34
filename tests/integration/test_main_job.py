"""The main job, end to end, with real processes: 200 at once, with callbacks, without, and with bad ones."""

import pytest

from tests.integration.house import House

pytestmark = [pytest.mark.processes, pytest.mark.timeout(400)]

JOBS = 200


def bought_once(house: House, jobs: list[dict[str, object]]) -> None:
    assert set(house.purchases(jobs).values()) == {1}
    assert len(house.purchases(jobs)) == len(jobs)
    assert not any(job["possible_duplicate"] for job in jobs)


def within_the_cap(house: House) -> None:
    ledger = house.ledger()
    assert ledger["max_outstanding"] <= 24
    assert ledger["refused_429"] == 0


def test_all_are_found_by_their_callbacks(house: House) -> None:
    house.control(latency_s=2, latency_spread_s=1, max_in_flight=24)
    jobs = house.await_ended(house.post_many(JOBS, "with callbacks"))
    house.audit(jobs)
    bought_once(house, jobs)
    within_the_cap(house)
    assert {job["found_by"] for job in jobs} == {"webhook"}


def test_doubled_forged_and_early_callbacks_change_no_image(house: House) -> None:
    house.control(
        latency_s=2,
        latency_spread_s=1,
        max_in_flight=24,
        callback_duplicate=0.5,
        callback_forged=0.1,
        callback_early=0.1,
    )
    jobs = house.await_ended(house.post_many(JOBS, "bad callbacks"))
    house.audit(jobs)
    bought_once(house, jobs)


def test_answers_lost_after_acceptance_cost_nothing_while_callbacks_come(house: House) -> None:
    house.control(latency_s=2, latency_spread_s=1, max_in_flight=24, drop_answer=1)
    jobs = house.await_ended(house.post_many(50, "dropped answers"))
    house.audit(jobs)
    bought_once(house, jobs)
    assert len(house.ledger()["submissions"]) == 50


def test_all_are_found_by_polls_when_every_callback_is_lost(house: House) -> None:
    house.control(latency_s=2, latency_spread_s=1, max_in_flight=24, callback_loss=1)
    jobs = house.await_ended(house.post_many(JOBS, "without callbacks"))
    house.audit(jobs)
    bought_once(house, jobs)
    within_the_cap(house)
    assert {job["found_by"] for job in jobs} == {"poll"}
