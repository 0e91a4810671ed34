"""When to try again: within bounds, never at once, and never all together."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.retry import NOTIFY_LATER, PULL, PULLS_MOST, SPOOLED, STORE, SUBMISSIONS_MOST, SUBMIT, Backoff

URL_LIFE_S = 600

any_backoff = st.builds(
    Backoff, base_s=st.floats(0.01, 100), cap_s=st.floats(1, 1000), floor_s=st.floats(0, 1, exclude_min=True)
)


@given(any_backoff, st.integers(0, 10**9), st.integers())
def test_a_wait_lies_between_its_floor_and_its_cap(backoff: Backoff, tries: int, seed: int) -> None:
    wait_s = backoff.wait_s(tries, random.Random(seed))
    assert backoff.floor_s <= wait_s <= max(backoff.floor_s, backoff.cap_s)


@given(any_backoff, st.integers(0, 30), st.integers())
def test_no_wait_is_longer_than_the_base_doubled_once_for_each_try(backoff: Backoff, tries: int, seed: int) -> None:
    assert backoff.wait_s(tries, random.Random(seed)) <= max(backoff.floor_s, backoff.base_s * 2**tries)


@pytest.mark.parametrize("tries", [0, 1, 5])
@pytest.mark.parametrize("backoff", [SUBMIT, PULL, STORE, SPOOLED, NOTIFY_LATER], ids=str)
def test_jobs_that_failed_together_come_back_spread_over_the_whole_wait(backoff: Backoff, tries: int) -> None:
    dice = random.Random(1)
    waits_s = [backoff.wait_s(tries, dice) for _ in range(4000)]
    span_s = min(backoff.cap_s, backoff.base_s * 2**tries) - backoff.floor_s
    parts = Counter(int(20 * (wait_s - backoff.floor_s) / span_s) for wait_s in waits_s)
    assert len(parts) == 20
    assert max(parts.values()) <= 2 * 4000 / 20, "also of those at its floor"


def test_pulls_are_over_long_before_their_url_dies() -> None:
    assert PULLS_MOST * PULL.cap_s < URL_LIFE_S / 10


def test_a_store_that_is_back_is_noticed_soon() -> None:
    assert STORE.cap_s <= 15


def test_a_job_is_refused_a_few_times_before_it_is_given_up() -> None:
    assert SUBMISSIONS_MOST == 4
