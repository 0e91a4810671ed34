"""Records made again: what is on record already is left alone, and what is linked stays linked."""

from dataclasses import replace

import pytest

from service.clock import SystemClock
from service.domain import events as e
from service.domain.batch import Batch, BatchStatus
from service.domain.job import Image, Job, Status
from service.domain.lifecycle import decide
from service.storage.batches import Line
from service.storage.connection import AsyncRedis
from service.storage.rebuilding import Made
from service.storage.store import Store
from service.storage.terms import Idempotency, Limits, Outcome
from tests.records import happens
from tests.sim.memory import Memory, MemoryStore

pytestmark = pytest.mark.anyio

LIMITS = Limits()
NOW = SystemClock().now_ms()
IMAGE = Image("bucket", "images/x.png", "0" * 64, 9, 1, 1, "image/png", None)
LONG_AGO = NOW - (LIMITS.retention_s + 60) * 1000
JOB = Job(
    id="job_001",
    caller="alice",
    model="flux-dev",
    request={"prompt": "a"},
    status=Status.SUCCEEDED,
    sidecar=True,
    finished_at=NOW,
    idempotency="key body",
    tasks={"1": "task-1"},
)
BATCH = Batch(
    id="batch_001",
    caller="alice",
    status=BatchStatus.COMPLETED,
    total=2,
    counts={status: 2 if status is Status.FAILED else 0 for status in Status},
    finished_at=NOW,
    key="batch key",
    hash="hash",
    marked=True,
)


@pytest.fixture(params=["valkey", "memory"])
def store(request: pytest.FixtureRequest, connection: AsyncRedis) -> Store:
    if request.param == "memory":
        return MemoryStore(Memory(SystemClock().now_ms), LIMITS, actor="test")
    return Store(connection, LIMITS, actor="test")


async def test_a_job_is_made_again_once_with_its_key_and_its_task_and_nothing_of_it_is_due(store: Store) -> None:
    assert await store.rebuilding.job(JOB, 0) is Made.REBUILT
    assert await store.rebuilding.job(JOB, 0) is Made.KNOWN
    made = await store.get(JOB.id)
    assert made is not None
    assert (made.status, made.tasks, made.version) == (Status.SUCCEEDED, {"1": "task-1"}, 1)
    assert [job.id for job in await store.page(caller="alice", status=Status.SUCCEEDED)] == [JOB.id]
    again = Job(id="job_002", caller="alice", model="flux-dev", request={"prompt": "a"})
    written = await store.create(again, idempotency=Idempotency("key", "body"))
    assert (written.outcome, written.job_id) == (Outcome.REPLAYED, JOB.id)
    assert (await store.figures()).due == 0


@pytest.mark.parametrize(
    "course",
    [
        (),
        (e.Intended(attempt=1), e.TaskAccepted(attempt=1, provider_id="task-1")),
        (e.Intended(attempt=1), e.Ready(attempt=1, provider_id="task-1", url="https://x/y", expires_at=NOW)),
    ],
    ids=["queued", "generating", "collecting"],
)
async def test_a_job_that_has_ended_since_is_not_bought_again_in_a_redis_that_came_back_older(
    store: Store, course: tuple[e.Event, ...]
) -> None:
    await store.create(replace(JOB, status=Status.QUEUED, sidecar=False, finished_at=None, tasks={}, idempotency=None))
    await happens(store, JOB.id, *course)
    stale = await store.get(JOB.id)
    assert stale
    assert await store.rebuilding.job(JOB, 0) is Made.OVERRULED
    assert await store.rebuilding.job(JOB, 0) is Made.KNOWN
    made = await store.get(JOB.id)
    assert made
    assert (made.status, made.tasks, made.open) == (Status.SUCCEEDED, {"1": "task-1"}, ())
    change = decide(stale, e.CancelAsked())
    assert change
    assert (await store.apply(change, "a late step")).outcome is Outcome.STALE
    assert await store.ripen({"submit": 9, "collect": 9, "close": 9}, again_s=0) == ()
    figures = await store.figures()
    assert (figures.slots, figures.due, figures.counts[Status.SUCCEEDED], sum(figures.counts.values())) == (0, 0, 1, 1)


async def test_a_job_whose_image_is_on_record_is_about_to_end_as_its_sidecar_says(store: Store) -> None:
    await store.create(replace(JOB, status=Status.QUEUED, sidecar=False, finished_at=None, tasks={}, idempotency=None))
    ready = e.Ready(attempt=1, provider_id="task-1", url="https://x/y", expires_at=NOW)
    await happens(store, JOB.id, e.Intended(attempt=1), ready, e.Sealed(image=IMAGE))
    assert await store.rebuilding.job(JOB, 0) is Made.KNOWN
    assert (await happens(store, JOB.id, e.SidecarWritten())).status is Status.SUCCEEDED


