"""Suspects: who is one, who may run it, and what becomes of it. Told of the store alone; nothing crashes here."""

from collections.abc import Callable
from typing import Any

import pytest

from service.domain import events as e
from service.domain.job import Job, Queue
from service.domain.lifecycle import decide
from service.storage.connection import AsyncRedis
from service.storage.quarantine import Crashed, Group
from service.storage.store import Store
from service.storage.terms import Claim, Limits, Suspicion

pytestmark = pytest.mark.anyio

HOUR_S = 3600.0
LONGER_THAN_A_LEASE_S = 2 * HOUR_S  # a wait that ends with the lease, to the millisecond, would be taken for it
NOW_S = 0.0  # as a time after which a process is lost: whoever has not beaten since is dead
Make = Callable[[str], Store]


@pytest.fixture
def make(connection: AsyncRedis) -> Make:
    """A process's own handle on the store, by the process's name."""
    return lambda uid: Store(connection, Limits(max_in_flight=0), actor=uid, uid=uid)


@pytest.fixture
def here(make: Make) -> Store:
    return make("here")


@pytest.fixture
def there(make: Make) -> Store:
    """The process that dies."""
    return make("there")


async def held(store: Store, *numbers: int) -> list[str]:
    """New jobs in a process's hands."""
    ids = [f"job_{number:03}" for number in numbers]
    for job_id in ids:
        await store.create(Job(id=job_id, caller="alice", model="flux-dev", request={"prompt": "a"}))
        assert (await store.claim(Queue.SUBMIT, job_id, HOUR_S))[0]
    return ids


async def happens(store: Store, job_id: str, event: e.Event) -> None:
    job = await store.get(job_id)
    assert job is not None
    change = decide(job, event)
    assert change is not None
    await store.apply(change, f"{job.version:012}")


async def runs_out(connection: AsyncRedis, *ids: str) -> None:
    """Of the process `there`: its leases on these jobs."""
    await connection.zadd("dr1:due", {f"job:{job_id}": 0 for job_id in ids})
    await connection.hset("dr1:inflight:there", mapping=dict.fromkeys(ids, 0))


async def claim(store: Store, job_id: str, alone: str | None = None, queue: Queue = Queue.SUBMIT) -> Claim | None:
    return (await store.claim(queue, job_id, HOUR_S, alone=alone))[0]


async def isolated(store: Store) -> Group:
    group = await store.quarantine.isolate(HOUR_S)
    assert group is not None
    return group


async def crashed(store: Store, job_id: str) -> Crashed | None:
    """The verdict on a process that had this suspect in its hands."""
    group = await isolated(store)
    assert await claim(store, job_id, alone=group.id)
    return await store.quarantine.blame(group, [0], again_s=0)


async def rung(store: Store) -> list[str]:
    return [bell.id for bell in await store.ripen({"submit": 100, "collect": 100}, again_s=0)]


async def test_what_a_dead_process_had_in_flight_is_one_group_and_due_at_once(here: Store, there: Store) -> None:
    ids = await held(there, 1, 2, 3)
    assert await here.quarantine.reap(NOW_S) == ("there",)
    group = await isolated(here)
    assert sorted(group.jobs) == ids
    assert await here.quarantine.isolate(HOUR_S) is None, "it is in our hands"
    assert await here.quarantine.reap(NOW_S) == (), "forgotten"


async def test_suspects_are_given_to_who_names_their_group_and_to_nobody_else(here: Store, there: Store) -> None:
    [suspect] = await held(there, 1)
    await here.create(Job(id="job_002", caller="bob", model="flux-dev", request={"prompt": "a"}))
    await here.quarantine.reap(NOW_S)
    group = await isolated(here)
    assert await rung(here) == ["job_002"]
    assert await claim(here, suspect) is None
    assert await claim(here, suspect, alone="another") is None
    assert await claim(here, "job_002", alone=group.id) is None
    taken = await claim(here, suspect, alone=group.id)
    assert taken is not None
    assert await here.renew(suspect, taken.lease_end, HOUR_S, alone=group.id)


