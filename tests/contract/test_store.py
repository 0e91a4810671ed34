"""The store: what each guarded write promises, one sentence each, of the real one and of the simulation's alike."""

from collections.abc import Callable
from typing import Any

import pytest

from service.clock import SystemClock
from service.domain import events as e
from service.domain.job import Image, Job, Priority, Queue, Status
from service.domain.lifecycle import decide
from service.storage import record
from service.storage.connection import AsyncRedis
from service.storage.store import PAGES_MOST, Store
from service.storage.terms import Bell, Idempotency, Limits, Outcome, Unconfirmed
from tests.sim.memory import Memory, MemoryStore

pytestmark = pytest.mark.anyio

HOUR_S = 3600.0
IMAGE = Image("b", "k", "00" * 32, 1, 1, 1, "image/png", None)
LIMITS = Limits(max_in_flight=2, caps={"flux-kontext-max": 1})
Make = Callable[..., Store]


@pytest.fixture(params=["valkey", "memory"])
def make(request: pytest.FixtureRequest, connection: AsyncRedis) -> Make:
    """Handles on one store: the real one, and the one that simulations use, which must do the same."""
    memory = Memory(SystemClock().now_ms)

    def made(limits: Limits, spool: str | None = None) -> Store:
        if request.param == "memory":
            return MemoryStore(memory, limits, actor="test", spool=spool)
        return Store(connection, limits, actor="test", spool=spool)

    return made


@pytest.fixture
def store(make: Make) -> Store:
    return make(LIMITS)


@pytest.fixture
def on_valkey(connection: AsyncRedis) -> Store:
    """For tests that look behind the store's back."""
    return Store(connection, LIMITS, actor="test")


def order(number: int, **more: object) -> Job:
    return Job(**{"id": f"job_{number:03}", "caller": "alice", "model": "flux-dev", "request": {"prompt": "a"}} | more)  # type: ignore[arg-type]


async def happens(store: Store, job_id: str, *events: e.Event) -> Job:
    for number, event in enumerate(events):
        job = await store.get(job_id)
        assert job is not None
        change = decide(job, event)
        assert change is not None, event
        written = await store.apply(change, f"{job_id}{job.version:06}{number:03}")
        assert written.outcome is Outcome.APPLIED
    job = await store.get(job_id)
    assert job is not None
    return job


async def test_a_decision_on_a_version_that_has_moved_is_refused_and_changes_nothing(store: Store) -> None:
    await store.create(order(1))
    [seen] = await store.page(caller=None)
    now = await happens(store, seen.id, e.Intended(attempt=1, delay_s=HOUR_S))
    late = decide(seen, e.CancelAsked())
    assert late is not None
    assert (await store.apply(late, "e" * 12)).outcome is Outcome.STALE
    assert await store.get(seen.id) == now


async def submitted(store: Store, number: int, **more: object) -> Job:
    await store.create(order(number, **more))
    accepted = e.TaskAccepted(attempt=1, provider_id=f"task-{number}", delay_s=HOUR_S)
    return await happens(store, f"job_{number:03}", e.Intended(attempt=1, delay_s=HOUR_S), accepted)


async def admitted(store: Store) -> list[str]:
    return [bell.id for bell in await store.ripen({"submit": 100}, again_s=0)]


async def test_a_job_without_a_slot_waits_until_one_comes_free(store: Store) -> None:
    for number in range(3):
        await store.create(order(number))
    assert (await store.claim(Queue.SUBMIT, "job_002", HOUR_S))[0] is None
    job = await store.get("job_000")
    assert job is not None
    change = decide(job, e.CancelAsked())
    assert change is not None
    written = await store.apply(change, "cancel000001")
    assert [bell.id for bell in written.bells if bell.queue == Queue.SUBMIT] == ["job_002"]


async def test_a_caller_with_many_jobs_does_not_delay_one_with_one(make: Make) -> None:
    store = make(Limits(max_in_flight=1))
    for number in range(50):
        await store.create(order(number))
    await store.create(order(100, caller="bob"))
    await happens(store, "job_000", e.CancelAsked())
    await happens(store, "job_001", e.CancelAsked())
    assert (await store.claim(Queue.SUBMIT, "job_100", HOUR_S))[0] is not None, "bob is next or next but one"


