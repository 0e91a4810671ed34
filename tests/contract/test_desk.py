"""Where events meet records: what follows a write that too few replicas have confirmed."""

from collections.abc import Sequence

import pytest

from service.clock import SystemClock
from service.domain import events as e
from service.domain.job import Job
from service.domain.lifecycle import Change
from service.storage.connection import AsyncRedis
from service.storage.desk import Desk
from service.storage.store import Store
from service.storage.terms import Limits, Unconfirmed, Written

pytestmark = pytest.mark.anyio

JOB_ID = "job_001"
INTENDED = e.Intended(attempt=1, delay_s=180.0)
NOT_POSTED = e.Refused(attempt=1, burns=False)


class Hushed:
    async def ring(self, rings: Sequence[tuple[str, str]]) -> None:
        """Nobody listens here."""


class Lonely(Store):
    """No replica confirms. `keeps`: the write is on record all the same; `then`: what another does meanwhile."""

    keeps = True
    then: e.Event | None = None

    async def apply(self, change: Change, event_id: str, *, confirm: bool = False) -> Written:
        if not confirm:
            return await super().apply(change, event_id)
        if self.keeps:
            await super().apply(change, event_id)
        if self.then is not None:
            assert (await desk(Store(self._redis, self.limits)).tell(JOB_ID, self.then)).changed
        raise Unconfirmed("0 of 1 replicas confirmed the write")


def desk(store: Store) -> Desk:
    return Desk(store, Hushed(), SystemClock())


async def decided(store: Store) -> Job:
    """The job after its unconfirmed intent."""
    await store.create(Job(id=JOB_ID, caller="alice", model="flux-dev", request={"prompt": "a"}))
    job = await store.get(JOB_ID)
    assert job
    assert await desk(store).decide(job, INTENDED, unconfirmed=NOT_POSTED) is None
    after = await store.get(JOB_ID)
    assert after
    return after


@pytest.fixture
def store(connection: AsyncRedis) -> Lonely:
    return Lonely(connection, Limits())


async def test_what_follows_an_unconfirmed_write_is_on_record(store: Lonely) -> None:
    job = await decided(store)
    assert (job.status, job.attempt, job.open, job.reason) == ("queued", 1, (), "refused")


async def test_it_follows_also_where_the_caller_has_cancelled_meanwhile(store: Lonely) -> None:
    store.then = e.CancelAsked()
    job = await decided(store)
    assert (job.status, job.attempt, job.open) == ("cancelled", 1, ())


async def test_to_a_record_that_lost_the_write_nothing_happens(store: Lonely) -> None:
    store.keeps = False
    job = await decided(store)
    assert (job.status, job.attempt, job.reason) == ("queued", 0, "")


async def test_the_same_write_of_another_worker_is_left_alone(store: Lonely) -> None:
    """A primary took over without ours, and there another has the same intent, confirmed, and buys."""
    store.keeps, store.then = False, INTENDED
    job = await decided(store)
    assert (job.status, job.attempt, job.open) == ("submitting", 1, (1,))
