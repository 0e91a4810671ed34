"""Records that cannot be read: each is found, ends by itself, and harms no other (F15, F67)."""

import random
from typing import Any

import pytest

from service.clock import SystemClock
from service.domain import events as e
from service.domain.errors import ErrorCode
from service.domain.job import Job, Queue, Status
from service.domain.lifecycle import decide
from service.storage import record
from service.storage.connection import AsyncRedis
from service.storage.desk import NEWER_AGAIN_S, Desk
from service.storage.store import Store
from service.storage.terms import Limits, Outcome
from workers.close import sidecar

pytestmark = pytest.mark.anyio

HOUR_S = 3600.0
JOBS = 200


class Rung:
    """Hears bells, and rings none."""

    def __init__(self) -> None:
        self.bells: list[tuple[str, str]] = []

    async def ring(self, rings: Any) -> None:
        self.bells += rings


@pytest.fixture
def desk(connection: AsyncRedis) -> Desk:
    return Desk(Store(connection, Limits(max_in_flight=0), actor="test"), Rung(), SystemClock())


async def ordered(desk: Desk, number: int) -> str:
    job_id = f"job_{number:03}"
    request = {"prompt": f"caf\u00e9 number {number}", "seed": number}
    await desk.store.create(Job(id=job_id, caller="alice", model="flux-dev", request=request, metadata={"n": "1"}))
    return job_id


async def generating(desk: Desk, number: int) -> str:
    job_id = await ordered(desk, number)
    await desk.tell(job_id, e.Intended(attempt=1, delay_s=HOUR_S))
    await desk.tell(job_id, e.TaskAccepted(attempt=1, provider_id=f"task-{number}", cost=4.0, delay_s=0.0))
    return job_id


async def damage(redis: AsyncRedis, job_id: str, dice: random.Random) -> str:
    """Flip a bit of one byte somewhere in the record: of a field's value, its checksum and its schema not spared."""
    key = f"dr1:job:{job_id}"
    fields: Any = await redis.hgetall(key)
    name, at = dice.choice([(name, at) for name, value in fields.items() for at in range(len(value))])
    flipped = bytearray(fields[name])
    flipped[at] ^= 1 << dice.randrange(8)
    await redis.hset(key, name, bytes(flipped))
    return f"{name.decode()}[{at}]"


async def step(desk: Desk, job_id: str) -> Job | None:
    """What a worker of either queue is given when it is rung for the job."""
    for queue in Queue:
        claim = await desk.claim(queue, job_id, HOUR_S)
        if claim is not None:
            return claim.job
    return None


async def test_of_two_hundred_damaged_records_each_is_found_and_no_neighbour_is_harmed(
    desk: Desk, connection: AsyncRedis
) -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    dice = random.Random(seed)
    made = [await (generating if number % 2 else ordered)(desk, number) for number in range(2 * JOBS)]
    bad = set(dice.sample(made, JOBS))
    before = {job_id: await desk.store.get(job_id) for job_id in made}
    where = {job_id: await damage(connection, job_id, dice) for job_id in bad}
    given = {job_id: await step(desk, job_id) for job_id in made}
    for job_id in made:
        job = await desk.store.get(job_id)
        assert job is not None
        if job_id in bad:
            assert given[job_id] in (None, job), where[job_id]
            assert (job.status, job.reason) == (Status.FAILED, "corrupt"), where[job_id]
            assert job.error is not None
            assert job.error.code is ErrorCode.RECORD_CORRUPT
            assert job.caller == "alice", "its log knows"
            assert sidecar(job)
        else:
            assert given[job_id] == job == before[job_id]
    assert (await desk.store.figures()).counts["failed"] == JOBS
    assert len(await desk.store.page(caller="alice", limit=1000)) == 2 * JOBS


async def test_a_condemned_job_is_rung_for_and_ends_with_its_sidecar(desk: Desk, connection: AsyncRedis) -> None:
    job_id = await generating(desk, 1)
    await connection.hset(f"dr1:job:{job_id}", "model", "flux-pro")
    job = await step(desk, job_id) or await step(desk, job_id)
    assert job is not None
    assert (job.ended, job.sidecar, job.scrub, job.open) == (True, False, True, ())
    assert job.tasks == {"1": "task-1"}, "what was paid stays to be read"
    assert (await desk.store.figures()).slots == 0
    assert (await desk.tell(job_id, e.SidecarWritten())).changed
    assert await connection.zscore("dr1:due", f"job:{job_id}") is None