async def test_high_priority_goes_four_times_as_often_as_normal_and_sixteen_times_as_low(
    make: Make,
) -> None:
    store = make(Limits(max_in_flight=1))
    await store.create(order(999))
    for number in range(300):
        priority = [Priority.LOW, Priority.NORMAL, Priority.HIGH][number % 3]
        await store.create(order(number, priority=priority))
    served = []
    holder = "job_999"
    for _ in range(42):
        change = decide(await _get(store, holder), e.CancelAsked())
        assert change is not None
        written = await store.apply(change, f"cancel{holder}")
        holder = next(bell.id for bell in written.bells if bell.queue == Queue.SUBMIT)
        served.append(int(holder[4:]) % 3)
    assert [served.count(kind) for kind in (2, 1, 0)] == [32, 8, 2]


async def _get(store: Store, job_id: str) -> Job:
    job = await store.get(job_id)
    assert job is not None
    return job


CAPPED = {"model": "flux-kontext-max"}


async def test_jobs_whose_cap_a_release_takes_away_wait_among_all_others(make: Make) -> None:
    before, after = make(LIMITS), make(Limits(max_in_flight=2))
    for number in range(3):
        await before.create(order(number, **CAPPED))
    admitted = list[Bell]()
    for job_id in ("job_001", "job_002"):
        await after.plan("job", job_id, 0)  # a safety look
        admitted += (await after.claim(Queue.SUBMIT, job_id, HOUR_S))[1]
    assert [bell.id for bell in admitted] == ["job_001"], "it need not wait for job_000; two slots are all"
    await happens(after, "job_002", e.CancelAsked())
    await happens(after, "job_000", e.CancelAsked())
    assert (await after.figures()).slots == 1, "and what ends while it waits there waits no more"


async def test_a_cap_that_a_release_brings_back_holds_for_those_that_wait(make: Make) -> None:
    before, after = make(LIMITS), make(Limits(max_in_flight=1))
    for number in range(2):
        await before.create(order(number, **CAPPED))
    for store in (after, before):
        await store.plan("job", "job_001", 0)
        assert (await store.claim(Queue.SUBMIT, "job_001", HOUR_S))[1] == ()
    assert (await before.figures()).slots == 1
    for job_id in ("job_001", "job_000"):
        await happens(before, job_id, e.CancelAsked())
    assert (await before.figures()).slots == 0, "it waited in one lane alone"


async def test_a_retry_gives_back_the_slot_under_a_cap_that_is_no_more(make: Make) -> None:
    before, after = make(LIMITS), make(Limits(max_in_flight=2))
    old = await submitted(before, 0, **CAPPED)
    old = await happens(before, old.id, e.CancelAsked())
    more = {"status": Status.GENERATING, "retry_of": old.id, "attempt": 1, "open": (1,), "tasks": old.tasks}
    await after.create(order(1, **CAPPED, **more), takes_over=old)
    assert [bell.id for bell in (await before.create(order(2, **CAPPED))).bells] == ["job_002"]


async def test_the_last_slots_are_kept_for_high_priority(make: Make) -> None:
    store = make(Limits(max_in_flight=16))
    for number in range(20):
        await store.create(order(number))
    assert (await store.figures()).slots == 14
    written = await store.create(order(50, priority=Priority.HIGH))
    assert [bell.id for bell in written.bells] == ["job_050"]


async def test_a_model_with_a_smaller_cap_keeps_it_and_does_not_block_others(make: Make) -> None:
    store = make(Limits(max_in_flight=4, caps={"flux-kontext-max": 1}))
    for number in range(3):
        await store.create(order(number, model="flux-kontext-max"))
    written = await store.create(order(3))
    assert [bell.id for bell in written.bells] == ["job_003"]
    assert (await store.figures()).slots == 2


async def test_no_cap_means_no_waiting(make: Make) -> None:
    store = make(Limits(max_in_flight=0))
    for number in range(50):
        assert (await store.create(order(number))).bells


async def test_a_429_shrinks_the_cap_and_success_grows_it_back(make: Make) -> None:
    store = make(Limits(max_in_flight=8))
    for number in range(30):
        await store.create(order(number, priority=Priority.HIGH))
    await happens(store, "job_000", e.Intended(attempt=1, delay_s=HOUR_S), e.Throttled(attempt=1, delay_s=0.0))
    assert float((await store.figures()).gate["cap:"]) == 6
    for number in range(1, 8):
        await happens(store, f"job_{number:03}", e.Intended(attempt=1, delay_s=HOUR_S))
        ready = e.Ready(attempt=1, provider_id=f"task-{number}", url="https://x/y")
        accepted = e.TaskAccepted(attempt=1, provider_id=f"task-{number}", delay_s=HOUR_S)
        await happens(store, f"job_{number:03}", accepted, ready)
    assert 7 < float((await store.figures()).gate["cap:"]) < 8