async def test_a_process_that_beats_and_one_that_took_its_leave_make_nobody_suspect(here: Store, there: Store) -> None:
    await held(there, 1)
    await there.quarantine.beat()
    assert await here.quarantine.reap(HOUR_S) == ()
    await there.quarantine.leave()
    assert await here.quarantine.reap(NOW_S) == ()
    assert await here.quarantine.isolate(HOUR_S) is None


async def test_a_step_that_has_ended_is_not_in_flight(here: Store, there: Store) -> None:
    first, second = await held(there, 1, 2)
    await there.release(first)
    await here.quarantine.reap(NOW_S)
    assert (await isolated(here)).jobs == (second,)


async def test_while_nobody_could_look_nobody_is_taken_for_dead(here: Store, there: Store, make: Make) -> None:
    await held(there, 1)
    assert await make("first look").quarantine.reap(60.0) == (), "however old the beat: looking has only begun"


async def test_an_outcome_that_is_awaited_stays_awaited_and_only_its_repetition_is_suspect(
    here: Store, there: Store, connection: AsyncRedis
) -> None:
    [job_id] = await held(there, 1)
    await happens(there, job_id, e.Intended(attempt=1, delay_s=LONGER_THAN_A_LEASE_S))
    due = await connection.zscore("dr1:due", f"job:{job_id}")
    await here.quarantine.reap(NOW_S)
    assert await connection.zscore("dr1:due", f"job:{job_id}") == due, "nobody posts it again before its time"
    assert await here.quarantine.isolate(HOUR_S) is None
    await connection.zadd("dr1:due", {f"job:{job_id}": 0})
    assert await claim(here, job_id) is None
    assert (await isolated(here)).jobs == (job_id,)


async def test_what_is_submitted_again_after_its_wait_is_one_group(
    here: Store, there: Store, connection: AsyncRedis
) -> None:
    first, second, third = ids = await held(there, 1, 2, 3)
    for job_id in ids:
        await happens(there, job_id, e.Intended(attempt=1, delay_s=LONGER_THAN_A_LEASE_S))
    await here.quarantine.reap(NOW_S)
    await connection.zadd("dr1:due", {f"job:{first}": 0, f"job:{third}": 0})
    assert await claim(here, first) is None
    assert sorted((await isolated(here)).jobs) == [first, third], "a process for each would cost seconds each"
    assert await connection.hget("dr1:suspects", second) == b"submit", "its outcome may still be told"


async def test_a_callback_frees_a_submission_that_was_in_flight(here: Store, there: Store) -> None:
    [job_id] = await held(there, 1)
    await happens(there, job_id, e.Intended(attempt=1, delay_s=LONGER_THAN_A_LEASE_S))
    await here.quarantine.reap(NOW_S)
    await happens(here, job_id, e.Ready(attempt=1, provider_id="task", url="https://x/y"))
    assert await claim(here, job_id, queue=Queue.COLLECT)


async def test_who_ends_well_apart_is_cleared_at_once_and_the_rest_with_the_process(here: Store, there: Store) -> None:
    first, second = await held(there, 1, 2)
    await here.quarantine.reap(NOW_S)
    group = await isolated(here)
    assert await claim(here, first, alone=group.id)
    await here.release(first, alone=group.id)
    assert await claim(here, second) is None
    await here.quarantine.clear(group)
    assert await claim(here, second)


async def test_each_crash_halves_the_group_and_spares_who_had_ended(here: Store, there: Store) -> None:
    ids = await held(there, *range(5))
    await here.quarantine.reap(NOW_S)
    group = await isolated(here)
    for job_id in ids:
        assert await claim(here, job_id, alone=group.id)
    await here.release(ids[0], alone=group.id)
    assert await here.quarantine.blame(group, [HOUR_S], again_s=0) is None
    halves = [await isolated(here), await isolated(here)]
    assert [sorted(half.jobs) for half in halves] == [ids[1:3], ids[3:]]
    assert await here.quarantine.isolate(HOUR_S) is None


