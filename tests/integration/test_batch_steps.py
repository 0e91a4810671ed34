"""A batch step by step: from lines to a marker, over a real Redis, a real bucket and the rehearsal provider."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from service.domain import events as e
from service.domain import layout
from service.domain.batch import Batch, BatchStatus
from service.domain.job import Job, Queue, Status
from service.domain.successor import successor
from service.intake import CLEARED_MOST, Intake, Upload
from service.storage.batches import Enrolled, Line
from service.storage.inputs import Inputs
from service.storage.objects import BucketUnavailable
from service.storage.store import PREFIX
from tests.steps import SIDE, Bench, Steps, order_of
from workers.batches import Binder, Terms

pytest_plugins = ["tests.fixtures_steps"]
pytestmark = [pytest.mark.anyio, pytest.mark.processes]

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


def lines(*prompts: str, **more: Any) -> list[bytes]:
    body = {"model": "flux-pro-1.1", "width": SIDE, "height": SIDE} | more
    return [json.dumps(body | {"prompt": prompt, "custom_id": prompt}).encode() for prompt in prompts]


async def begun(at: Steps, rows: Sequence[bytes], key: str | None = None) -> Upload:
    upload = await at.house.intake.begin("admin", key)
    assert isinstance(upload, Upload)
    for row in rows:
        await upload.add(row)
    return upload


async def sealed(at: Steps, rows: Sequence[bytes]) -> str:
    enrolled, batch_id = await (await begun(at, rows)).seal({"season": "spring"}, None)
    assert enrolled is Enrolled.ENROLLED
    return batch_id


async def retried(at: Steps, batch_id: str, job: Job) -> str:
    """A batch that retries this job of another one."""
    batches = at.house.desk.store.batches
    retry_id = layout.new_id("batch", 1_800_000_000_000, bytes(10))
    await batches.open(retry_id, "admin", None)
    assert await batches.stage_retries(retry_id, "admin", [job.id])
    await batches.enroll(Batch(retry_id, "admin", BatchStatus.RUNNING, total=1, retry_of=batch_id))
    return retry_id


async def looked_at(at: Steps, batch_id: str) -> Batch:
    """Its time has come, and what is due for it is done."""
    await at.house.redis.zadd(f"{PREFIX}due", {f"batch:{batch_id}": 0}, xx=True)
    await at.house.binder.run(batch_id)
    batch = await at.house.desk.store.batches.get(batch_id)
    assert batch is not None
    return batch


async def jobs_of(at: Steps, batch_id: str) -> list[Job]:
    store = at.house.desk.store
    return await store.several(await store.members(batch_id, None, 100))


async def through(bench: Bench, at: Steps, job: Job) -> None:
    """From the queue into the bucket."""
    while job.status is Status.QUEUED:
        await at.hasten(job.id)
        job = await at.submit(job.id)
    bench.finish()
    while not job.ended:
        await at.hasten(job.id)
        job = await at.collect(job.id)


def manifest(bench: Bench, batch_id: str) -> list[dict[str, Any]]:
    return [json.loads(row) for row in bench.bytes(layout.manifest_key(batch_id)).splitlines()]


async def test_a_batch_ends_with_a_manifest_in_the_order_of_its_lines_and_then_a_marker(bench: Bench) -> None:
    async with bench.steps() as at:
        batch_id = await sealed(at, lines("one", "two", "three"))
        assert (await looked_at(at, batch_id)).rest == 0
        for job in await jobs_of(at, batch_id):
            assert bench.keys(layout.manifest_key(batch_id).rpartition("/")[0]) == set()
            await through(bench, at, job)
        batch = await looked_at(at, batch_id)
        assert (batch.status, batch.marked, batch.succeeded) == (BatchStatus.COMPLETED, True, 3)
        told = manifest(bench, batch_id)
        assert [job["custom_id"] for job in told] == ["one", "two", "three"]
        assert told == [json.loads(bench.bytes(layout.sidecar_key(job["id"]))) for job in told]
        marker = json.loads(bench.bytes(layout.marker_key(batch_id, ok=True)))
        assert (marker["status"], marker["counts"]["succeeded"], marker["metadata"]) == (
            "completed",
            3,
            {"season": "spring"},
        )
        await looked_at(at, batch_id)
        assert await at.house.redis.zscore(f"{PREFIX}due", f"batch:{batch_id}") is None


async def test_a_cancelled_batch_ends_without_buying_what_it_has_not_begun(bench: Bench) -> None:
    async with bench.steps() as at:
        batch_id = await sealed(at, lines("a", "b"))
        await looked_at(at, batch_id)
        assert await at.house.desk.store.batches.cancel(batch_id)
        await looked_at(at, batch_id)
        assert await at.bells(Queue.COLLECT) == 0, "a large batch would fill the queue for everybody"
        await at.house.sweep.round()
        assert await at.bells(Queue.COLLECT) == 2
        for job in await jobs_of(at, batch_id):
            assert job.status is Status.CANCELLED
            await at.hasten(job.id)
            await at.collect(job.id)
        batch = await looked_at(at, batch_id)
        assert (batch.status, batch.marked) == (BatchStatus.CANCELLED, True)
        assert json.loads(bench.bytes(layout.marker_key(batch_id, ok=False)))["status"] == "cancelled"
        assert bench.submissions() == []


async def test_an_upload_that_is_never_sealed_is_cleared_away_with_its_inputs(bench: Bench) -> None:
    async with bench.steps() as at:
        upload = await begun(at, lines("red", image_prompt=PIXEL), key="k")
        [job_id] = await at.house.desk.store.batches.inputs(upload.id, 10)
        assert len(bench.keys(layout.inputs_prefix(job_id))) == 1
        await at.house.redis.zadd(f"{PREFIX}due", {f"batch:{upload.id}": 0}, xx=True)
        await at.house.binder.run(upload.id)
        assert await at.house.desk.store.batches.get(upload.id) is None
        assert bench.keys(layout.inputs_prefix(job_id)) == set()
        assert (await at.house.desk.store.figures()).due == 0


class Failing(Inputs):
    """The bucket is away after so many jobs. `dropped`: whose inputs have gone."""

    def __init__(self, at: Steps, most: int) -> None:
        super().__init__(at.house.desk.store, at.house.bucket, 2**20)
        self.most, self.dropped = most, list[str]()

    async def drop(self, job_id: str) -> None:
        if len(self.dropped) == self.most:
            raise BucketUnavailable("delete prefix: cut off")
        await super().drop(job_id)
        self.dropped.append(job_id)


def binder(at: Steps, inputs: Inputs) -> Binder:
    house = at.house
    intake = Intake(house.desk.store, inputs, house.intake.rules, house.intake.clock)
    return Binder(house.desk, house.bucket, inputs, intake, intake.clock, Terms(12.0, house.settings.temp_dir))


async def test_clearing_an_upload_away_that_is_cut_off_goes_on_where_it_was(bench: Bench) -> None:
    async with bench.steps() as at:
        upload = await begun(at, lines("a", "b", "c", image_prompt=PIXEL))
        job_ids = await at.house.desk.store.batches.inputs(upload.id, 10)
        await upload.abandon()
        first, second = Failing(at, 2), Failing(at, 9)
        await binder(at, first).run(upload.id)
        assert await at.house.desk.store.batches.inputs(upload.id, 10) == job_ids[2:]
        await at.house.redis.zadd(f"{PREFIX}due", {f"batch:{upload.id}": 0}, xx=True)
        await binder(at, second).run(upload.id)
        assert (first.dropped, second.dropped) == (job_ids[:2], job_ids[2:])
        assert [key for each in job_ids for key in bench.keys(layout.inputs_prefix(each))] == []
        assert await at.house.desk.store.batches.get(upload.id) is None
        assert (await at.house.desk.store.figures()).due == 0


async def test_what_is_too_much_to_clear_away_in_one_go_is_rung_for_again(bench: Bench) -> None:
    async with bench.steps() as at:
        batches, upload = at.house.desk.store.batches, await begun(at, [])
        jobs = [order_of("a fox") for _ in range(CLEARED_MOST + 1)]
        await batches.stage(upload.id, "admin", None, [Line(job, staged=True) for job in jobs])
        await upload.abandon()
        await at.house.binder.run(upload.id)
        await at.house.desk.drain()
        assert await at.house.redis.llen("rq:queue:batches") == 1
        assert await batches.inputs(upload.id, 10) == [jobs[-1].id]
        await at.house.binder.run(upload.id)
        assert await batches.get(upload.id) is None


async def test_from_the_first_bad_line_on_nothing_is_staged_and_all_mistakes_are_told(bench: Bench) -> None:
    async with bench.steps() as at:
        bad = [b"{", b'{"model": "flux-dev", "prompt": "x", "steps": -1}', *lines("fine"), b"[]"]
        upload = await begun(at, [*lines("good"), *bad])
        assert upload.bad is not None
        assert [(number, error.pointer) for number, error in upload.bad.errors] == [(2, ""), (3, "/steps"), (5, "")]
        await upload.abandon()
        assert await at.house.desk.store.batches.get(upload.id) is None


async def test_only_the_failed_lines_are_retried_and_what_was_bought_is_taken_over(bench: Bench) -> None:
    async with bench.steps() as at:
        batch_id = await sealed(at, lines("a", "b"))
        await looked_at(at, batch_id)
        first, second = await jobs_of(at, batch_id)
        await at.tell(first.id, e.DeadlinePassed())
        await through(bench, at, second)
        await at.hasten(first.id)
        await at.collect(first.id)
        await looked_at(at, batch_id)
        retry_id = await retried(at, batch_id, first)
        assert (await looked_at(at, retry_id)).rest == 0
        [again] = await jobs_of(at, retry_id)
        assert (again.retry_of, again.batch_id, again.custom_id) == (first.id, retry_id, "a")
        await through(bench, at, again)
        assert (await looked_at(at, retry_id)).marked
        assert [job["custom_id"] for job in manifest(bench, retry_id)] == ["a"]


async def test_a_retry_that_is_cancelled_half_way_is_not_over_before_the_jobs_that_it_has(bench: Bench) -> None:
    async with bench.steps() as at:
        batch_id = await sealed(at, lines("a"))
        await looked_at(at, batch_id)
        [first] = await jobs_of(at, batch_id)
        await at.tell(first.id, e.DeadlinePassed())
        await at.hasten(first.id)
        old = await at.collect(first.id)
        await looked_at(at, batch_id)
        retry_id = await retried(at, batch_id, old)
        new = successor(old, layout.new_id("job", 1_800_000_000_000, bytes(10)))
        assert new is not None
        store = at.house.desk.store  # a process made the job, and died before it could say so
        await store.create(replace(new, batch_id=retry_id), takes_over=old)
        assert await store.batches.cancel(retry_id)
        await looked_at(at, retry_id)
        assert not (await looked_at(at, retry_id)).marked
        [again] = await jobs_of(at, retry_id)
        await at.hasten(again.id)
        assert (await at.collect(again.id)).status is Status.CANCELLED
        batch = await looked_at(at, retry_id)
        assert (batch.marked, batch.total, batch.counts[Status.CANCELLED]) == (True, 1, 1)


async def test_a_sweep_rings_for_a_batch(bench: Bench) -> None:
    async with bench.steps() as at:
        await sealed(at, lines("one"))
        await at.house.redis.delete(f"{PREFIX}rung")
        await at.house.sweep.round()
        await at.house.desk.drain()
        assert await at.house.redis.llen("rq:queue:batches") == 1