async def test_a_wrong_key_pauses_submissions_and_lets_one_through_as_a_probe(store: Store) -> None:
    for number in range(5):
        await store.create(order(number))
    held = await happens(store, "job_000", e.Intended(attempt=1, delay_s=HOUR_S), e.Held(attempt=1, detail="402"))
    assert (held.status, held.refusals) == (Status.QUEUED, 0)
    figures = await store.figures()
    assert (figures.gate["reason"], figures.slots) == ("held", 1), "its slot is back, and nobody took it"
    accepted = e.TaskAccepted(attempt=1, provider_id="task-1", delay_s=HOUR_S)
    await happens(store, "job_001", e.Intended(attempt=1, delay_s=HOUR_S), accepted)
    assert "reason" not in (await store.figures()).gate
    assert (await store.figures()).slots == 2


async def test_five_refusals_in_a_row_close_the_gate(store: Store) -> None:
    await store.create(order(0))
    for attempt in range(1, 6):
        await happens(store, "job_000", e.Intended(attempt=attempt, delay_s=HOUR_S), e.Refused(attempt=attempt))
    assert (await store.figures()).gate["reason"] == "refused"


async def test_a_claim_is_a_lease(store: Store) -> None:
    await store.create(order(0))
    claim, _ = await store.claim(Queue.SUBMIT, "job_000", HOUR_S)
    assert claim is not None
    assert (await store.claim(Queue.SUBMIT, "job_000", HOUR_S))[0] is None
    assert await store.renew("job_000", claim.lease_end, HOUR_S) is not None


async def test_a_lease_that_ran_out_is_given_to_the_next(store: Store) -> None:
    await store.create(order(0))
    claim, _ = await store.claim(Queue.SUBMIT, "job_000", 0.0)
    assert claim is not None
    again, _ = await store.claim(Queue.SUBMIT, "job_000", HOUR_S)
    assert again is not None
    assert await store.renew("job_000", claim.lease_end, HOUR_S) is None


async def test_a_bell_for_another_queue_claims_nothing(store: Store) -> None:
    await store.create(order(0))
    assert (await store.claim(Queue.COLLECT, "job_000", HOUR_S))[0] is None


async def test_collect_takes_what_expires_first_whatever_the_bell_names(make: Make) -> None:
    store = make(Limits(max_in_flight=0))
    for number, expires_at in enumerate([3000, 1000, 2000]):
        await submitted(store, number)
        ready = e.Ready(attempt=1, provider_id=f"task-{number}", url="https://x/y", expires_at=expires_at)
        await happens(store, f"job_{number:03}", ready)
    claimed = [(await store.claim(Queue.COLLECT, "job_000", HOUR_S))[0] for _ in range(4)]
    assert [claim and claim.job.id for claim in claimed] == ["job_001", "job_002", "job_000", None]


async def test_the_sweep_names_what_is_due_once_until_it_is_time_to_ring_again(store: Store) -> None:
    await store.create(order(0))
    assert await admitted(store) == ["job_000"]
    assert [bell.id for bell in await store.ripen({"submit": 9}, again_s=HOUR_S)] == []
    await store.claim(Queue.SUBMIT, "job_000", HOUR_S)
    assert await admitted(store) == [], "claimed"


async def test_the_sweep_rings_no_more_than_there_is_room(make: Make) -> None:
    store = make(Limits(max_in_flight=0))
    for number in range(9):
        await store.create(order(number))
    assert len(await store.ripen({"submit": 4}, again_s=0)) == 4


async def deleted(store: Store, count: int) -> None:
    """Objects of so many jobs are to be erased, and were due before anything that comes now."""
    for number in range(count):
        await store.plan("erase", f"job_{number:04}", -1)


