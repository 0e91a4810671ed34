"""A batch's server-sent events over a real socket: its jobs' from the first on, and its own end."""

import httpx
import pytest

from service.storage.store import PREFIX
from tests.batches import Worker
from tests.http.test_batches_api import sealed
from tests.http.test_events import FUTURE, all_of, first, streamed
from tests.serving import Serving, person

pytest_plugins = ["tests.fixtures_web", "tests.fixtures_s3", "tests.fixtures_batches"]
pytestmark = [pytest.mark.anyio, pytest.mark.processes]

TOLD = ["job.queued", "job.queued", "job.failed", "job.failed", "batch.completed"]


async def test_a_batchs_stream_tells_its_jobs_and_closes_with_its_end(buyer: httpx.AsyncClient, worker: Worker) -> None:
    batch_id, other = await sealed(buyer, 2), await sealed(buyer, 1)
    async with streamed(buyer, f"/v1/batches/{batch_id}/events") as stream:
        await worker.fail_all(other)
        await worker.fail_all(batch_id)
        told = await all_of(stream)
    assert sorted(event["event"] for event in told) == sorted(TOLD)
    assert {event["data"]["batch_id"] for event in told} == {batch_id}
    assert (told[-1]["event"], told[-1]["data"]["id"], told[-1]["data"]["status"]) == (
        "batch.completed",
        batch_id,
        "completed",
    )


async def test_a_batch_that_is_over_is_told_from_its_beginning(buyer: httpx.AsyncClient, worker: Worker) -> None:
    batch_id = await sealed(buyer, 2)
    await worker.fail_all(batch_id)
    async with streamed(buyer, f"/v1/batches/{batch_id}/events") as stream:
        told = await all_of(stream)
    assert sorted(event["event"] for event in told) == sorted(TOLD)
    async with streamed(buyer, f"/v1/batches/{batch_id}/events", told[1]["id"]) as stream:
        assert await all_of(stream) == told[2:]
    for last in (told[-1]["id"], FUTURE):
        answer = await buyer.get(f"/v1/batches/{batch_id}/events", headers={"Last-Event-ID": last})
        assert answer.status_code == 204


async def test_a_stream_goes_on_where_it_was_cut(buyer: httpx.AsyncClient, worker: Worker) -> None:
    batch_id = await sealed(buyer, 2)
    await worker.jobs(batch_id)
    async with streamed(buyer, f"/v1/batches/{batch_id}/events") as stream:
        told = await first(stream, 1)
    await worker.fail_all(batch_id)
    async with streamed(buyer, f"/v1/batches/{batch_id}/events", told[-1]["id"]) as stream:
        told += await all_of(stream)
    assert sorted(event["event"] for event in told) == sorted(TOLD)


async def test_what_is_not_kept_any_more_is_told_by_a_reset(buyer: httpx.AsyncClient, worker: Worker) -> None:
    batch_id = await sealed(buyer, 2)
    await worker.jobs(batch_id)
    await worker.desk.store._redis.xtrim(f"{PREFIX}events", maxlen=1, approximate=False)
    async with streamed(buyer, f"/v1/batches/{batch_id}/events") as stream:
        assert [event["event"] for event in await first(stream, 2)] == ["reset", "job.queued"]
    async with streamed(buyer, f"/v1/batches/{batch_id}/events", FUTURE) as stream:
        assert [event["event"] for event in await first(stream, 1)] == ["reset"]
        await worker.fail_all(batch_id)
        assert (await all_of(stream))[-1]["event"] == "batch.completed"


async def test_the_end_that_is_still_kept_is_told_after_a_reset(buyer: httpx.AsyncClient, worker: Worker) -> None:
    path = f"/v1/batches/{(batch_id := await sealed(buyer, 2))}/events"
    await worker.fail_all(batch_id)
    async with streamed(buyer, path) as stream:
        (seen,) = await first(stream, 1)
    await worker.desk.store._redis.xtrim(f"{PREFIX}events", maxlen=1, approximate=False)
    async with streamed(buyer, path, seen["id"]) as stream:
        told = await all_of(stream)
    assert [event["event"] for event in told] == ["reset", "batch.completed"]
    assert (await buyer.get(path, headers={"Last-Event-ID": told[-1]["id"]})).status_code == 204


async def test_an_end_that_is_not_kept_is_a_reset_once(buyer: httpx.AsyncClient, worker: Worker) -> None:
    path = f"/v1/batches/{(batch_id := await sealed(buyer, 1))}/events"
    await worker.fail_all(batch_id)
    async with streamed(buyer, path) as stream:
        (seen,) = await first(stream, 1)
    await worker.jobs(await sealed(buyer, 1))
    await worker.desk.store._redis.xtrim(f"{PREFIX}events", maxlen=1, approximate=False)
    for after in ("", seen["id"]):
        async with streamed(buyer, path, after) as stream:
            (told,) = await all_of(stream)
        assert told["event"] == "reset"
        assert (await buyer.get(path, headers={"Last-Event-ID": told["id"]})).status_code == 204


async def test_a_batch_whose_end_is_not_kept_closes_its_stream(buyer: httpx.AsyncClient, worker: Worker) -> None:
    batch_id = await sealed(buyer, 1)
    await worker.fail_all(batch_id)
    await worker.desk.store._redis.xtrim(f"{PREFIX}events", maxlen=0)
    async with streamed(buyer, f"/v1/batches/{batch_id}/events") as stream:
        assert [event["event"] for event in await all_of(stream)] == ["reset"]


async def test_a_cancelled_batch_is_told_as_cancelled_and_to_its_caller_alone(
    shop: Serving, buyer: httpx.AsyncClient, worker: Worker
) -> None:
    async with (
        person("bob", shop.url) as bob,
        streamed(buyer, "/v1/events") as hers,
        streamed(bob, "/v1/events") as his,
    ):
        batch_id = await sealed(buyer, 1)
        await buyer.post(f"/v1/batches/{batch_id}/cancel")
        (job,) = await worker.jobs(batch_id)
        await worker.end(job)
        await worker.look(batch_id)
        told = await first(hers, 2)
        assert [event["event"] for event in told] == ["job.cancelled", "batch.cancelled"]
        assert (told[-1]["data"]["id"], told[-1]["data"]["reason"]) == (batch_id, "marked")
        answer = await bob.post("/v1/jobs", json={"model": "flux-dev", "prompt": "a fox"})
        assert [event["data"]["id"] for event in await first(his, 1)] == [answer.json()["id"]]
