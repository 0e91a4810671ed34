"""Batches on record: what each write promises, of the real store and of the simulation's alike."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from service.clock import SystemClock
from service.domain import events as e
from service.domain import layout
from service.domain.batch import Batch, BatchStatus, view
from service.domain.job import Job, Status
from service.domain.lifecycle import decide
from service.storage.batches import Began, Enrolled, Line
from service.storage.connection import AsyncRedis
from service.storage.store import Store
from service.storage.terms import Idempotency, Limits, Outcome
from tests.sim.memory import Memory, MemoryStore

pytestmark = pytest.mark.anyio

LIMITS = Limits(max_in_flight=2, caps={"flux-kontext-max": 1})
ID, OTHER = (layout.new_id("batch", 1_000_000_000_000 + n, bytes(10)) for n in range(2))
Make = Callable[..., Store]


@pytest.fixture(params=["valkey", "memory"])
def make(request: pytest.FixtureRequest, connection: AsyncRedis) -> Make:
    memory = Memory(SystemClock().now_ms)

    def made(limits: Limits) -> Store:
        if request.param == "memory":
            return MemoryStore(memory, limits, actor="test")
        return Store(connection, limits, actor="test")

    return made


@pytest.fixture
def store(make: Make) -> Store:
    return make(LIMITS)


def line(number: int, batch: str = ID, **more: object) -> Line:
    job_id = layout.new_id("job", 1_000_000_000_000, number.to_bytes(3) + batch[-7:].encode())
    job = Job(id=job_id, caller="alice", model="flux-dev", request={"prompt": str(number)}, custom_id=f"c{number}")
    return Line(replace(job, **more))  # type: ignore[arg-type]


def lines(count: int, batch: str = ID) -> list[Line]:
    return [line(number, batch) for number in range(count)]


async def enroll(store: Store, staged: Sequence[Line], batch: str = ID, key: str | None = None) -> tuple[Enrolled, str]:
    assert (await store.batches.open(batch, "alice", key)).began is Began.OPENED
    assert await store.batches.stage(batch, "alice", key, staged)
    whole = Batch(batch, "alice", BatchStatus.RUNNING, total=len(staged), metadata={"a": 1}, hash="h", key=key)
    return await store.batches.enroll(whole)


async def seen(store: Store, batch: str = ID) -> Batch:
    found = await store.batches.get(batch)
    assert found is not None
    return found


async def happens(store: Store, job_id: str, *events: e.Event) -> None:
    for number, event in enumerate(events):
        job = await store.get(job_id)
        assert job is not None
        change = decide(job, event)
        assert change is not None, event
        assert (await store.apply(change, f"{job_id}{job.version}{number}")).outcome is Outcome.APPLIED


async def ids(store: Store) -> list[str]:
    return sorted(job.id for job in await store.page(caller=None, batch_id=ID, limit=100))


async def test_before_the_seal_there_is_no_job_and_no_batch_in_any_list(store: Store) -> None:
    await store.batches.open(ID, "alice", None)
    assert await store.batches.stage(ID, "alice", None, lines(3))
    assert (await seen(store)).status is BatchStatus.STAGING
    assert await ids(store) == []
    assert (await store.batches.unfold(ID, 10))[0] == 0
    assert await ids(store) == []


async def test_what_is_being_cleared_away_is_not_sealed_by_a_caller_that_was_only_slow(store: Store) -> None:
    await store.batches.open(ID, "alice", None)
    assert await store.batches.stage(ID, "alice", None, lines(2))
    await store.plan("batch", ID, 0)
    assert await store.batches.attend(ID, 12.0)
    assert not await store.batches.stage(ID, "alice", None, [])
    whole = Batch(ID, "alice", BatchStatus.RUNNING, total=2, hash="h")
    assert (await store.batches.enroll(whole))[0] is Enrolled.GONE
    await store.batches.discard(ID)
    assert await store.batches.get(ID) is None


async def test_a_key_under_which_a_batch_is_uploaded_is_no_jobs(store: Store) -> None:
    await store.batches.open(ID, "alice", "key")
    job = line(0, OTHER).job
    assert (await store.create(job, idempotency=Idempotency("key", "body"))).outcome is Outcome.BUSY
    assert (await store.create(job, idempotency=Idempotency("another", "body"))).outcome is Outcome.CREATED
    await store.batches.stage(ID, "alice", "key", lines(1))
    whole = Batch(ID, "alice", BatchStatus.RUNNING, total=1, hash="h", key="key")
    assert (await store.batches.enroll(whole))[0] is Enrolled.ENROLLED


async def test_a_batch_that_has_left_redis_is_not_retried(store: Store) -> None:
    await store.batches.open(OTHER, "alice", None)
    await store.batches.stage_retries(OTHER, "alice", [line(0).job.id])
    whole = Batch(OTHER, "alice", BatchStatus.RUNNING, total=1, hash="h", retry_of=ID)
    assert (await store.batches.enroll(whole))[0] is Enrolled.GONE
    assert await store.batches.get(ID) is None


async def test_a_sealed_batch_unfolds_into_its_lines_in_their_order(store: Store) -> None:
    staged = lines(5)
    assert await enroll(store, staged) == (Enrolled.ENROLLED, ID)
    assert (await seen(store)).counts[Status.QUEUED] == 5
    left, bells = await store.batches.unfold(ID, 3)
    assert (left, len(bells)) == (2, 2)
    await store.batches.unfold(ID, 3)
    assert await ids(store) == [each.job.id for each in staged]
    batch = await seen(store)
    assert (batch.rest, batch.counts[Status.QUEUED], batch.total, view(batch)["progress"]) == (0, 5, 5, 0)
    job = await store.get(staged[4].job.id)
    assert job is not None
    assert (job.batch_id, job.custom_id, job.created_at) == (ID, "c4", batch.created_at)


async def test_a_deadline_counts_from_the_seal(store: Store) -> None:
    await enroll(store, [replace(line(0), deadline_s=60.0)])
    await store.batches.unfold(ID, 1)
    job = await store.get(line(0).job.id)
    assert job is not None
    assert job.deadline_at == job.created_at + 60_000


async def test_a_seal_that_lacks_lines_makes_nothing(store: Store) -> None:
    await store.batches.open(ID, "alice", None)
    await store.batches.stage(ID, "alice", None, lines(2))
    whole = Batch(ID, "alice", BatchStatus.RUNNING, total=3, hash="h")
    assert (await store.batches.enroll(whole))[0] is Enrolled.GONE


async def test_a_seal_sent_twice_makes_one_batch(store: Store) -> None:
    await enroll(store, lines(2))
    again = Batch(ID, "alice", BatchStatus.RUNNING, total=2, hash="h")
    assert await store.batches.enroll(again) == (Enrolled.ALREADY, ID)
    await store.batches.unfold(ID, 10)
    assert len(await ids(store)) == 2


async def test_a_key_belongs_to_one_upload_at_a_time_and_then_to_its_batch(store: Store) -> None:
    await store.batches.open(ID, "alice", "key")
    busy = await store.batches.open(OTHER, "alice", "key")
    assert (busy.began, 0 < busy.busy_s <= 15) == (Began.BUSY, True)
    assert (await store.batches.open(OTHER, "bob", "key")).began is Began.OPENED
    await store.batches.stage(ID, "alice", "key", lines(1))
    whole = Batch(ID, "alice", BatchStatus.RUNNING, total=1, hash="h", key="key")
    await store.batches.enroll(whole)
    known = await store.batches.open(OTHER, "alice", "key")
    assert (known.began, known.known_id, known.hash) == (Began.KNOWN, ID, "h")
    job = line(9).job
    assert (await store.create(job, idempotency=Idempotency("key", "x"))).outcome is Outcome.CONFLICT


async def test_a_discarded_upload_leaves_nothing_and_frees_its_key(store: Store) -> None:
    await store.batches.open(ID, "alice", "key")
    await store.batches.stage(ID, "alice", "key", lines(2))
    await store.batches.discard(ID)
    assert await store.batches.get(ID) is None
    assert (await store.batches.open(OTHER, "alice", "key")).began is Began.OPENED
    assert not await store.batches.stage(ID, "alice", "key", lines(1))
    assert (await store.figures()).due == 1


async def test_a_discarded_upload_with_inputs_frees_its_key_and_is_due_until_all_are_cleared(store: Store) -> None:
    batches, staged = store.batches, [replace(each, staged=True) for each in lines(3)]
    first, second, third = (each.job.id for each in staged)
    await batches.open(ID, "alice", "key")
    await batches.stage(ID, "alice", "key", staged)
    assert not await batches.discard(ID)
    assert (await batches.open(OTHER, "alice", "key")).began is Began.OPENED
    assert not await batches.stage(ID, "alice", None, [])
    assert await batches.attend(ID, 12.0)
    assert not await batches.discard(ID)
    assert not await batches.attend(ID, 12.0), "somebody is at it"
    await batches.cleared(ID, [first], 12.0)
    assert await batches.inputs(ID, 10) == [second, third]
    await batches.cleared(ID, [second, third], 12.0)
    assert await batches.discard(ID)
    assert await batches.get(ID) is None
    assert (await store.figures()).due == 1


async def test_who_clears_an_upload_away_keeps_it_for_as_long_as_he_goes_on(store: Store) -> None:
    await store.batches.open(ID, "alice", None)
    await store.batches.stage(ID, "alice", None, [replace(line(0), staged=True)])
    for seconds in (0, 12.0):
        await store.batches.cleared(ID, (), seconds)
        assert await store.batches.attend(ID, 0) is (seconds == 0)
    await store.batches.cleared(ID, [line(0).job.id], 12.0)
    await store.batches.discard(ID)
    await store.batches.cleared(ID, [], 12.0)  # by one that had slept
    assert (await store.figures()).due == 0


async def test_a_sealed_batch_cannot_be_discarded(store: Store) -> None:
    await enroll(store, lines(1))
    await store.batches.discard(ID)
    assert (await seen(store)).status is BatchStatus.RUNNING


async def test_lines_with_inputs_are_told_until_the_seal(store: Store) -> None:
    await store.plan("stage", line(0).job.id, 900)
    await store.batches.open(ID, "alice", None)
    await store.batches.stage(ID, "alice", None, [replace(line(0), staged=True), line(1)])
    assert await store.batches.inputs(ID, 10) == [line(0).job.id]
    assert (await store.figures()).due == 1  # the batch's own
    await store.batches.enroll(Batch(ID, "alice", BatchStatus.RUNNING, total=2, hash="h"))
    assert await store.batches.inputs(ID, 10) == []


async def test_lines_that_are_no_jobs_yet_count_as_backlog(make: Make) -> None:
    store = make(replace(LIMITS, backlog_max=4))
    assert (await enroll(store, lines(4)))[0] is Enrolled.ENROLLED
    assert (await store.create(line(9).job)).outcome is Outcome.FULL
    assert (await enroll(store, lines(1, OTHER), OTHER))[0] is Enrolled.FULL


async def test_a_batch_is_over_when_its_last_job_is_closed(store: Store) -> None:
    await enroll(store, lines(2))
    await store.batches.unfold(ID, 10)
    await store.batches.rest(ID)
    first, second = (each.job.id for each in lines(2))
    await happens(store, first, e.CancelAsked(), e.SidecarWritten())
    await happens(store, second, e.CancelAsked())
    assert not await store.batches.count_up(ID)
    assert not await store.batches.attend(ID, 10)
    await happens(store, second, e.SidecarWritten())
    assert await store.batches.attend(ID, 10)
    assert await store.batches.count_up(ID)
    before = await seen(store)
    assert (before.status, before.done, before.counts[Status.CANCELLED]) == (BatchStatus.RUNNING, 2, 2)
    await store.batches.mark(ID)
    batch = await seen(store)
    assert (batch.status, batch.marked, view(batch)["eta_s"], view(batch)["progress"]) == (
        BatchStatus.COMPLETED,
        True,
        0,
        1,
    )
    assert not await store.batches.attend(ID, 10)
    assert (await store.events("0-0"))[-1].data["status"] == "completed"


async def test_a_last_job_that_closes_while_the_batch_is_attended_is_not_missed(store: Store) -> None:
    await enroll(store, lines(1))
    await store.batches.unfold(ID, 10)
    assert await store.batches.attend(ID, 10)
    await happens(store, line(0).job.id, e.CancelAsked(), e.SidecarWritten())
    await store.batches.rest(ID)
    assert await store.batches.attend(ID, 10)


async def test_a_step_that_slept_while_another_marked_the_batch_leaves_nothing_due(store: Store) -> None:
    await enroll(store, lines(1))
    await store.batches.unfold(ID, 10)
    await happens(store, line(0).job.id, e.CancelAsked(), e.SidecarWritten())
    assert await store.batches.count_up(ID)
    await store.batches.mark(ID)
    await store.plan("batch", ID, 0)
    await store.batches.rest(ID, 0)
    assert not await store.batches.attend(ID, 10)
    assert (await store.figures()).due == 0


async def test_a_deleted_job_is_closed(store: Store) -> None:
    await enroll(store, lines(1))
    await store.batches.unfold(ID, 10)
    await happens(store, line(0).job.id, e.CancelAsked())
    job = await store.get(line(0).job.id)
    assert job is not None
    await store.bury(job, busy_s=0)
    assert await store.batches.count_up(ID)


async def test_a_cancelled_batch_buys_nothing_of_what_it_has_not_unfolded(store: Store) -> None:
    await enroll(store, lines(3))
    await store.batches.unfold(ID, 1)
    assert await store.batches.cancel(ID)
    assert not await store.batches.cancel(ID)
    _, bells = await store.batches.unfold(ID, 10)
    assert bells == ()
    batch = await seen(store)
    assert (batch.counts[Status.CANCELLED], batch.counts[Status.QUEUED]) == (2, 1)
    job = await store.get(line(1).job.id)
    assert job is not None
    assert (job.status, bool(job.finished_at)) == (Status.CANCELLED, True)
    await happens(store, job.id, e.SidecarWritten())


async def test_a_running_batch_keeps_its_closed_jobs_and_an_ended_one_leaves(make: Make) -> None:
    store = make(replace(LIMITS, retention_s=0))
    await enroll(store, lines(1))
    await store.batches.unfold(ID, 10)
    await happens(store, line(0).job.id, e.CancelAsked(), e.SidecarWritten())
    await store.expire()
    assert await store.get(line(0).job.id) is not None
    await store.batches.count_up(ID)
    await store.batches.mark(ID)
    await store.expire()
    assert await store.get(line(0).job.id) is None
    assert await store.batches.get(ID) is None


async def retry(store: Store, *job_ids: str) -> tuple[Enrolled, str]:
    """OTHER, which retries these jobs of ID."""
    await store.batches.open(OTHER, "alice", None)
    await store.batches.stage_retries(OTHER, "alice", job_ids)
    whole = Batch(OTHER, "alice", BatchStatus.RUNNING, total=len(job_ids), hash="h", retry_of=ID)
    return await store.batches.enroll(whole)


async def test_a_batch_has_one_retry_and_a_line_is_dropped_once(store: Store) -> None:
    await enroll(store, lines(1))
    assert await retry(store, "job_a", "job_b", "job_c") == (Enrolled.ENROLLED, OTHER)
    assert (await seen(store)).retried_by == OTHER
    assert await store.batches.peek(OTHER, 2) == (0, ["job_a", "job_b"])
    for _ in range(2):
        await store.batches.drop(OTHER, ["job_a"])
    batch = await seen(store, OTHER)
    assert (batch.total, batch.rest, await store.batches.peek(OTHER, 2)) == (2, 2, (1, ["job_b", "job_c"]))


async def test_the_write_that_makes_a_retry_takes_its_line_off(store: Store) -> None:
    await enroll(store, lines(1))
    await store.batches.unfold(ID, 1)
    await happens(store, line(0).job.id, e.CancelAsked(), e.SidecarWritten())
    old = await store.get(line(0).job.id)
    assert old is not None
    await retry(store, old.id)
    new = replace(line(1, OTHER).job, batch_id=OTHER, retry_of=old.id)
    assert (await store.create(new, takes_over=old)).outcome is Outcome.CREATED
    assert (await store.create(new, takes_over=old)).outcome is Outcome.ALREADY
    batch = await seen(store, OTHER)
    assert (batch.rest, batch.counts[Status.QUEUED], batch.total) == (0, 1, 1)
    await store.batches.drop(OTHER, [old.id])  # by a process that had read the line before
    assert (await seen(store, OTHER)).total == 1


async def test_a_line_that_was_dropped_becomes_no_job(store: Store) -> None:
    """Two processes look at a batch that is cancelled meanwhile; one of them has not heard of it."""
    await enroll(store, lines(1))
    await store.batches.unfold(ID, 1)
    await happens(store, line(0).job.id, e.CancelAsked(), e.SidecarWritten())
    old = await store.get(line(0).job.id)
    assert old is not None
    await retry(store, old.id)
    await store.batches.cancel(OTHER)
    await store.batches.drop(OTHER, [old.id])
    assert (await store.create(replace(line(1, OTHER).job, batch_id=OTHER), takes_over=old)).outcome is Outcome.GONE
    assert await store.get(line(1, OTHER).job.id) is None
    assert (await seen(store, OTHER)).total == 0


async def test_what_a_cancelled_retry_left_undone_may_be_retried_once_more(store: Store) -> None:
    await enroll(store, lines(1))
    await retry(store, "job_a")
    await store.batches.cancel(OTHER)
    await store.batches.drop(OTHER, ["job_a"])
    assert await store.batches.count_up(OTHER)
    await store.batches.mark(OTHER)
    assert (await seen(store)).retried_by is None


async def test_from_the_cancellation_of_a_batch_on_no_job_of_it_gets_a_slot(store: Store) -> None:
    await enroll(store, lines(6))
    _, bells = await store.batches.unfold(ID, 6)
    assert len(bells) == LIMITS.max_in_flight
    await store.batches.cancel(ID)
    for bell in bells:
        await happens(store, bell.id, e.CancelAsked())
    stranger = line(9).job
    written = await store.create(stranger)
    assert [bell.id for bell in written.bells] == [stranger.id]
    assert (await store.figures()).slots == 1