@pytest.mark.parametrize("rung", [0, 1001], ids=["no room for them", "rung for already"])
async def test_a_thousand_chores_hide_no_poll_that_is_due_behind_them(store: Store, rung: int) -> None:
    await deleted(store, 1001)
    assert len(await store.ripen({"erase": rung}, again_s=HOUR_S)) == rung
    bought = await submitted(store, 2000)
    await store.plan("job", bought.id, 0)
    assert await store.ripen({"collect": 9, "erase": 0}, again_s=HOUR_S) == (Bell(Queue.COLLECT, bought.id),)


async def test_what_is_due_behind_more_than_one_look_sees_is_named_a_few_looks_later(store: Store) -> None:
    """The first page is looked at each time; the others go round."""
    await deleted(store, 3 * PAGES_MOST)
    bought = await submitted(store, 2000)
    await store.plan("job", bought.id, 0)
    looks = [await store.ripen({"collect": 9, "erase": 0}, again_s=0, most=2) for _ in range(4)]
    assert [bell.id for look in looks for bell in look] == [bought.id, bought.id], "once a round of two looks"


async def test_a_deadline_brings_a_waiting_job_forward(store: Store) -> None:
    for number in range(2):
        await store.create(order(number))
    await store.create(order(2), deadline_s=0.0)
    claim, _ = await store.claim(Queue.SUBMIT, "job_002", HOUR_S)
    assert claim is not None
    assert claim.job.deadline_at is not None
    assert claim.job.deadline_at <= claim.now


async def test_the_same_key_and_body_is_the_same_job(store: Store) -> None:
    first = await store.create(order(0), idempotency=Idempotency("key", "body"))
    again = await store.create(order(1), idempotency=Idempotency("key", "body"))
    other = await store.create(order(2), idempotency=Idempotency("key", "other"))
    assert (again.outcome, again.job_id) == (Outcome.REPLAYED, first.job_id)
    assert other.outcome is Outcome.CONFLICT
    assert await store.get("job_001") is None


async def test_keys_belong_to_their_callers(store: Store) -> None:
    await store.create(order(0), idempotency=Idempotency("key", "body"))
    bobs = await store.create(order(1, caller="bob"), idempotency=Idempotency("key", "body"))
    assert bobs.outcome is Outcome.CREATED


async def test_a_full_backlog_takes_no_more(make: Make) -> None:
    store = make(Limits(max_in_flight=1, backlog_max=2))
    outcomes = [(await store.create(order(number))).outcome for number in range(3)]
    assert outcomes == [Outcome.CREATED, Outcome.CREATED, Outcome.FULL]


async def test_a_create_that_is_sent_twice_creates_one(store: Store) -> None:
    await store.create(order(0))
    assert (await store.create(order(0))).outcome is Outcome.ALREADY


async def test_a_provider_task_belongs_to_one_job(store: Store) -> None:
    await submitted(store, 0)
    await store.create(order(1))
    job = await happens(store, "job_001", e.Intended(attempt=1, delay_s=HOUR_S))
    change = decide(job, e.TaskAccepted(attempt=1, provider_id="task-0", delay_s=HOUR_S))
    assert change is not None
    assert (await store.apply(change, "thief0000001")).outcome is Outcome.TAKEN
    assert await store.get("job_001") == job


async def test_a_retry_takes_over_the_task_and_the_slot(store: Store) -> None:
    old = await submitted(store, 0)
    old = await happens(store, old.id, e.CancelAsked())
    more = {"status": Status.GENERATING, "retry_of": old.id, "attempt": 1, "open": (1,), "tasks": old.tasks}
    written = await store.create(order(1, **more), takes_over=old)
    assert written.outcome is Outcome.CREATED
    assert [bell.queue for bell in written.bells] == [Queue.COLLECT]
    again = await store.create(order(2, **more), takes_over=old)
    assert (again.outcome, again.job_id) == (Outcome.RETRIED, "job_001")
    found = await _get(store, old.id)
    assert (found.retried_by, found.open) == ("job_001", ())
    assert (await store.figures()).slots == 1


async def test_a_job_whose_purchase_a_retry_took_over_has_nothing_left_to_do(make: Make) -> None:
    store = make(Limits(retention_s=0))
    old = await submitted(store, 0)
    old = await happens(store, old.id, e.CancelAsked(), e.SidecarWritten(delay_s=HOUR_S))
    more = {"status": Status.GENERATING, "retry_of": old.id, "attempt": 1, "open": (1,), "tasks": old.tasks}
    await store.create(order(1, **more), takes_over=old)
    assert (await store.figures()).due == 1, "the retry's"
    assert await store.expire() == 1


