"""The one write that moves a job: event ids and due times, which random histories do not find missing each time."""

from dataclasses import replace

import pytest

from service.clock import SystemClock
from service.domain import events as e
from service.domain.job import Job, Queue, Status
from service.domain.lifecycle import Change, decide
from service.storage.connection import AsyncRedis
from service.storage.store import Store
from service.storage.terms import Limits, Outcome
from tests.sim.memory import Memory, MemoryStore

pytestmark = pytest.mark.anyio

HOUR_S = 3600.0
LIMITS = Limits(max_in_flight=2)
INTENDED = e.Intended(attempt=1, delay_s=HOUR_S)


@pytest.fixture(params=["valkey", "memory"])
def store(request: pytest.FixtureRequest, connection: AsyncRedis) -> Store:
    if request.param == "memory":
        return MemoryStore(Memory(SystemClock().now_ms), LIMITS, actor="test")
    return Store(connection, LIMITS, actor="test")


@pytest.fixture
async def job(store: Store) -> Job:
    await store.create(Job(id="job_001", caller="alice", model="flux-dev", request={"prompt": "a"}))
    return await now(store)


async def now(store: Store) -> Job:
    job = await store.get("job_001")
    assert job is not None
    return job


def change(job: Job, event: e.Event) -> Change:
    decided = decide(job, event)
    assert decided is not None
    return decided


async def test_a_write_that_is_sent_twice_happens_once_and_is_not_called_stale(store: Store, job: Job) -> None:
    intended = change(job, INTENDED)
    assert (await store.apply(intended, "event")).outcome is Outcome.APPLIED
    after = await now(store)
    assert (await store.apply(intended, "event")).outcome is Outcome.ALREADY
    assert await now(store) == after


async def test_what_a_write_leaves_to_do_is_due_when_it_says(store: Store, job: Job) -> None:
    await store.apply(change(job, INTENDED), "intended")
    assert await store.ripen({"submit": 9, "collect": 9}, again_s=0) == ()
    accepted = e.TaskAccepted(attempt=1, provider_id="task-1", delay_s=0.0)
    await store.apply(change(await now(store), accepted), "accepted")
    [bell] = await store.ripen({"submit": 9, "collect": 9}, again_s=0)
    assert (bell.queue, bell.id) == ("collect", job.id)


async def test_a_decision_on_another_history_of_the_job_is_stale_though_it_counts_the_same_version(
    store: Store, job: Job
) -> None:
    """As after a failover to a replica that was behind: another write has made the same version of it."""
    elsewhere = replace(job, version=job.version + 1, status=Status.SUBMITTING, attempt=1, digest="1:of that record")
    await store.apply(change(job, e.CancelAsked()), "here")
    here = await now(store)
    assert here.version == elsewhere.version
    refused = await store.apply(change(elsewhere, e.TaskAccepted(attempt=1, provider_id="task-1")), "there")
    assert refused.outcome is Outcome.STALE
    assert await store.bury(replace(here, digest="1:of that record"), busy_s=0) is Outcome.STALE
    again = Job(id="job_002", caller="alice", model="flux-dev", request={}, retry_of=here.id)
    assert (await store.create(again, takes_over=replace(here, digest="1:of that record"))).outcome is Outcome.STALE
    assert await now(store) == here
    assert await store.bury(here, busy_s=0) is Outcome.BURIED


async def test_a_bell_that_goes_to_the_wrong_machine_is_rung_again_at_once(store: Store, job: Job) -> None:
    """The image lies in the spool of another, which lives: not its next bell in a while, but the sweep's next round."""
    ready = e.Ready(attempt=1, provider_id="task-1", url="https://x/y", expires_at=9 * 10**12)
    for number, event in enumerate((INTENDED, ready, e.Spooled(spool="there", delay_s=0.0))):
        await store.apply(change(await now(store), event), f"event-{number}")
    store.spool = "there"
    await store.tend()
    store.spool = "here"
    room = {"collect": 9}
    [bell] = await store.ripen(room, again_s=HOUR_S)
    assert await store.ripen(room, again_s=HOUR_S) == ()
    assert (await store.claim(Queue.COLLECT, job.id, HOUR_S))[0] is None
    assert await store.ripen(room, again_s=HOUR_S) == (bell,)
    store.spool = "there"
    assert (await store.claim(Queue.COLLECT, job.id, HOUR_S))[0]