async def test_crashes_alone_are_counted_and_each_waits(here: Store, there: Store, connection: AsyncRedis) -> None:
    [job_id] = await held(there, 1)
    await here.quarantine.reap(NOW_S)
    for times in (1, 2, 3):
        group = await isolated(here)
        assert group.crashes == times - 1
        assert await claim(here, job_id, alone=group.id)
        assert await here.quarantine.blame(group, [HOUR_S, 2 * HOUR_S], again_s=0) == Crashed(job_id, times)
        assert await here.quarantine.isolate(HOUR_S) is None, "not before its wait is over"
        for name in ("groups", "due"):
            rows: Any = await connection.zrange(f"dr1:{name}", 0, 0, withscores=True)
            [(member, at)] = rows
            wait_s = (at - await here.now_ms()) / 1000
            assert times == 3 or HOUR_S * times - 60 < wait_s <= HOUR_S * times, name
            await connection.zadd(f"dr1:{name}", {member: 0})
    await here.quarantine.acquit(job_id)
    assert await here.quarantine.isolate(HOUR_S) is None
    assert await claim(here, job_id)


async def test_suspects_are_counted_and_a_job_says_that_it_is_one(here: Store, there: Store) -> None:
    first, second = await held(there, 1, 2)
    assert ((await here.figures()).suspects, await here.suspicion(first)) == (Suspicion(), None)
    await here.quarantine.reap(NOW_S)
    assert ((await here.figures()).suspects, await here.suspicion(first)) == (Suspicion(jobs=2, groups=1), 0)
    assert await crashed(here, second) is None, "halved"
    assert (await here.figures()).suspects == Suspicion(jobs=2, groups=2)
    assert await crashed(here, first) == Crashed(first, 1)
    assert ((await here.figures()).suspects.crashes_most, await here.suspicion(first)) == (1, 1)
    for _ in range(2):
        await here.quarantine.clear(await isolated(here))
    assert ((await here.figures()).suspects, await here.suspicion(first)) == (Suspicion(), None)


async def test_a_process_that_crashes_before_it_takes_a_job_accuses_none(here: Store, there: Store) -> None:
    """An installation that is being replaced, say: no job is poisoned by what never ran it."""
    [job_id] = await held(there, 1)
    await here.quarantine.reap(NOW_S)
    for _ in range(5):
        assert await here.quarantine.blame(await isolated(here), [0], again_s=0) is None
    assert await crashed(here, job_id) == Crashed(job_id, 1)


async def test_who_is_in_a_group_is_in_no_other(here: Store, there: Store, make: Make, connection: AsyncRedis) -> None:
    """The first was taken by another while its old lease ran; then both processes let everything run out."""
    first, second = await held(there, 1, 2)
    await connection.zadd("dr1:due", {f"job:{first}": 0})
    assert await claim(make("another"), first)
    await connection.hset("dr1:inflight:another", first, "0")
    await runs_out(connection, first, second)
    assert await claim(here, first) is None
    assert await claim(here, second) is None
    assert [(await isolated(here)).jobs for _ in range(2)] == [(first,), (second,)]


async def test_a_good_end_forgets_the_crashes(here: Store, there: Store, make: Make) -> None:
    [job_id] = await held(there, 1)
    await here.quarantine.reap(NOW_S)
    assert await crashed(here, job_id) == Crashed(job_id, 1)
    await here.quarantine.clear(await isolated(here))
    assert await claim(make("another"), job_id)
    await here.quarantine.reap(NOW_S)
    assert await crashed(here, job_id) == Crashed(job_id, 1)


async def test_a_group_whose_keeper_died_is_taken_by_the_next_who_judges_alone(
    here: Store, there: Store, make: Make
) -> None:
    [job_id] = await held(there, 1)
    await here.quarantine.reap(NOW_S)
    lost = await here.quarantine.isolate(NOW_S)
    assert lost is not None
    assert await claim(here, job_id, alone=lost.id)
    group = await isolated(make("another"))
    assert group.jobs == (job_id,)
    assert await claim(here, job_id, alone=group.id), "the dead one's lease on the job is over"
    assert await here.quarantine.keep(lost, HOUR_S) is None
    assert await here.quarantine.blame(lost, [0], again_s=0) is None, "a verdict that comes too late is none"
    await here.quarantine.clear(lost)
    assert await claim(here, job_id) is None, "still a suspect"