async def test_a_post_that_still_runs_stays_the_old_jobs_when_it_is_retried(make: Make) -> None:
    """Its task is not known yet, so that the retry buys anew, as its caller asked; the provider may count both."""
    store = make(Limits(max_in_flight=2))
    await store.create(order(0))
    old = await happens(store, "job_000", e.Intended(attempt=1, delay_s=HOUR_S), e.CancelAsked(), e.SidecarWritten())
    assert (await store.create(order(1, retry_of=old.id), takes_over=old)).outcome is Outcome.CREATED
    kept = await store.get(old.id)
    assert kept is not None
    assert (kept.open, kept.retried_by, (await store.figures()).slots) == ((1,), "job_001", 2)
    assert await store.due_at(old.id) is not None
    await happens(store, old.id, e.TimedOut())
    assert (await store.figures()).slots == 1
    assert await store.due_at(old.id) is None


async def test_the_task_of_a_deleted_job_is_nobody_elses(store: Store) -> None:
    job = await submitted(store, 0)
    job = await happens(store, job.id, e.Moderated(attempt=1), e.SidecarWritten())
    await store.bury(job, busy_s=0)
    await store.create(order(1))
    thief = await happens(store, "job_001", e.Intended(attempt=1, delay_s=HOUR_S))
    change = decide(thief, e.TaskAccepted(attempt=1, provider_id="task-0", delay_s=HOUR_S))
    assert change is not None
    assert (await store.apply(change, "thief0000001")).outcome is Outcome.TAKEN


async def test_a_record_leaves_after_its_retention_with_all_that_points_at_it(connection: AsyncRedis) -> None:
    store = Store(connection, Limits(retention_s=0))
    job = await submitted(store, 0)
    await happens(store, job.id, e.Moderated(attempt=1), e.SidecarWritten())
    assert await store.expire() == 1
    assert await store.get(job.id) is None
    keys: list[Any] = await connection.keys("dr1:*")
    left = {key.decode() for key in keys}
    assert left == {"dr1:clock", "dr1:events", "dr1:tags"}


async def test_a_deleted_job_keeps_its_slot_while_its_task_runs(make: Make) -> None:
    """The provider counts it still, whatever its caller has deleted."""
    store = make(Limits(max_in_flight=1))
    job = await submitted(store, 0)
    job = await happens(store, job.id, e.CancelAsked(), e.SidecarWritten(delay_s=HOUR_S))
    await store.create(order(1))
    assert await store.bury(job, busy_s=60) is Outcome.BURIED
    assert [bell.queue for bell in await store.ripen(dict.fromkeys(("submit", "settle"), 9), again_s=0)] == ["settle"]
    left = await store.remains(job.id)
    assert left is not None
    assert (left.open, left.tasks, left.submitted_at) == ((1,), {"1": "task-0"}, job.submitted_at)
    assert [bell.id for bell in await store.vacate(job.id)] == ["job_001"]
    assert await store.remains(job.id) is None
    assert await store.vacate(job.id) == ()


async def test_a_deleted_job_leaves_a_tombstone_and_objects_to_erase(store: Store) -> None:
    job = await submitted(store, 0)
    job = await happens(store, job.id, e.Moderated(attempt=1), e.SidecarWritten())
    assert await store.bury(job, busy_s=60) is Outcome.BURIED
    assert await store.get(job.id) is None
    assert await store.buried_by(job.id) == "alice"
    assert [(bell.queue, bell.id) for bell in await store.ripen({"erase": 9}, again_s=0)] == [("erase", job.id)]


async def test_scripts_that_redis_forgot_are_sent_again(on_valkey: Store, connection: AsyncRedis) -> None:
    await on_valkey.create(order(0))
    await connection.script_flush()
    assert (await on_valkey.create(order(1))).outcome is Outcome.CREATED


async def test_without_replicas_to_confirm_a_create_is_refused_but_known(make: Make) -> None:
    store = make(Limits(replicas=1, replicas_timeout_s=0.05))
    with pytest.raises(Unconfirmed):
        await store.create(order(0))
    assert await store.get("job_000") is not None


