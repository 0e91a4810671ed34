"""A batch that is there, over a real socket, a real Valkey and a real S3 store: looked at, cancelled, retried."""

import asyncio
import json
from typing import Any

import httpx
import pytest

from service.client import AsyncClient, ServiceError
from service.domain import events, layout
from service.storage.bucket import Bucket
from service.storage.desk import Desk
from service.storage.store import PREFIX
from tests.batches import NDJSON, ORDER, Worker, named
from tests.serving import PEOPLE, Serving, person

pytest_plugins = ["tests.fixtures_web", "tests.fixtures_s3", "tests.fixtures_batches"]
pytestmark = [pytest.mark.anyio, pytest.mark.processes]

FAILED = events.DeadlinePassed()
CANCELLED = events.CancelAsked()


async def sealed(client: httpx.AsyncClient, count: int = 3, **params: str) -> str:
    answer = await client.post("/v1/batches", content=named(count), params=params, headers=NDJSON)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


async def told(client: httpx.AsyncClient, path: str, **params: str) -> Any:
    answer = await client.get(f"/v1/batches{path}", params=params)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def manifest(client: httpx.AsyncClient, batch_id: str) -> list[Any]:
    answer = await client.get(f"/v1/batches/{batch_id}/manifest", follow_redirects=True)
    assert answer.status_code == 200, answer.text
    return [json.loads(row) for row in answer.content.splitlines()]


# ---- looking -----------------------------------------------------------------------------------------------------


async def test_another_callers_batch_is_as_unknown_as_any_other(shop: Serving, buyer: httpx.AsyncClient) -> None:
    batch_id = await sealed(buyer)
    nobodys = layout.new_id("batch", 1_800_000_000_000, bytes(10))
    async with person("bob", shop.url) as bob, person("admin", shop.url) as admin:
        for client, id_ in ((bob, batch_id), (bob, nobodys), (bob, "batch_x"), (admin, nobodys)):
            for path in ("", "/jobs", "/manifest", "/events", "/cancel", "/retry"):
                method = "POST" if path in {"/cancel", "/retry"} else "GET"
                answer = await client.request(method, f"/v1/batches/{id_}{path}")
                assert (answer.status_code, answer.json()["code"]) == (404, "not_found"), (id_, path)
        assert (await told(bob, ""))["batches"] == []
        assert [batch["id"] for batch in (await told(admin, ""))["batches"]] == [batch_id]
        assert (await told(admin, f"/{batch_id}"))["caller"] == "alice"


async def test_an_upload_that_is_not_whole_does_not_exist(buyer: httpx.AsyncClient, desk: Desk) -> None:
    upload_id = layout.new_id("batch", 1_800_000_000_000, bytes(10))
    await desk.store.batches.open(upload_id, "alice", None)
    assert (await buyer.get(f"/v1/batches/{upload_id}")).status_code == 404
    assert (await told(buyer, ""))["batches"] == []


async def test_a_list_of_batches_is_walked_newest_first(buyer: httpx.AsyncClient) -> None:
    made = [await sealed(buyer, 1) for _ in range(5)]
    cursor, seen = "", []
    while True:
        page = await told(buyer, "", limit="2", cursor=cursor)
        seen += [batch["id"] for batch in page["batches"]]
        if not (cursor := page["next_cursor"]):
            break
    assert seen == made[::-1]
    assert (await buyer.get("/v1/batches", params={"cursor": "x"})).status_code == 422
    assert (await buyer.get("/v1/batches", params={"limit": "0"})).status_code == 422


async def test_the_jobs_of_a_batch_are_walked_in_the_order_of_its_lines(
    buyer: httpx.AsyncClient, worker: Worker
) -> None:
    batch_id = await sealed(buyer, 5)
    assert (await told(buyer, f"/{batch_id}/jobs"))["jobs"] == []
    jobs = await worker.jobs(batch_id)
    await worker.end(jobs[3], CANCELLED)
    await worker.end(jobs[1], CANCELLED)
    for status, names in ((None, ["c0", "c1", "c2", "c3", "c4"]), ("cancelled", ["c1", "c3"]), ("failed", [])):
        cursor, seen = "", []
        while True:
            more = {"status": status} if status else {}
            page = await told(buyer, f"/{batch_id}/jobs", limit="2", cursor=cursor, **more)
            seen += [job["custom_id"] for job in page["jobs"]]
            if not (cursor := page["next_cursor"]):
                break
        assert seen == names
    assert (await buyer.get(f"/v1/batches/{batch_id}/jobs?status=done")).status_code == 422


async def test_the_manifest_grows_in_order_and_is_then_the_object(
    buyer: httpx.AsyncClient, worker: Worker, bucket: Bucket
) -> None:
    batch_id = await sealed(buyer, 3)
    first, second, third = await worker.jobs(batch_id)
    assert await manifest(buyer, batch_id) == []
    await worker.end(third, FAILED)
    await worker.end(first, CANCELLED)
    assert [job["custom_id"] for job in await manifest(buyer, batch_id)] == ["c0", "c2"]
    await worker.end(second, FAILED)
    grown = await manifest(buyer, batch_id)
    await worker.look(batch_id)
    answer = await buyer.get(f"/v1/batches/{batch_id}/manifest")
    assert (answer.status_code, answer.headers["referrer-policy"]) == (307, "no-referrer")
    whole = await bucket.get_bytes(layout.manifest_key(batch_id), 10**6)
    assert whole
    assert await manifest(buyer, batch_id) == grown == [json.loads(row) for row in whole.splitlines()]
    assert grown == (await told(buyer, f"/{batch_id}/jobs"))["jobs"]