async def test_what_a_damaged_record_was_is_kept_aside(desk: Desk, connection: AsyncRedis) -> None:
    job_id = await ordered(desk, 1)
    await connection.hset(f"dr1:job:{job_id}", "body", "{")
    was: Any = await connection.hgetall(f"dr1:job:{job_id}")
    await desk.store.condemn(job_id)
    assert await connection.hgetall(f"dr1:corrupt:{job_id}") == was
    assert await connection.pttl(f"dr1:corrupt:{job_id}") > 0
    [*_, told] = await desk.store.log(job_id)
    assert (told.data["status"], told.data["from"], told.data["reason"]) == ("failed", "queued", "corrupt")


async def test_a_record_that_was_damaged_after_it_was_read_is_not_sealed_anew(
    desk: Desk, connection: AsyncRedis
) -> None:
    job_id = await generating(desk, 1)
    job = await desk.store.get(job_id)
    assert job is not None
    change = decide(job, e.CancelAsked())
    assert change is not None
    await connection.hset(f"dr1:job:{job_id}", "caller", "mallory")
    with pytest.raises(record.CorruptRecord):
        await desk.store.apply(change, "late00000001")


async def test_a_sound_record_is_not_condemned(desk: Desk) -> None:
    job_id = await ordered(desk, 1)
    before = await desk.store.get(job_id)
    assert (await desk.store.condemn(job_id)).outcome is Outcome.STALE
    assert (await desk.store.condemn("job_none")).outcome is Outcome.GONE
    assert await desk.store.get(job_id) == before


async def test_a_finished_job_whose_record_is_damaged_goes_and_leaves_its_sidecar_to_speak(
    desk: Desk, connection: AsyncRedis
) -> None:
    job_id = await generating(desk, 1)
    for event in (e.Moderated(attempt=1), e.SidecarWritten()):
        assert (await desk.tell(job_id, event)).changed
    await connection.hset(f"dr1:job:{job_id}", "caller", "mallory")
    assert (await desk.store.condemn(job_id)).outcome is Outcome.BURIED
    assert await desk.store.get(job_id) is None
    assert await connection.zrange("dr1:jobs@alice", 0, -1) == []


async def test_a_record_of_a_newer_release_is_left_alone_and_rung_again_later(
    desk: Desk, connection: AsyncRedis
) -> None:
    job_id, neighbour = await ordered(desk, 1), await ordered(desk, 2)
    key, newer = f"dr1:job:{job_id}", record.SCHEMA + 1
    await connection.hset(key, mapping={"schema": newer, "fashion": "new", "sum": f"{newer}:of what we know not"})
    was = await connection.hgetall(key)
    assert await step(desk, job_id) is None
    with pytest.raises(record.NewerRecord):
        await desk.store.condemn(job_id)
    assert await connection.hgetall(key) == was
    due, now = await connection.zscore("dr1:due", f"job:{job_id}"), await desk.store.now_ms()
    assert due is not None
    assert 0 < due - now <= NEWER_AGAIN_S * 1000
    assert await step(desk, neighbour)


async def test_a_damaged_job_gives_back_its_slot_under_a_cap_that_is_no_more(
    desk: Desk, connection: AsyncRedis
) -> None:
    before = Store(connection, Limits(max_in_flight=0, caps={"flux-dev": 1}), actor="test")
    for number in range(2):
        await before.create(Job(id=f"job_{number:03}", caller="alice", model="flux-dev", request={"prompt": "a"}))
    for job_id in ("job_000", "job_001"):
        await connection.hset(f"dr1:job:{job_id}", "body", "{")
        assert (await desk.store.condemn(job_id)).outcome is Outcome.CONDEMNED
    assert await connection.keys("dr1:slots:*") + await connection.keys("dr1:wait:*") == []