async def test_every_flipped_byte_of_a_record_is_noticed(on_valkey: Store, connection: AsyncRedis) -> None:
    job = await submitted(on_valkey, 0)
    flat: Any = await connection.hgetall("dr1:job:job_000")
    for name, value in flat.items():
        if name in {b"sum", b"schema"} or not value:
            continue
        flipped = bytes([value[0] ^ 1]) + value[1:]
        await connection.hset("dr1:job:job_000", name, flipped)
        with pytest.raises(record.CorruptRecord):
            await on_valkey.get(job.id)
        await connection.hset("dr1:job:job_000", name, value)
    assert await on_valkey.get(job.id) == job


async def test_events_are_told_in_order_with_who_and_why(store: Store) -> None:
    job = await submitted(store, 0)
    told = [(entry.data["status"], entry.data["reason"], entry.data["by"]) for entry in await store.log(job.id)]
    expected = [("queued", "created"), ("submitting", "intended"), ("generating", "accepted")]
    assert told == [(*each, "test") for each in expected]
    assert [entry.eid for entry in await store.events("0-0")] == [entry.eid for entry in await store.log(job.id)]


async def test_pages_are_newest_first_and_know_their_caller(store: Store) -> None:
    for number in range(5):
        await store.create(order(number, caller="alice" if number % 2 else "bob"))
    assert [job.id for job in await store.page(caller="bob", limit=2)] == ["job_004", "job_002"]
    assert [job.id for job in await store.page(caller="bob", limit=2, before="job_002")] == ["job_000"]
    assert [job.id for job in await store.page(caller=None)] == [f"job_{n:03}" for n in (4, 3, 2, 1, 0)]


# ---- spools ----------------------------------------------------------------------------------------------------------

SOON_MS = 60_000


async def collecting(store: Store, number: int, life_ms: int = 600_000) -> Job:
    """A job whose image waits at a URL with so much of its life left."""
    job = await submitted(store, number)
    expires_at = await store.now_ms() + life_ms
    ready = e.Ready(attempt=1, provider_id=f"task-{number}", url="https://x/y", expires_at=expires_at)
    return await happens(store, job.id, ready)


async def spooled(store: Store, number: int, life_ms: int = 600_000) -> Job:
    """A job whose image lies in the spool of this handle, which has beaten just now."""
    job = await collecting(store, number, life_ms)
    await store.tend()
    return await happens(store, job.id, e.Spooled(spool=str(store.spool), delay_s=0))


async def claimed(store: Store, bell: str = "job_000") -> str | None:
    claim, _ = await store.claim(Queue.COLLECT, bell, HOUR_S)
    return claim.job.id if claim else None


async def test_a_job_in_another_living_spool_is_left_to_it(make: Make) -> None:
    alice, bob = make(LIMITS, "a"), make(LIMITS, "b")
    await spooled(alice, 0)
    assert await claimed(bob) is None
    assert await claimed(make(LIMITS)) is None, "nor is it for one without a spool"
    assert await claimed(alice) == "job_000"


async def test_any_bell_brings_a_process_to_what_lies_in_its_own_spool(make: Make) -> None:
    alice = make(LIMITS, "a")
    await spooled(alice, 0)
    assert await claimed(alice, "job_999") == "job_000"


async def test_what_lies_in_no_spool_is_pulled_first_and_of_that_what_dies_first(make: Make) -> None:
    alice = make(Limits(max_in_flight=9), "a")
    await spooled(alice, 0, life_ms=1_000)
    for number, life_ms in ((1, 300_000), (2, 100_000), (3, 200_000)):
        await collecting(alice, number, life_ms)
    assert [await claimed(alice) for _ in range(4)] == ["job_002", "job_003", "job_001", "job_000"]


@pytest.mark.parametrize(
    ("silence", "life_ms", "given"),
    [
        ({"spool_stopped_s": HOUR_S}, SOON_MS, False),
        ({"spool_stopped_s": 0}, SOON_MS, True),
        ({"spool_stopped_s": 0}, 600_000, False),
        ({"spool_stopped_s": 0}, -1, False),
        ({"spool_stopped_s": 0, "spool_lost_s": 0}, -1, True),
        ({"spool_stopped_s": 0, "spool_lost_s": 0}, 600_000, True),
    ],
    ids=["beating", "stopped, URL dying", "stopped, URL living", "stopped, URL dead", "lost, URL dead", "lost"],
)
async def test_a_silent_spool_is_waited_for_until_it_is_lost_or_its_url_is_about_to_die(
    make: Make, silence: dict[str, float], life_ms: int, given: bool
) -> None:
    await spooled(make(LIMITS, "a"), 0, life_ms)
    bob = make(Limits(max_in_flight=2, **silence), "b")  # type: ignore[arg-type]  # floats all
    assert (await claimed(bob) == "job_000") == given