async def test_a_key_that_is_older_than_a_day_is_not_known_again(store: Store) -> None:
    await store.rebuilding.job(JOB, JOB.created_at + 24 * 3600 * 1000)
    again = Job(id="job_002", caller="alice", model="flux-dev", request={"prompt": "a"})
    assert (await store.create(again, idempotency=Idempotency("key", "body"))).outcome is Outcome.CREATED


async def test_a_deleted_job_stays_deleted(store: Store) -> None:
    await store.rebuilding.job(JOB, 0)
    made = await store.get(JOB.id)
    assert made is not None
    await store.bury(made, busy_s=0)
    assert await store.rebuilding.job(JOB, 0) is Made.KNOWN
    assert await store.get(JOB.id) is None


async def test_who_was_retried_by_one_is_not_retried_by_another(store: Store) -> None:
    await store.rebuilding.link(JOB.id, "job_002")
    assert await store.get(JOB.id) is None, "of whom nothing is on record, nothing is made"
    await store.rebuilding.job(JOB, 0)
    await store.rebuilding.link(JOB.id, "job_002")
    await store.rebuilding.link(JOB.id, "job_003")
    made = await store.get(JOB.id)
    assert made is not None
    assert made.retried_by == "job_002"


async def test_a_job_made_again_counts_for_the_batch_whose_line_it_was(store: Store) -> None:
    """Redis came back older: the batch runs there, and its jobs have ended since."""
    batch, jobs = replace(BATCH, total=2), [replace(JOB, id=f"job_00{n}", batch_id=BATCH.id) for n in range(2)]
    await store.batches.open(batch.id, "alice", None)
    staged = [Line(replace(job, status=Status.QUEUED, tasks={}, sidecar=False)) for job in jobs]
    assert await store.batches.stage(batch.id, "alice", None, staged)
    await store.batches.enroll(replace(batch, key=None))
    await store.rebuilding.job(jobs[0], 0)
    await store.batches.rest(batch.id)
    assert not await store.batches.attend(batch.id, 1), "one of its lines has not ended"
    await store.rebuilding.job(jobs[1], 0)
    assert await store.batches.attend(batch.id, 1)
    assert (await store.batches.unfold(batch.id, 2)) == (0, ())
    assert await store.batches.count_up(batch.id)
    made = await store.batches.get(batch.id)
    assert made is not None
    assert (made.total, made.closed, made.counts[Status.SUCCEEDED]) == (2, 2, 2)


async def test_what_ended_longer_ago_than_the_retention_stays_in_the_bucket_alone(store: Store) -> None:
    assert await store.rebuilding.job(replace(JOB, finished_at=LONG_AGO), NOW) is Made.AGED
    assert await store.rebuilding.batch(replace(BATCH, finished_at=LONG_AGO), NOW) is Made.AGED
    assert await store.get(JOB.id) is None
    assert await store.batches.get(BATCH.id) is None
    assert await store.page(caller=None) == []


async def test_a_job_of_whatever_age_is_made_again_for_a_batch_that_still_runs(store: Store) -> None:
    """Redis came back from an old backup: else the line would be bought a second time."""
    await store.batches.open(BATCH.id, "alice", None)
    job = replace(JOB, batch_id=BATCH.id, finished_at=LONG_AGO)
    assert await store.batches.stage(BATCH.id, "alice", None, [Line(replace(job, status=Status.QUEUED, tasks={}))])
    await store.batches.enroll(replace(BATCH, total=1, key=None))
    assert await store.rebuilding.job(job, NOW) is Made.REBUILT
    await store.expire()
    assert await store.batches.unfold(BATCH.id, 1) == (0, ())
    assert await store.batches.count_up(BATCH.id)


async def test_a_line_that_is_passed_over_still_counts(store: Store) -> None:
    await store.batches.open(BATCH.id, "alice", None)
    assert await store.batches.stage_retries(BATCH.id, "alice", ["job_a", "job_b"])
    await store.batches.enroll(replace(BATCH, key=None))
    for _ in range(2):
        await store.batches.pass_over(BATCH.id, ["job_a"])
    made = await store.batches.get(BATCH.id)
    assert made is not None
    assert (made.total, made.rest, await store.batches.peek(BATCH.id, 2)) == (2, 1, (1, ["job_b"]))


async def test_a_batch_is_made_again_once_with_its_key_and_its_retry(store: Store) -> None:
    await store.rebuilding.link_batch(BATCH.id, "batch_002")
    assert await store.batches.get(BATCH.id) is None, "of which nothing is on record, nothing is made"
    assert await store.rebuilding.batch(BATCH, 0) is Made.REBUILT
    assert await store.rebuilding.batch(BATCH, 0) is Made.KNOWN
    await store.rebuilding.link_batch(BATCH.id, "batch_002")
    await store.rebuilding.link_batch(BATCH.id, "batch_003")
    made = await store.batches.get(BATCH.id)
    assert made is not None
    assert (made.status, made.counts, made.retried_by) == (BATCH.status, BATCH.counts, "batch_002")
    assert (await store.batches.open("batch_004", "alice", BATCH.key)).known_id == BATCH.id
