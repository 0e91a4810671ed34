"""Notifications on record: what each write promises, of the real store and of the simulation's alike."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from service.clock import SystemClock
from service.domain import events as e
from service.domain import layout
from service.domain.batch import Batch, BatchStatus
from service.domain.job import Job, Queue
from service.domain.lifecycle import decide
from service.domain.notice import LASTS_S, Attempt, Notice, NoticeState
from service.storage.batches import Line
from service.storage.connection import AsyncRedis
from service.storage.rebuilding import Made
from service.storage.store import PREFIX, Store
from service.storage.terms import Bell, Limits, Outcome
from tests.sim.memory import Memory, MemoryStore

pytestmark = pytest.mark.anyio

ID = layout.new_id("job", 1_000_000_000_000, bytes(10))
BATCH = layout.new_id("batch", 1_000_000_000_000, bytes(10))
URL = "https://caller.example/hook"
LEASE_S = 20.0
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
    return make(Limits())


def job(**more: object) -> Job:
    return replace(Job(id=ID, caller="alice", model="flux-dev", request={}, callback_url=URL), **more)  # type: ignore[arg-type]


async def happens(store: Store, *events: e.Event) -> tuple[Bell, ...]:
    """The bells of the last of them."""
    bells: tuple[Bell, ...] = ()
    for number, event in enumerate(events):
        now = await store.get(ID)
        assert now is not None
        change = decide(now, event)
        assert change is not None, event
        written = await store.apply(change, f"{now.version}-{number}")
        assert written.outcome is Outcome.APPLIED
        bells = written.bells
    return bells


async def ended(store: Store, **more: object) -> tuple[Bell, ...]:
    await store.create(job(**more))
    return await happens(store, e.CancelAsked(), e.SidecarWritten())


async def taken(store: Store, id_: str = ID) -> Notice:
    notice = await store.notices.take(id_, LEASE_S)
    assert notice is not None
    return notice


async def seen(store: Store, id_: str = ID) -> Notice:
    notice = await store.notices.get(id_)
    assert notice is not None
    return notice


async def test_it_is_due_from_the_write_that_tells_of_the_sidecar_and_not_before(store: Store) -> None:
    await store.create(job())
    assert await happens(store, e.CancelAsked()) == (Bell(Queue.COLLECT, ID),)
    assert await store.notices.get(ID) is None
    assert await happens(store, e.SidecarWritten()) == (Bell("notify", ID),)
    notice = await taken(store)
    assert (notice.caller, notice.url, notice.hook) == ("alice", URL, None)
    assert (notice.state, notice.tries) == (NoticeState.PENDING, 0)


async def test_who_wants_no_notification_has_none(store: Store) -> None:
    assert await ended(store, callback_url=None) == ()
    assert await store.notices.get(ID) is None
    assert await store.notices.take(ID, LEASE_S) is None


async def test_a_hook_is_kept_as_it_came(store: Store) -> None:
    await ended(store, callback_url=None, hook="k1.sealed")
    notice = await taken(store)
    assert (notice.url, notice.hook) == (None, "k1.sealed")


async def test_two_do_not_send_it_at_once(store: Store) -> None:
    await ended(store)
    await taken(store)
    assert await store.notices.take(ID, LEASE_S) is None


async def test_a_sender_that_died_is_followed_by_another_when_its_lease_is_over(store: Store) -> None:
    await ended(store)
    await store.notices.take(ID, 0.0)
    assert (await taken(store)).tries == 0


async def test_the_sweep_rings_for_it_once_its_bell_has_led_to_nothing(store: Store) -> None:
    await ended(store)
    room = {"notify": 10}
    assert await store.ripen(room, again_s=60) == ()
    assert await store.ripen(room, again_s=-1) == (Bell("notify", ID),)


async def test_a_failed_try_is_kept_and_the_next_one_comes_later(store: Store) -> None:
    await ended(store)
    await taken(store)
    await store.notices.tell(ID, NoticeState.PENDING, took_ms=12, status=503, again_s=30)
    notice = await seen(store)
    assert (notice.state, notice.tries) == (NoticeState.PENDING, 1)
    [attempt] = notice.attempts
    assert attempt == Attempt(attempt.at, 12, 503, None)
    assert notice.due_at is not None
    assert notice.due_at - attempt.at == 30_000
    assert await store.notices.take(ID, LEASE_S) is None


@pytest.mark.parametrize("end", [NoticeState.DELIVERED, NoticeState.GIVEN_UP, NoticeState.OFF])
async def test_what_is_over_is_not_due_any_more(store: Store, end: NoticeState) -> None:
    await ended(store)
    await taken(store)
    await store.notices.tell(ID, end, took_ms=1, error="timeout")
    notice = await seen(store)
    assert (notice.state, notice.due_at) == (end, None)
    await store.plan("notify", ID, 0)  # a sender that slept over its lease puts it off
    assert await store.notices.take(ID, LEASE_S) is None
    assert (await seen(store)).due_at is None


async def test_a_late_failure_undoes_no_delivery_and_a_late_delivery_counts(store: Store) -> None:
    await ended(store)
    await store.notices.tell(ID, NoticeState.GIVEN_UP, took_ms=1, error="timeout")
    await store.notices.tell(ID, NoticeState.DELIVERED, took_ms=1, status=200)
    await store.notices.tell(ID, NoticeState.PENDING, took_ms=1, status=500, again_s=0)
    await store.notices.tell(ID, NoticeState.OFF, took_ms=1, status=410)
    notice = await seen(store)
    assert (notice.state, notice.due_at, notice.tries) == (NoticeState.DELIVERED, None, 4)


async def test_only_the_newest_tries_are_kept(store: Store) -> None:
    await ended(store)
    for number in range(60):
        await store.notices.tell(ID, NoticeState.PENDING, took_ms=number)
    notice = await seen(store)
    assert notice.tries == 60
    assert [attempt.took_ms for attempt in notice.attempts] == list(range(10, 60))


async def test_what_was_delivered_can_be_sent_again(store: Store) -> None:
    await ended(store)
    await store.notices.tell(ID, NoticeState.DELIVERED, took_ms=1, status=200)
    assert await store.notices.resend(ID, "alice", url=URL, hook=None) == (Bell("notify", ID),)
    notice = await taken(store)
    assert (notice.state, notice.tries, notice.url) == (NoticeState.PENDING, 0, URL)
    assert len((await seen(store)).attempts) == 1


async def test_what_is_not_on_record_any_more_is_sent_again_to_who_is_named(store: Store) -> None:
    assert await store.notices.resend(ID, "alice", url=None, hook=None) == ()
    assert await store.notices.take(ID, LEASE_S) is None
    await store.notices.resend(ID, "alice", url=URL, hook=None)
    assert (await taken(store)).url == URL


async def test_a_deleted_job_is_told_of_no_more(store: Store) -> None:
    await ended(store)
    found = await store.get(ID)
    assert found is not None
    await store.bury(found, busy_s=1)
    assert await store.notices.get(ID) is None
    assert await store.notices.take(ID, LEASE_S) is None
    await store.notices.tell(ID, NoticeState.PENDING, took_ms=1)
    assert await store.notices.get(ID) is None


async def test_it_outlives_the_jobs_record(make: Make) -> None:
    store = make(Limits(retention_s=0))
    await ended(store)
    assert await store.expire() == 1
    assert await store.get(ID) is None
    assert (await taken(store)).url == URL


async def test_a_batch_is_told_of_once_it_is_marked(store: Store) -> None:
    await store.batches.open(BATCH, "alice", None)
    await store.batches.stage(BATCH, "alice", None, [Line(job(callback_url=None))])
    whole = Batch(BATCH, "alice", BatchStatus.RUNNING, total=1, callback_url=URL, hash="h")
    await store.batches.enroll(whole)
    assert await store.notices.get(BATCH) is None
    assert await store.batches.mark(BATCH, URL) == (Bell("notify", BATCH),)
    assert (await taken(store, BATCH)).url == URL
    assert await store.batches.mark(BATCH, URL) == ()


async def test_a_rebuilt_job_is_told_of_again_as_long_as_it_might_be_waited_for(store: Store) -> None:
    now = await store.now_ms()
    fresh, old = (layout.new_id("job", 1_000_000_000_000 + n, bytes(10)) for n in (1, 2))
    for id_, age_s in ((fresh, 60), (old, LASTS_S + 60)):
        made = job(id=id_, status="cancelled", created_at=1, finished_at=now - age_s * 1000, sidecar=True)
        assert await store.rebuilding.job(made, now) is Made.REBUILT
    assert (await taken(store, fresh)).url == URL
    assert await store.notices.get(old) is None


async def test_figures_tell_what_is_pending_for_how_long_and_what_came_of_tries(store: Store) -> None:
    none = await store.notices.figures()
    assert (none.pending, none.oldest_s, dict(none.tries)) == (0, 0.0, {})
    await ended(store)
    await store.notices.tell(ID, NoticeState.PENDING, took_ms=1, status=500, again_s=60)
    waiting = await store.notices.figures()
    assert (waiting.pending, dict(waiting.tries)) == (1, {"failed": 1})
    assert 0 <= waiting.oldest_s < 60
    await store.notices.tell(ID, NoticeState.DELIVERED, took_ms=1, status=204)
    over = await store.notices.figures()
    assert (over.pending, over.oldest_s, dict(over.tries)) == (0, 0.0, {"failed": 1, "delivered": 1})


async def test_what_is_over_leaves_redis_with_the_retention(connection: AsyncRedis) -> None:
    store = Store(connection, Limits())
    await ended(store)
    await store.notices.tell(ID, NoticeState.DELIVERED, took_ms=1, status=204)
    keys = [f"{PREFIX}notice:{ID}", f"{PREFIX}tries:{ID}"]
    assert all([0 < await connection.pttl(key) <= 7 * 86_400_000 for key in keys])
    await store.notices.resend(ID, "alice", url=URL, hook=None)
    assert [await connection.pttl(key) for key in keys] == [-1, -1]
