"""When to look: what was learnt of a model, how far callbacks are trusted, and how gaps grow."""

import random

import fakeredis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.domain import catalogue
from service.storage.connection import RedisError
from service.storage.store import Store
from service.storage.terms import LOST_SHARE_MOST, Callbacks, Limits
from workers.timing import CACHE_S, GAP_LEAST_S, SAMPLES_LEAST, UNKNOWN_SPARE_S, Timing

pytestmark = pytest.mark.anyio

MODEL = "flux-pro-1.1"
GAP_MOST_S = 60.0
LOST_MOST = round(100 * LOST_SHARE_MOST)
SLOW = [20.0] * 99 + [50.0]


class Lessons(Store):
    """What was measured; `asked` counts how often anyone wanted to know, `lost` is of a hundred callbacks."""

    def __init__(self, took_s: list[float], lost: int = 0) -> None:
        super().__init__(fakeredis.FakeAsyncRedis(), Limits())
        self.took_s, self.lost, self.asked, self.away = took_s, lost, 0, False

    async def durations(self, model: str) -> list[float]:
        self.asked += 1
        if self.away:
            raise RedisError
        return self.took_s

    async def callbacks(self) -> Callbacks:
        return Callbacks(first=100 - self.lost, lost=self.lost)


class Hand:
    """A clock that a test turns."""

    at_s = 0.0

    def now_ms(self) -> int:
        return round(self.at_s * 1000)

    def monotonic_s(self) -> float:
        return self.at_s


def timing(lessons: Lessons, *, callbacks: bool = True, clock: Hand | None = None, seed: int = 1) -> Timing:
    return Timing(lessons, clock or Hand(), random.Random(seed), callbacks=callbacks, gap_most_s=GAP_MOST_S)


def about(wait_s: float) -> tuple[float, float]:
    return wait_s * 0.8, wait_s * 1.2


async def first(lessons: Lessons, *, callbacks: bool = True) -> list[float]:
    """First polls of many jobs."""
    asked = timing(lessons, callbacks=callbacks)
    return [await asked.first_poll_s(MODEL) for _ in range(50)]


async def test_while_callbacks_come_the_first_poll_is_after_nearly_all_images() -> None:
    low, high = about(50 * 1.1 + 1)
    assert all(low <= wait_s <= high for wait_s in await first(Lessons(SLOW)))


@pytest.mark.parametrize(("callbacks", "lost"), [(False, 0), (True, LOST_MOST + 1), (True, 100)])
async def test_without_callbacks_the_first_poll_is_at_the_median(callbacks: bool, lost: int) -> None:
    low, high = about(20)
    assert all(low <= wait_s <= high for wait_s in await first(Lessons(SLOW, lost), callbacks=callbacks))


async def test_a_few_lost_callbacks_change_nothing() -> None:
    assert min(await first(Lessons(SLOW, LOST_MOST))) > 20 * 1.2


async def test_jobs_that_were_accepted_together_are_not_polled_together() -> None:
    assert len(set(await first(Lessons(SLOW)))) == 50


async def test_no_first_poll_is_later_than_the_longest_gap() -> None:
    assert max(await first(Lessons([500.0] * 20))) <= GAP_MOST_S * 1.2


async def test_until_enough_was_measured_the_catalogue_is_believed() -> None:
    untaught = await timing(Lessons([900.0] * (SAMPLES_LEAST - 1))).learnt(MODEL)
    assert (untaught.median_s, untaught.taught) == (catalogue.typical_s(MODEL), False)
    taught = await timing(Lessons([900.0] * SAMPLES_LEAST)).learnt(MODEL)
    assert (taught.median_s, taught.p99_s, taught.taught) == (900, 900, True)


async def test_the_order_of_measurements_does_not_matter() -> None:
    shuffled = random.Random(3).sample(SLOW, len(SLOW))
    assert await timing(Lessons(shuffled)).learnt(MODEL) == await timing(Lessons(SLOW)).learnt(MODEL)


@given(st.floats(0, 1e6), st.integers())
def test_gaps_grow_with_the_time_waited_up_to_the_longest(waited_s: float, seed: int) -> None:
    low, high = about(min(max(GAP_LEAST_S, waited_s * 0.3), GAP_MOST_S))
    assert low <= timing(Lessons([]), seed=seed).next_poll_s(waited_s) <= high


def test_a_job_of_any_length_is_polled_a_bounded_number_of_times() -> None:
    asked, waited_s, polls = timing(Lessons([])), 5.0, 0
    while waited_s < 900:
        waited_s += asked.next_poll_s(waited_s)
        polls += 1
    assert polls < 40


@pytest.mark.parametrize(
    ("took_s", "least_s", "wait_s"),
    [([], 180, 180), (SLOW, 180, 180), (SLOW, 10, 50 + UNKNOWN_SPARE_S), ([300.0] * 9, 180, 300 + UNKNOWN_SPARE_S)],
)
async def test_an_outcome_is_unknown_for_as_long_as_a_callback_could_come(
    took_s: list[float], least_s: float, wait_s: float
) -> None:
    assert await timing(Lessons(took_s)).unknown_wait_s(MODEL, least_s) == wait_s


async def test_what_was_learnt_is_asked_for_at_most_every_few_seconds() -> None:
    lessons, clock = Lessons(SLOW), Hand()
    asked = timing(lessons, clock=clock)
    for _ in range(10):
        await asked.learnt(MODEL)
    assert lessons.asked == 1
    clock.at_s += CACHE_S
    lessons.took_s = [1.0] * 10
    assert (await asked.learnt(MODEL)).median_s == 1


async def test_while_redis_is_away_a_first_poll_is_placed_by_what_was_known_before() -> None:
    lessons, clock = Lessons(SLOW), Hand()
    asked = timing(lessons, clock=clock, callbacks=False)
    lessons.away = True
    low, high = about(catalogue.typical_s(MODEL))
    assert low <= await asked.first_poll_s(MODEL) <= high, "nothing was read yet: the catalogue's"
    lessons.away = False
    await asked.learnt(MODEL)
    lessons.away, clock.at_s = True, 10 * CACHE_S
    low, high = about(20)
    assert low <= await asked.first_poll_s(MODEL) <= high, "what was read last"


async def test_how_long_an_outcome_is_unknown_is_not_guessed_while_redis_is_away() -> None:
    lessons = Lessons(SLOW)
    lessons.away = True
    with pytest.raises(RedisError):
        await timing(lessons).unknown_wait_s(MODEL, 10)
