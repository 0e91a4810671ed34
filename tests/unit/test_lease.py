"""A lease: how long it surely holds, and how it is kept."""

import asyncio
from collections.abc import Callable

import fakeredis
import pytest

from service.domain.job import Job
from service.storage.connection import RedisError
from service.storage.store import Store
from service.storage.terms import Claim, Limits
from workers.lease import Lease, renewed

pytestmark = pytest.mark.anyio

LEASE_S = 12.0
WITHIN_S = 20.0
BRIEF_S = 0.003  # of the leases that are renewed in these tests: a renewal each millisecond
CLAIM = Claim(Job("job_1", "alice", "flux-dev", {}), now=1_000_000, lease_end=1_012_000, gate="")


class Hand:
    """A clock that a test turns. The wall clock is wrong by a year, and must not matter."""

    at_s = 500.0

    def now_ms(self) -> int:
        return 31_536_000_000

    def monotonic_s(self) -> float:
        return self.at_s


class Registry(Store):
    """Answers renewals as `answer` says, and sets `asked` after the third."""

    def __init__(self, answer: Callable[[int], int | None]) -> None:
        super().__init__(fakeredis.FakeAsyncRedis(), Limits())
        self.answer, self.ends, self.asked = answer, list[int](), asyncio.Event()

    async def renew(self, job_id: str, lease_end: int, lease_s: float, *, alone: str | None = None) -> int | None:
        self.ends.append(lease_end)
        if len(self.ends) >= 3:
            self.asked.set()
        return self.answer(lease_end)


def away(_: int) -> int | None:
    raise RedisError("away")


def test_now_is_the_time_of_redis_carried_on_by_our_own_clock() -> None:
    clock = Hand()
    lease = Lease(CLAIM, clock, LEASE_S)
    assert lease.now() == 1_000_000
    clock.at_s += 2.5
    assert lease.now() == 1_002_500


@pytest.mark.parametrize(("slept_s", "holds"), [(0, True), (11.9, True), (12.0, False), (86_400, False)])
def test_it_holds_only_as_long_as_it_was_given_for(slept_s: float, holds: bool) -> None:
    clock = Hand()
    lease = Lease(CLAIM, clock, LEASE_S)
    clock.at_s += slept_s
    assert lease.holds() is holds


async def test_it_is_renewed_for_as_long_as_the_step_runs_and_no_longer() -> None:
    registry, clock, others = Registry(lambda end: end + 1), Hand(), asyncio.all_tasks()
    async with renewed(Lease(CLAIM, clock, BRIEF_S), registry) as lease:
        await asyncio.wait_for(registry.asked.wait(), WITHIN_S)
        assert lease.holds()
    asked = list(registry.ends)
    assert asked == list(range(CLAIM.lease_end, CLAIM.lease_end + len(asked))), "each names the end it was told last"
    assert asyncio.all_tasks() == others, "nobody is left to renew it"


async def test_a_renewal_counts_from_when_it_was_asked_for() -> None:
    clock = Hand()

    def slow(end: int) -> int:
        clock.at_s += LEASE_S  # the answer took as long as the lease
        return end

    registry = Registry(slow)
    async with renewed(Lease(CLAIM, clock, BRIEF_S), registry) as lease:
        await asyncio.wait_for(registry.asked.wait(), WITHIN_S)
        assert not lease.holds()


async def test_one_that_was_lost_is_not_asked_for_again() -> None:
    registry, clock = Registry(lambda _: None), Hand()
    lease = Lease(CLAIM, clock, BRIEF_S)
    await lease.renew_while_running(registry)
    assert (lease.lost, lease.holds(), len(registry.ends)) == (True, False, 1)


async def test_while_redis_is_away_it_is_asked_for_on_and_runs_out() -> None:
    registry, clock = Registry(away), Hand()
    async with renewed(Lease(CLAIM, clock, BRIEF_S), registry) as lease:
        await asyncio.wait_for(registry.asked.wait(), WITHIN_S)
        assert lease.holds()
        clock.at_s += 2 * BRIEF_S
        assert not lease.holds()
        assert not lease.lost, "nobody has said so"


async def test_what_the_step_raises_comes_through() -> None:
    with pytest.raises(LookupError):
        async with renewed(Lease(CLAIM, Hand(), BRIEF_S), Registry(away)):
            raise LookupError