async def test_the_marker_says_what_the_api_says_and_answers_when_the_record_has_left(
    shop: Serving, buyer: httpx.AsyncClient, worker: Worker, bucket: Bucket
) -> None:
    batch_id = await sealed(buyer, 2, metadata='{"season": "spring"}')
    await worker.fail_all(batch_id)
    batch = await told(buyer, f"/{batch_id}")
    assert (batch["status"], batch["counts"]["failed"], batch["progress"]) == ("completed", 2, 1)
    marker = json.loads(await bucket.get_bytes(layout.marker_key(batch_id, ok=False), 10**6) or b"")
    assert {name: value for name, value in marker.items() if name != "idempotency"} == batch
    rows = await manifest(buyer, batch_id)
    await worker.desk.store._redis.delete(f"{PREFIX}batch:{batch_id}")
    assert await told(buyer, f"/{batch_id}") == batch
    assert await manifest(buyer, batch_id) == rows
    for path, code in (("jobs", "not_kept"), ("cancel", "already_ended"), ("retry", "not_retryable")):
        answer = await buyer.request("GET" if path == "jobs" else "POST", f"/v1/batches/{batch_id}/{path}")
        assert (answer.status_code, answer.json()["code"]) == (409, code)
    async with person("bob", shop.url) as bob:
        assert (await bob.get(f"/v1/batches/{batch_id}")).status_code == 404


async def test_who_prefers_to_wait_hears_of_the_end(buyer: httpx.AsyncClient, worker: Worker) -> None:
    batch_id = await sealed(buyer, 1)
    answer = await buyer.get(f"/v1/batches/{batch_id}", headers={"Prefer": "wait=0"})
    assert (answer.json()["status"], answer.headers["preference-applied"]) == ("running", "wait=0")
    waiting = asyncio.create_task(buyer.get(f"/v1/batches/{batch_id}", headers={"Prefer": "wait=60"}))
    await worker.fail_all(batch_id)
    assert (await waiting).json()["status"] == "completed"


# ---- ending, repeating -------------------------------------------------------------------------------------------


async def test_a_cancelled_batch_ends_without_what_has_not_begun(buyer: httpx.AsyncClient, worker: Worker) -> None:
    batch_id = await sealed(buyer, 3)
    answer = await buyer.post(f"/v1/batches/{batch_id}/cancel")
    assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
    for job in await worker.jobs(batch_id):
        assert job.status == "cancelled"
    again = await buyer.post(f"/v1/batches/{batch_id}/cancel")
    assert (again.status_code, again.json()["code"]) == (409, "already_ended")


async def test_only_the_failed_jobs_are_retried_and_there_is_one_retry(
    buyer: httpx.AsyncClient, worker: Worker
) -> None:
    batch_id = await sealed(buyer, 4, metadata='{"season": "spring"}')
    jobs = await worker.jobs(batch_id)
    assert (await buyer.post(f"/v1/batches/{batch_id}/retry")).json()["code"] == "not_ended"
    for job, event in zip(jobs, (FAILED, CANCELLED, FAILED, FAILED), strict=True):
        await worker.end(job, event)
    await buyer.post(f"/v1/jobs/{jobs[3].id}/retry")  # that one needs no other
    await worker.look(batch_id)
    answers = await asyncio.gather(*(buyer.post(f"/v1/batches/{batch_id}/retry") for _ in range(5)))
    assert sorted(answer.status_code for answer in answers) == [200, 200, 200, 200, 202]
    (retry_id,) = {answer.json()["id"] for answer in answers}
    retry = await told(buyer, f"/{retry_id}")
    assert (retry["retry_of"], retry["total"], retry["metadata"]) == (batch_id, 2, {"season": "spring"})
    assert [job.custom_id for job in await worker.jobs(retry_id)] == ["c0", "c2"]
    assert {job["retry_of"] for job in (await told(buyer, f"/{retry_id}/jobs"))["jobs"]} == {jobs[0].id, jobs[2].id}
    assert (await buyer.post(f"/v1/batches/{batch_id}/retry")).json()["id"] == retry_id


async def test_a_batch_without_a_failure_has_no_retry(buyer: httpx.AsyncClient, worker: Worker, desk: Desk) -> None:
    batch_id = await sealed(buyer, 1)
    (job,) = await worker.jobs(batch_id)
    await worker.end(job, CANCELLED)
    await worker.look(batch_id)
    answer = await buyer.post(f"/v1/batches/{batch_id}/retry")
    assert (answer.status_code, answer.json()["code"]) == (409, "not_retryable")
    assert (await desk.store.figures()).due == 0


# ---- with our own client -----------------------------------------------------------------------------------------


async def test_the_client_and_the_routes_mean_the_same(shop: Serving, worker: Worker) -> None:
    orders = [ORDER | {"custom_id": f"c{number}"} for number in range(3)]
    async with AsyncClient(shop.url, PEOPLE["alice"]) as darkroom:
        with pytest.raises(ServiceError) as refusal:
            await darkroom.submit_batch([orders[0], {"model": "flux-dev"}])
        assert [(error["line"], error["pointer"]) for error in refusal.value.errors] == [(2, "/prompt")]
        batch = await darkroom.submit_batch(orders, key="k", metadata={"n": 1})
        assert (await darkroom.submit_batch(orders, key="k", metadata={"n": 1}))["id"] == batch["id"]
        assert [job["id"] async for job in darkroom.manifest(batch["id"])] == []
        await worker.fail_all(batch["id"])
        assert [seen["status"] async for seen in darkroom.watch(batch["id"])] == ["completed"]
        assert [job["custom_id"] async for job in darkroom.manifest(batch["id"])] == ["c0", "c1", "c2"]
        retry = await darkroom.retry_batch(batch["id"])
        assert (retry["retry_of"], retry["total"]) == (batch["id"], 3)
        assert (await darkroom.cancel_batch(retry["id"]))["status"] == "cancelled"
