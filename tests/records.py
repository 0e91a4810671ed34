"""A record of every kind in one Redis: jobs in each state, retries, batches, what was deleted or condemned."""

from collections.abc import Iterable

from service.domain import events as e
from service.domain import layout
from service.domain.batch import Batch, BatchStatus
from service.domain.job import Job
from service.domain.lifecycle import decide
from service.domain.successor import successor
from service.storage.batches import Enrolled, Line
from service.storage.connection import AsyncRedis
from service.storage.store import PREFIX, Store
from service.storage.terms import Idempotency, Outcome

HOUR_S = 3600.0
BATCH_LINES = 3
FAR_MS = 9 * 10**12
INTENDED = e.Intended(attempt=1, delay_s=HOUR_S)
CLOSED = (e.CancelAsked(), e.SidecarWritten())


def job_id(number: int, now_ms: int) -> str:
    return layout.new_id("job", now_ms, number.to_bytes(10))


async def happens(store: Store, id_: str, *events: e.Event) -> Job:
    for number, event in enumerate(events):
        job = await store.get(id_)
        assert job is not None
        change = decide(job, event)
        assert change is not None, event
        assert (await store.apply(change, f"{id_}{job.version:06}{number:03}")).outcome is Outcome.APPLIED
    job = await store.get(id_)
    assert job is not None
    return job


def courses(task: str) -> Iterable[tuple[e.Event, ...]]:
    """One job for each: what happens to it."""
    bought = (INTENDED, e.TaskAccepted(attempt=1, provider_id=task, cost=4.0, delay_s=HOUR_S))
    ready = (*bought, e.Ready(attempt=1, provider_id=task, url="https://x/y", expires_at=FAR_MS))
    yield ()
    yield ()
    yield (INTENDED,)
    yield INTENDED, e.OutcomeUnknown(attempt=1)
    yield bought
    yield *bought, e.CancelAsked()  # its task is still open
    yield ready
    yield *ready, e.Spooled(spool="machine:/spool", delay_s=HOUR_S)
    yield *ready, e.CancelAsked()
    yield (e.CancelAsked(),)
    yield CLOSED
    yield INTENDED, e.Throttled(attempt=1, delay_s=HOUR_S)
    yield *bought, e.DeadlinePassed()


async def fill(store: Store, redis: AsyncRedis | None = None, first: int = 0) -> list[str]:
    """Ids of the jobs of `courses`, in their order. `first` numbers all of it: several may lie side by side.

    With `redis` there is a condemned job, too, whose record it damages.
    """
    now_ms = await store.now_ms()
    made = [job_id(first + number, now_ms) for number in range(len(list(courses(""))))]
    for number, id_ in enumerate(made, first):
        model = "flux-kontext-max" if number % 3 == 1 else "flux-dev"
        job = Job(id=id_, caller="alice", model=model, request={"prompt": f"caf\u00e9 {number}"})
        await store.create(job, idempotency=Idempotency(f"key-{number}", "body"), deadline_s=HOUR_S)
        events = list(courses(f"task-{number}"))[number - first]
        await happens(store, id_, *events)
    await _retried(store, made[-1], job_id(first + 50, now_ms))
    await _deleted(store, job_id(first + 51, now_ms))
    if redis is not None:
        await _condemned(store, redis, job_id(first + 52, now_ms))
    for number in range(4):
        await _batch(store, first + 10 * number, number, now_ms)
    return made


async def _retried(store: Store, id_: str, again: str) -> None:
    old = await store.get(id_)
    assert old is not None
    new = successor(old, again)
    assert new is not None
    assert (await store.create(new, takes_over=old)).outcome is Outcome.CREATED


async def _deleted(store: Store, id_: str) -> None:
    await store.create(Job(id=id_, caller="bob", model="flux-dev", request={}))
    assert await store.bury(await happens(store, id_, *CLOSED), busy_s=0) is Outcome.BURIED


async def _condemned(store: Store, redis: AsyncRedis, id_: str) -> None:
    await store.create(Job(id=id_, caller="bob", model="flux-dev", request={}))
    await redis.hset(f"{PREFIX}job:{id_}", "body", "{")
    assert (await store.condemn(id_)).outcome is Outcome.CONDEMNED


async def _batch(store: Store, first: int, how: int, now_ms: int) -> None:
    """0: staged; 1: half unfolded; 2: its jobs are closed, and one was deleted; 3: over."""
    id_, key = layout.new_id("batch", now_ms, first.to_bytes(10)), f"batch-{first}"
    ids = [job_id(first + 60 + n, now_ms) for n in range(BATCH_LINES)]
    await store.batches.open(id_, "bob", key)
    lines = [Line(Job(id=each, caller="bob", model="flux-dev", request={})) for each in ids]
    assert await store.batches.stage(id_, "bob", key, lines)
    if how == 0:
        return
    whole = Batch(id_, "bob", BatchStatus.RUNNING, total=BATCH_LINES, hash="h", key=key)
    assert (await store.batches.enroll(whole))[0] is Enrolled.ENROLLED
    await store.batches.unfold(id_, 1 if how == 1 else BATCH_LINES)
    ended = [await happens(store, each, *CLOSED) for each in (ids if how > 1 else ())]
    if how == 2:
        await store.bury(ended[0], busy_s=0)
    if how == 3:
        assert await store.batches.count_up(id_)
        await store.batches.mark(id_)
