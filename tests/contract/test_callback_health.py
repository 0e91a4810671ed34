"""Callbacks that stop are noticed, and polling tightens by itself; when they come again, it relaxes."""

import random

import pytest

from service.clock import SystemClock
from service.domain import events as e
from service.domain.job import FoundBy, Job
from service.domain.lifecycle import decide
from service.storage.connection import AsyncRedis
from service.storage.store import Store
from service.storage.terms import Limits
from workers.timing import Timing

pytestmark = pytest.mark.anyio

MINUTE_MS = 60_000


@pytest.fixture
def store(connection: AsyncRedis) -> Store:
    return Store(connection, Limits(max_in_flight=0))


async def found(store: Store, number: int, by: FoundBy) -> str:
    job = Job(id=f"job_{number:03}", caller="alice", model="flux-dev", request={})
    await store.create(job)
    ready = e.Ready(attempt=1, provider_id=f"task-{number}", url="https://x/y", found_by=by)
    for step, event in enumerate([e.Intended(attempt=1, delay_s=60.0), ready]):
        known = await store.get(job.id)
        assert known is not None
        change = decide(known, event)
        assert change is not None
        await store.apply(change, f"{job.id}{step:05}")
    return job.id


async def grow_old(connection: AsyncRedis, job_id: str, by_ms: int) -> None:
    """As if the poll had found it so much earlier: time that decides is Redis's own and cannot be turned."""
    await connection.zincrby("dr1:awaited", -by_ms, job_id)


async def test_a_callback_that_comes_after_the_poll_is_late_and_not_lost(store: Store) -> None:
    job_id = await found(store, 1, FoundBy.POLL)
    assert await store.hear(job_id) is not None
    assert await store.hear(job_id) is None, "counted once"
    told = await store.callbacks()
    assert (told.first, told.late, told.lost, told.lost_share) == (0, 1, 0, 0.0)


async def test_a_callback_that_is_a_minute_late_is_lost(store: Store, connection: AsyncRedis) -> None:
    job_id = await found(store, 1, FoundBy.POLL)
    assert await store.miss() == 0
    await grow_old(connection, job_id, MINUTE_MS)
    assert (await store.callbacks()).overdue == 1
    assert await store.miss() == 1
    told = await store.callbacks()
    assert (told.lost, told.awaited, told.lost_share) == (1, 0, 1.0)


async def test_nothing_is_awaited_where_nothing_was_asked_for(connection: AsyncRedis) -> None:
    store = Store(connection, Limits(max_in_flight=0, callbacks=False))
    await found(store, 1, FoundBy.POLL)
    assert (await store.callbacks()).awaited == 0


async def test_polling_tightens_when_callbacks_stop_and_relaxes_when_they_come_again(
    store: Store, connection: AsyncRedis
) -> None:
    async def first_poll_s() -> float:
        timing = Timing(store, SystemClock(), random.Random(1), callbacks=True, gap_most_s=60)
        return await timing.first_poll_s("flux-dev")

    leaning = await first_poll_s()
    for number in range(10):
        await grow_old(connection, await found(store, number, FoundBy.POLL), MINUTE_MS)
    await store.miss()
    assert (await store.callbacks()).lost_share == 1.0
    assert await first_poll_s() < leaning / 3
    for number in range(10, 60):
        await found(store, number, FoundBy.WEBHOOK)
    assert (await store.callbacks()).lost_share < 0.2
    assert await first_poll_s() > 0.8, "a little after nearly all images of these sixty"
