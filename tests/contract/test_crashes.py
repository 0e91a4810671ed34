"""What comes of a job whose process really crashes each time that it runs alone, when that was its last try."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from service.clock import SystemClock
from service.domain import events as e
from service.domain.job import Image, Job, Queue
from service.storage import record
from service.storage.bell import Bells
from service.storage.connection import AsyncRedis, Redis, text
from service.storage.desk import NEWER_AGAIN_S, Desk
from service.storage.store import Store
from service.storage.terms import Limits, Suspicion
from tests.records import happens
from tests.steps import comes
from workers.suspects import Suspects, Terms

pytestmark = pytest.mark.anyio

HOUR_S = 3600.0
RETRY_S = (60.0, 180.0)
LAST = len(RETRY_S) + 1
JOB = "job_001"
IMAGE = Image("bucket", "images/x.png", "0" * 64, 9, 1, 1, "image/png", None)
READY = (e.Intended(attempt=1, delay_s=HOUR_S), e.Ready(attempt=1, provider_id="task", url="https://x/y"))
CANCELLED = (e.CancelAsked(),)
SEALED = (*READY, e.Sealed(image=IMAGE))


@pytest.fixture
def store(connection: AsyncRedis) -> Store:
    return Store(connection, Limits(max_in_flight=0), uid="keeper")


@pytest.fixture
async def suspects(
    store: Store, connection: AsyncRedis, sync: Redis, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Suspects]:
    monkeypatch.setenv("REDIS_URL", redis_url)
    desk = Desk(store, Bells(connection, sync), SystemClock())
    yield Suspects(desk, Terms(lease_s=HOUR_S, interval_s=0.01, retry_s=RETRY_S, module="tests.contract.crash"))
    await desk.drain()


async def crashed(store: Store, connection: AsyncRedis, times: int, *events: e.Event) -> None:
    """A job to which this has happened, and that has crashed so often when it ran alone; its time has come again."""
    await store.create(Job(id=JOB, caller="alice", model="flux-dev", request={"prompt": "a"}))
    await happens(store, JOB, *events)
    await its_time_comes(connection)
    dead = Store(connection, Limits(max_in_flight=0), uid="dead")
    assert (await dead.claim(Queue.COLLECT, JOB, HOUR_S))[0]
    assert await store.quarantine.reap(0) == ("dead",)
    await connection.hset("dr1:crashes", JOB, str(times))


async def its_time_comes(connection: AsyncRedis) -> None:
    await connection.zadd("dr1:due", {f"job:{JOB}": 0}, xx=True)
    if group := await connection.hget("dr1:suspects", JOB):
        await connection.zadd("dr1:groups", {text(group): 0}, xx=True)


async def gap_s(store: Store, connection: AsyncRedis) -> float:
    """Till it runs again, which is the same for the job and for its group."""
    group, due_at = await connection.hget("dr1:suspects", JOB), await store.due_at(JOB)
    assert group
    assert await connection.zscore("dr1:groups", text(group)) == due_at
    assert due_at
    return round((due_at - await store.now_ms()) / 1000, -1)


async def test_the_last_crash_ends_a_job_as_poisoned_and_its_end_is_anybodys_to_write_down(
    store: Store, suspects: Suspects, connection: AsyncRedis
) -> None:
    await crashed(store, connection, LAST - 1, *READY)
    assert await suspects.round()
    job = await store.get(JOB)
    assert job
    assert job.error
    assert job.error.code == "poisoned"
    assert await store.suspicion(JOB) is None
    assert (await store.claim(Queue.COLLECT, JOB, HOUR_S))[0]


@pytest.mark.parametrize("events", [CANCELLED, SEALED], ids=["cancelled", "sealed"])
async def test_a_job_that_had_ended_and_still_crashes_harms_no_other_and_is_told_of(
    store: Store,
    suspects: Suspects,
    connection: AsyncRedis,
    caplog: pytest.LogCaptureFixture,
    events: tuple[e.Event, ...],
) -> None:
    """Its end stands, so nothing can be decided any more; but what is left to do for it kills its process."""
    await crashed(store, connection, LAST - 1, *events)
    before = await store.get(JOB)
    assert await suspects.round()
    assert await store.get(JOB) == before, "its record stays as it is"
    assert await store.suspicion(JOB) == LAST
    assert await gap_s(store, connection) == 360
    await connection.zadd("dr1:due", {f"job:{JOB}": 0})
    assert await store.ripen({"collect": 9}, again_s=0) == ()
    assert (await store.claim(Queue.COLLECT, JOB, HOUR_S))[0] is None, (
        "a worker with others in its hands is not given it"
    )
    assert "has ended, and what is left to do for it crashes" in caplog.text
    assert (await store.figures()).suspects == Suspicion(jobs=1, groups=1, crashes_most=LAST)


async def test_a_job_that_crashes_and_whose_record_is_damaged_ends_as_such(
    store: Store, suspects: Suspects, connection: AsyncRedis
) -> None:
    await crashed(store, connection, LAST - 1, *READY)
    await connection.hset(f"dr1:job:{JOB}", "body", "{")
    assert await suspects.round()
    job = await store.get(JOB)
    assert job
    assert job.error
    assert job.error.code == "record_corrupt"
    assert await store.suspicion(JOB) is None


async def test_a_record_of_a_newer_release_that_crashes_stays_apart_for_who_can_read_it(
    store: Store, suspects: Suspects, connection: AsyncRedis
) -> None:
    await crashed(store, connection, LAST - 1, *READY)
    newer = record.SCHEMA + 1
    await connection.hset(f"dr1:job:{JOB}", mapping={"schema": newer, "sum": f"{newer}:of what we know not"})
    was = await connection.hgetall(f"dr1:job:{JOB}")
    assert await suspects.round()
    assert await connection.hgetall(f"dr1:job:{JOB}") == was
    assert await gap_s(store, connection) == NEWER_AGAIN_S


@pytest.mark.parametrize(("times", "wait_s"), [(4, 720), (6, 2880), (7, 3600), (2000, 3600)])
async def test_the_more_often_it_crashes_the_longer_it_waits_up_to_an_hour(
    store: Store, suspects: Suspects, connection: AsyncRedis, times: int, wait_s: int
) -> None:
    await crashed(store, connection, times - 1, *CANCELLED)
    assert await suspects.round()
    assert await store.suspicion(JOB) == times
    assert await gap_s(store, connection) == wait_s


async def test_a_keeper_that_is_told_to_stop_accuses_nobody(
    store: Store, suspects: Suspects, connection: AsyncRedis, sync: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its child is in the middle of a step then, and dies with it; that is no crash."""
    monkeypatch.setenv("CRASH_NOT", "1")
    await crashed(store, connection, 0, *READY)
    running = asyncio.create_task(suspects.round())
    await comes(lambda: bool(sync.keys("dr1:inflight:g*")))
    suspects.stop()
    await running
    assert await store.quarantine.bereave(RETRY_S, most=1) is None
    assert await connection.keys("dr1:inflight:*") == []
    assert await store.quarantine.isolate(HOUR_S), "for the next keeper, at once"


async def test_a_job_that_is_deleted_meanwhile_waits_for_nothing(store: Store, connection: AsyncRedis) -> None:
    await crashed(store, connection, LAST, *CANCELLED)
    job = await store.get(JOB)
    assert job
    await store.bury(job, busy_s=0)
    await store.quarantine.adjourn(JOB, HOUR_S)
    assert await store.due_at(JOB) is None
