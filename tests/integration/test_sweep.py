"""The sweep, round by round: what it rings for, what it clears away, what it forgets."""

import asyncio
import time

import pytest

from service.domain import events, layout
from service.domain.job import Job, Queue
from service.secret import Secret
from service.storage.store import PREFIX
from tests.cutting_proxy import CuttingProxy
from tests.steps import HOUR_S, Bench, Steps, comes, order_of
from workers.sweep import QUEUE_MOST

pytest_plugins = ["tests.fixtures_steps"]
pytestmark = [pytest.mark.anyio, pytest.mark.processes]

NOWHERE = "http://127.0.0.1:9"
RUNG_WITHIN_S = 10.0


async def bell_lost(at: Steps, job_id: str) -> None:
    """It went out long ago, and nobody has come."""
    await at.house.redis.zadd(f"{PREFIX}rung", {f"job:{job_id}": 1})


async def due(at: Steps, member: str) -> bool:
    return await at.house.redis.zscore(f"{PREFIX}due", member) is not None


async def done(bench: Bench, at: Steps) -> Job:
    """A job that has succeeded, with an input."""
    order = order_of("a lighthouse")
    bench.put(layout.input_key(order.id, "image_prompt.png"), b"input")
    await at.house.desk.store.create(order)
    await at.submit(order.id)
    bench.finish()
    await at.hasten(order.id)
    await at.collect(order.id)
    job = await at.collect(order.id)
    assert job.status == "succeeded"
    return job


def objects(bench: Bench, job: Job) -> int:
    keys = [*layout.image_keys(job.id), layout.sidecar_key(job.id), layout.inputs_prefix(job.id)]
    return sum(len(bench.keys(key)) for key in keys)


# ---- bells ---------------------------------------------------------------------------------------------------------


async def test_a_job_whose_bell_was_lost_is_rung_for(bench: Bench) -> None:
    async with bench.steps() as at:
        job_id = await at.new("a lighthouse")
        await at.house.sweep.round()
        assert await at.bells(Queue.SUBMIT) == 0, "its bell has only just gone out"
        await bell_lost(at, job_id)
        await at.house.sweep.round()
        assert await at.bells(Queue.SUBMIT) == 1


async def test_each_job_is_rung_for_in_the_queue_of_its_next_step(bench: Bench) -> None:
    async with bench.steps() as at:
        bought, fresh = await at.bought(), await at.new("another")
        await bell_lost(at, fresh)
        await at.house.sweep.round()
        assert (await at.bells(Queue.SUBMIT), await at.bells(Queue.COLLECT)) == (1, 1)
        assert bought != fresh


async def test_a_job_that_a_worker_holds_is_not_rung_for(bench: Bench) -> None:
    async with bench.steps() as at:
        job_id = await at.new("a lighthouse")
        assert (await at.house.desk.store.claim(Queue.SUBMIT, job_id, HOUR_S))[0]
        await bell_lost(at, job_id)
        await at.house.sweep.round()
        assert await at.bells(Queue.SUBMIT) == 0
        await at.hasten(job_id)
        await at.house.sweep.round()
        assert await at.bells(Queue.SUBMIT) == 1, "its lease has run out: the worker is dead"


async def test_two_sweeps_at_once_ring_once(bench: Bench) -> None:
    async with bench.steps() as at, bench.steps() as other:
        for job_id in [await at.new(f"number {number}") for number in range(5)]:
            await bell_lost(at, job_id)
        await asyncio.gather(at.house.sweep.round(), other.house.sweep.round())
        await other.house.desk.drain()
        assert await at.bells(Queue.SUBMIT) == 5


async def test_a_queue_is_topped_up_to_its_bound_and_not_flooded(bench: Bench) -> None:
    async with bench.steps() as at:
        for job_id in [await at.new(f"number {number}") for number in range(3)]:
            await bell_lost(at, job_id)
        await at.house.redis.rpush(f"rq:queue:{Queue.SUBMIT}", *[f"bell {n}" for n in range(QUEUE_MOST - 1)])
        for _ in range(2):
            await at.house.sweep.round()
            assert await at.bells(Queue.SUBMIT) == QUEUE_MOST