async def test_a_job_that_takes_the_keeper_with_it_is_judged_all_the_same(here: Store, there: Store) -> None:
    """A container whose memory has run out is ended as a whole: the child, and who would have told of its crash."""
    [job_id] = await held(there, 1)
    await here.quarantine.reap(NOW_S)
    for times in (1, 2):
        for _ in range(2):
            assert await here.quarantine.bereave([0, 0], most=3) is None
            lost = await here.quarantine.isolate(NOW_S)
            assert lost
            assert await claim(here, job_id, alone=lost.id)
        assert await here.quarantine.bereave([0, 0], most=3) is None, "twice may be chance"
        lost = await here.quarantine.isolate(NOW_S)
        assert lost
        assert lost.crashes == times - 1 + 2, "alone, and together with its keeper"
        assert await claim(here, job_id, alone=lost.id)
        assert await here.quarantine.bereave([0, 0], most=3) == Crashed(job_id, times)


async def test_a_keeper_that_dies_before_its_child_has_a_job_accuses_none(here: Store, there: Store) -> None:
    await held(there, 1)
    await here.quarantine.reap(NOW_S)
    for _ in range(5):
        assert await here.quarantine.isolate(NOW_S)
        assert await here.quarantine.bereave([0, 0], most=3) is None


async def test_a_group_that_is_given_back_accuses_none(here: Store, there: Store) -> None:
    [job_id] = await held(there, 1)
    await here.quarantine.reap(NOW_S)
    for _ in range(5):
        assert await here.quarantine.bereave([0, 0], most=1) is None
        group = await isolated(here)
        assert await claim(here, job_id, alone=group.id)
        await here.quarantine.give_back(group, 0)


async def test_a_deleted_job_is_no_suspect(here: Store, there: Store, connection: AsyncRedis) -> None:
    [job_id] = await held(there, 1)
    await happens(there, job_id, e.CancelAsked())
    await here.quarantine.reap(NOW_S)
    job = await here.get(job_id)
    assert job is not None
    await here.bury(job, busy_s=0)
    assert await connection.hgetall("dr1:suspects") == {}
    assert await here.quarantine.isolate(NOW_S) is None, "nor the last of a group"
    assert await connection.keys("dr1:group*") == [b"dr1:grouped"]


async def test_a_lease_that_ran_out_in_the_hands_of_another_is_suspect_before_anybody_misses_the_process(
    here: Store, there: Store, connection: AsyncRedis
) -> None:
    first, second, third = await held(there, 1, 2, 3)
    await runs_out(connection, first, second)
    assert await claim(here, first) is None
    assert sorted((await isolated(here)).jobs) == [first, second]
    assert await connection.hgetall("dr1:holders") == {third.encode(): b"there"}


async def test_who_let_its_own_lease_run_out_may_claim_again(there: Store, connection: AsyncRedis) -> None:
    [job_id] = await held(there, 1)
    await runs_out(connection, job_id)
    assert await claim(there, job_id)


async def test_a_callback_that_comes_before_its_submission_has_ended_makes_nobody_suspect(
    here: Store, there: Store
) -> None:
    early, later = await held(there, 1, 2)
    for job_id in (early, later):
        await happens(there, job_id, e.Intended(attempt=1, delay_s=LONGER_THAN_A_LEASE_S))
    await happens(here, early, e.Ready(attempt=1, provider_id="task", url="https://x/y"))
    assert await claim(here, early, queue=Queue.COLLECT), "a process of its own would cost seconds"
    await here.release(early)
    await here.quarantine.reap(NOW_S)
    assert await here.quarantine.isolate(HOUR_S) is None, "not when its submitter is found dead, either"