async def test_a_spool_that_never_beat_is_lost(make: Make) -> None:
    job = await collecting(make(LIMITS, "a"), 0)
    await happens(make(LIMITS, "a"), job.id, e.Spooled(spool="never", delay_s=0))
    assert await claimed(make(LIMITS, "b")) == "job_000"
    assert await make(LIMITS).silence_s("never") > 1e6


async def test_whoever_claims_shows_that_he_serves_his_spool(make: Make) -> None:
    alice = make(LIMITS, "a")
    await collecting(alice, 0)
    assert await claimed(alice) == "job_000"
    assert await alice.silence_s("a") < HOUR_S


async def test_jobs_in_a_stopped_spool_hide_nothing_that_can_be_done(make: Make) -> None:
    many = Limits(max_in_flight=0)
    alice, bob = make(many, "a"), make(Limits(max_in_flight=0, spool_stopped_s=0), "b")
    for number in range(1, 251):
        await spooled(alice, number, life_ms=300_000)
    await collecting(alice, 0, life_ms=600_000)
    assert await claimed(bob, "job_001") == "job_000", "a bell for one of them brings it to what it can do"
    assert await claimed(bob, "job_001") is None
    bells = await bob.ripen({"collect": 500}, again_s=0)
    assert "job_001" not in [bell.id for bell in bells], "nor is it rung for again at once"


async def test_a_cancelled_or_late_job_is_ended_by_anybody(make: Make) -> None:
    alice, bob = make(LIMITS, "a"), make(LIMITS, "b")
    job = await spooled(alice, 0)
    await happens(alice, job.id, e.CancelAsked())
    assert await claimed(bob) == job.id


async def test_a_sealed_job_lies_in_no_spool(make: Make) -> None:
    alice, bob = make(LIMITS, "a"), make(LIMITS, "b")
    job = await spooled(alice, 0)
    sealed = await happens(alice, job.id, e.Sealed(image=IMAGE))
    assert sealed.spool is None
    assert await claimed(bob) == job.id


async def test_a_fresh_url_makes_a_job_everybodys_again(make: Make) -> None:
    alice, bob = make(LIMITS, "a"), make(LIMITS, "b")
    job = await spooled(alice, 0)
    await happens(alice, job.id, e.Refreshed(url="https://x/z", expires_at=await alice.now_ms() + SOON_MS))
    assert await claimed(bob, "job_999") == job.id


async def test_submissions_pause_for_want_of_storage_until_it_is_over_by_itself(make: Make) -> None:
    store = make(LIMITS)
    await store.hold("storage", HOUR_S)
    assert not (await store.create(order(0))).bells
    assert await admitted(store) == []
    figures = await store.figures()
    assert (set(figures.closed), figures.slots) == ({"storage"}, 0)
    await store.hold("storage", 1.0)
    assert (await store.figures()).storage_s > 1, "a shorter hold does not end a longer one"


async def test_a_hold_that_is_over_lets_the_next_one_through(make: Make) -> None:
    store = make(LIMITS)
    await store.hold("storage", 0.0)
    assert (await store.create(order(0))).bells
    assert not (await store.figures()).closed


async def test_a_hold_for_want_of_storage_hides_no_other_reason(make: Make) -> None:
    store = make(LIMITS)
    await store.create(order(0))
    await store.hold("storage", HOUR_S)
    await happens(store, "job_000", e.Intended(attempt=1, delay_s=HOUR_S), e.Held(attempt=1, detail="402"))
    assert (await store.figures()).closed == {"held", "storage"}


async def test_images_that_wait_at_their_urls_for_long_are_counted_but_not_spooled_ones(make: Make) -> None:
    alice = make(Limits(max_in_flight=9), "a")
    for number in range(3):
        await collecting(alice, number)
    for number in range(3, 6):
        await spooled(alice, number)
    assert await alice.behind(-1, 3) == 3
    assert await alice.behind(-1, 4) == 0, "fewer than asked for are not worth a look"
    assert await alice.behind(HOUR_S, 3) == 0