async def test_ends_to_be_written_down_leave_room_for_polls(bench: Bench) -> None:
    async with bench.steps() as at:
        ended, bought = await at.bought(), await at.bought()
        await at.tell(ended, events.CancelAsked())
        assert await at.bells(Queue.COLLECT) == 1, "its own"
        await bell_lost(at, ended)
        await at.hasten(bought)
        await at.house.redis.rpush(f"rq:queue:{Queue.COLLECT}", *[f"bell {n}" for n in range(QUEUE_MOST - 2)])
        await at.house.sweep.round()
        rung = await at.house.redis.zrange(f"{PREFIX}rung", 0, -1)
        assert rung == [f"job:{bought}".encode()], "the last place is a poll's"
        await at.house.redis.ltrim(f"rq:queue:{Queue.COLLECT}", 2, -1)
        await at.house.sweep.round()
        assert await at.bells(Queue.COLLECT) == QUEUE_MOST - 1, "of two places one is an end's"


async def test_a_round_admits_jobs_when_the_gate_opens(bench: Bench) -> None:
    bench.turn(no_credits=1)
    async with bench.steps() as at:
        held = await at.submit(await at.new("held"))
        await at.new("waiting")
        await at.submit(held.id)  # it takes its place among those that wait
        await at.house.sweep.round()
        assert await at.bells(Queue.SUBMIT) == 0
        await at.open_gate()
        assert await at.bells(Queue.SUBMIT) == 1


async def test_the_loop_goes_on_when_redis_comes_back(bench: Bench) -> None:
    url = bench.stack.addresses.redis_url
    port = url.rpartition(":")[2].partition("/")[0]
    async with (
        CuttingProxy("127.0.0.1", int(port)) as way,
        bench.steps() as at,
        bench.steps(redis_url=Secret(url.replace(port, str(way.port))), sweep_interval_s=0.01) as cut_off,
    ):
        await way.refuse()
        sweeping = asyncio.create_task(cut_off.house.sweep.run())
        await bell_lost(at, await at.new("a lighthouse"))
        await way.accept()
        while await at.bells(Queue.SUBMIT) == 0:
            assert not sweeping.done()
        cut_off.house.sweep.stop()
        await sweeping


# ---- chores --------------------------------------------------------------------------------------------------------


async def test_inputs_of_a_job_that_was_never_created_are_cleared(bench: Bench) -> None:
    async with bench.steps() as at:
        order = order_of("a lighthouse")
        for name in ("input_image.png", "input_image_2.png"):
            bench.put(layout.input_key(order.id, name), b"input")
        await at.house.desk.store.plan("stage", order.id, 0)
        await at.house.sweep.round()
        assert bench.keys(layout.inputs_prefix(order.id)) == set()
        assert not await due(at, f"stage:{order.id}")


async def test_inputs_of_a_job_that_was_created_stay(bench: Bench) -> None:
    async with bench.steps() as at:
        job = await done(bench, at)
        await at.house.desk.store.plan("stage", job.id, 0)
        await at.house.sweep.round()
        assert len(bench.keys(layout.inputs_prefix(job.id))) == 1
        assert not await due(at, f"stage:{job.id}")


async def test_an_upload_that_is_under_way_is_left_alone(bench: Bench) -> None:
    async with bench.steps() as at:
        order = order_of("a lighthouse")
        bench.put(layout.input_key(order.id, "input_image.png"), b"input")
        await at.house.desk.store.plan("stage", order.id, HOUR_S)
        await at.house.sweep.round()
        assert len(bench.keys(layout.inputs_prefix(order.id))) == 1


async def test_a_deleted_job_leaves_no_object(bench: Bench) -> None:
    async with bench.steps() as at:
        job = await done(bench, at)
        assert objects(bench, job) == 3
        await at.house.desk.store.bury(job, busy_s=HOUR_S)
        await at.house.sweep.round()
        assert objects(bench, job) == 0
        assert not await due(at, f"erase:{job.id}")
        assert await at.house.desk.store.buried_by(job.id) == job.caller


async def test_a_deleted_job_gives_its_slot_back_when_its_task_is_over(bench: Bench) -> None:
    async with bench.steps() as at:
        job_id = await at.new("a lighthouse")
        await at.submit(job_id)
        await at.house.desk.tell(job_id, events.CancelAsked())
        await at.collect(job_id)
        await at.house.desk.store.bury(await at.job(job_id), busy_s=HOUR_S)
        await at.house.sweep.round()
        assert (await at.house.desk.store.figures()).slots == 1
        bench.finish()
        await at.house.redis.zadd(f"{PREFIX}due", {f"settle:{job_id}": 0}, xx=True)
        await at.house.redis.delete(f"{PREFIX}rung")
        await at.house.sweep.round()
        assert (await at.house.desk.store.figures()).slots == 0
        assert not await due(at, f"settle:{job_id}")


async def test_what_lands_late_of_a_deleted_job_goes_too(bench: Bench) -> None:
    """Puts that were given up on, at a store that hung, and then went on."""
    async with bench.steps() as at:
        job = await done(bench, at)
        assert job.image
        kept = {key: bench.bytes(key) for key in (job.image.key, layout.sidecar_key(job.id))}
        await at.house.desk.store.bury(job, busy_s=HOUR_S)
        await at.house.sweep.round()
        assert objects(bench, job) == 0
        for key, data in kept.items():
            bench.put(key, data, **{"job-id": job.id})
        await at.house.redis.zadd(f"{PREFIX}due", {f"late:{job.id}": 0}, xx=True)
        await at.house.sweep.round()
        assert objects(bench, job) == 0
        assert not await due(at, f"late:{job.id}")


async def test_a_chore_waits_for_a_store_that_is_away(bench: Bench) -> None:
    async with bench.steps() as at, bench.steps(s3_endpoint_url=NOWHERE) as cut_off:
        job = await done(bench, at)
        await at.house.desk.store.bury(job, busy_s=HOUR_S)
        await cut_off.house.sweep.round()
        assert objects(bench, job) == 3
        assert await due(at, f"erase:{job.id}")
        await at.house.desk.store.plan("erase", job.id, 0)
        await at.house.redis.delete(f"{PREFIX}rung")
        await at.house.sweep.round()
        assert objects(bench, job) == 0


async def test_a_store_that_hangs_keeps_nobody_from_being_rung_for(bench: Bench) -> None:
    store_port = int(bench.stack.addresses.s3_endpoint_url.rpartition(":")[2])
    async with (
        CuttingProxy("127.0.0.1", store_port) as way,
        bench.steps() as at,
        bench.steps(s3_endpoint_url=way.url, sweep_interval_s=0.01) as slow,
    ):
        for number in range(5):  # one after the other they would hang for minutes
            await at.house.desk.store.plan("erase", order_of(f"deleted {number}").id, 0)
        way.stall()
        sweeping = asyncio.create_task(slow.house.sweep.run())
        await comes(lambda: way.connections > 0)
        await bell_lost(at, await at.new("a lighthouse"))
        until_s = time.monotonic() + RUNG_WITHIN_S  # not asyncio.timeout: redis-py may lose its cancellation
        while await at.bells(Queue.SUBMIT) == 0:
            assert time.monotonic() < until_s, "nobody was rung for"
            assert not sweeping.done()
        way.resume()
        slow.house.sweep.stop()
        await sweeping


async def test_inputs_of_a_job_whose_record_is_damaged_stay_and_stop_no_sweep(bench: Bench) -> None:
    async with bench.steps() as at:
        job = await done(bench, at)
        await at.house.redis.hset(f"{PREFIX}job:{job.id}", "body", "{")
        await at.house.desk.store.plan("stage", job.id, 0)
        await at.house.sweep.round()
        assert len(bench.keys(layout.inputs_prefix(job.id))) == 1


# ---- forgetting ----------------------------------------------------------------------------------------------------


async def test_a_record_past_its_retention_is_forgotten_and_the_bucket_keeps_its_own(bench: Bench) -> None:
    async with bench.steps() as at, bench.steps(job_retention_days=0) as later:
        job = await done(bench, at)
        await at.house.sweep.round()
        assert await at.house.desk.store.get(job.id)
        await later.house.sweep.round()
        assert await at.house.desk.store.get(job.id) is None
        assert objects(bench, job) == 3
        assert await at.house.redis.keys(f"{PREFIX}*{job.id}*") == []


async def test_hundreds_that_ended_long_ago_are_forgotten_in_two_rounds(bench: Bench) -> None:
    async with bench.steps() as at:
        await at.house.redis.zadd(f"{PREFIX}ended", {f"job_{number}": 1 for number in range(350)})
        await at.house.sweep.round()
        assert await at.house.redis.zcard(f"{PREFIX}ended") == 50
        await at.house.sweep.round()
        assert await at.house.redis.zcard(f"{PREFIX}ended") == 0


async def test_a_record_with_work_left_is_not_forgotten(bench: Bench) -> None:
    async with bench.steps() as at, bench.steps(job_retention_days=0) as later:
        job_id = await at.bought()
        await at.tell(job_id, events.CancelAsked())
        assert (await at.collect(job_id)).sidecar
        await later.house.sweep.round()
        assert (await at.job(job_id)).open == (1,), "its slot is not back"
