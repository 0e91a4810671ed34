"""The job routes over a real socket, a real Valkey and a real S3 store."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
from boto3.session import Session  # type: ignore[import-untyped]  # boto3 has no py.typed

from service.domain import events, layout
from service.domain.events import Event
from service.domain.job import Image, Job, Status
from service.domain.view import view
from service.storage.bucket import Bucket
from service.storage.desk import Desk
from service.storage.objects import BucketConfig
from tests.contract.valkey import Valkey
from tests.serving import Serving, move, person, serving

pytest_plugins = ["tests.fixtures_web", "tests.fixtures_s3"]
pytestmark = [pytest.mark.anyio, pytest.mark.processes]

ORDER = {"model": "flux-dev", "prompt": "a red fox in the snow", "width": 1024, "height": 768, "seed": 7}
PNG = b"\x89PNG\r\n\x1a\n" + b"not much of an image"


def accepted(n: int = 1) -> tuple[Event, ...]:
    return events.Intended(attempt=n, delay_s=60), events.TaskAccepted(attempt=n, provider_id=f"task-{n}", delay_s=60)


def ready(n: int = 1) -> Event:
    return events.Ready(attempt=n, provider_id=f"task-{n}", url="https://delivery.bfl.ai/x?sig=y", seed=7)


async def ordered(client: httpx.AsyncClient, **more: Any) -> str:
    answer = await client.post("/v1/jobs", json=ORDER | more)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


# ---- ordering ----------------------------------------------------------------------------------------------------


async def test_an_order_is_accepted_and_can_be_looked_at(alice: httpx.AsyncClient) -> None:
    answer = await alice.post("/v1/jobs", json=ORDER | {"metadata": {"sku": 12}, "priority": "high"})
    job = answer.json()
    assert (answer.status_code, answer.headers["location"]) == (202, f"/v1/jobs/{job['id']}")
    assert (answer.headers["cache-control"], job["status"], job["caller"]) == ("no-store", "queued", "alice")
    assert (job["metadata"], job["priority"], job["request"]["seed"]) == ({"sku": 12}, "high", 7)
    assert answer.headers["x-request-id"]
    assert (await alice.get(f"/v1/jobs/{job['id']}")).json() == job


async def test_without_a_known_token_nobody_enters(web: Serving) -> None:
    async with httpx.AsyncClient(base_url=web.url, trust_env=False) as stranger:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic eA=="}):
            answer = await stranger.get("/v1/jobs", headers=headers)
            assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")


@pytest.mark.parametrize(
    ("more", "pointer"),
    [
        ({"widht": 1024}, "/widht"),
        ({"width": 1}, "/width"),
        ({"prompt": ""}, "/prompt"),
        ({"model": "flux-9"}, "/model"),
        ({"webhook_url": "https://x.example"}, "/webhook_url"),
        ({"callback_url": "http://shop.example/x"}, "/callback_url"),
        ({"callback_url": "https://127.0.0.1/x"}, "/callback_url"),
        ({"metadata": {"x": "y" * 17_000}}, "/metadata"),
    ],
)
async def test_each_mistake_is_named(alice: httpx.AsyncClient, more: dict[str, Any], pointer: str) -> None:
    answer = await alice.post("/v1/jobs", json=ORDER | more)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert pointer in [error["pointer"] for error in answer.json()["errors"]]


async def test_a_callback_url_needs_a_secret_to_sign_with(web: Serving, alice: httpx.AsyncClient) -> None:
    order = ORDER | {"callback_url": "https://shop.example/done"}
    assert (await alice.post("/v1/jobs", json=order)).status_code == 202
    async with person("bob", web.url) as bob:
        assert (await bob.post("/v1/jobs", json=order)).status_code == 422


async def test_what_is_not_json_is_told_so(alice: httpx.AsyncClient) -> None:
    for body in (b"", b"{", b"\xff", b"NaN", b'{"model": "flux-dev", "prompt": "\\ud800"}'):
        assert (await alice.post("/v1/jobs", content=body)).status_code in {400, 422}


async def test_a_job_over_its_size_is_refused(alice: httpx.AsyncClient) -> None:
    answer = await alice.post("/v1/jobs", json=ORDER | {"x": "y" * 300_000})
    assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")
    answer = await alice.post("/v1/jobs", json=ORDER | {"prompt": "y" * 270_000})
    assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")
    answer = await alice.post("/v1/jobs", content=b" " * 300_000 + json.dumps(ORDER).encode())
    assert answer.status_code == 202  # blanks are nobody's bytes
    answer = await alice.post("/v1/jobs", content=b"x" * 30_000_000)
    assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")


# ---- the same key ------------------------------------------------------------------------------------------------


async def test_the_same_key_and_body_are_the_same_job(web: Serving, alice: httpx.AsyncClient) -> None:
    key = {"Idempotency-Key": "spring-1"}
    first = await alice.post("/v1/jobs", json=ORDER, headers=key)
    again = await alice.post("/v1/jobs", content=json.dumps(dict(reversed(ORDER.items())), indent=2), headers=key)
    assert (first.status_code, again.status_code) == (202, 200)
    assert first.json() == again.json()
    other = await alice.post("/v1/jobs", json=ORDER | {"seed": 8}, headers=key)
    assert (other.status_code, other.json()["code"]) == (409, "idempotency_conflict")
    async with person("bob", web.url) as bob:
        assert (await bob.post("/v1/jobs", json=ORDER, headers=key)).status_code == 202
    assert (await alice.post("/v1/jobs", json=ORDER, headers={"Idempotency-Key": "x" * 256})).status_code == 422


async def test_many_at_once_with_one_key_make_one_job(alice: httpx.AsyncClient) -> None:
    key = {"Idempotency-Key": "spring-2"}
    answers = await asyncio.gather(*(alice.post("/v1/jobs", json=ORDER, headers=key) for _ in range(20)))
    assert sorted(answer.status_code for answer in answers) == [200] * 19 + [202]
    assert len({answer.json()["id"] for answer in answers}) == 1


# ---- who may see -------------------------------------------------------------------------------------------------


async def test_another_callers_job_is_as_unknown_as_any_other(web: Serving, alice: httpx.AsyncClient) -> None:
    job_id = await ordered(alice)
    async with person("bob", web.url) as bob:
        for method, path in (
            ("GET", ""), ("GET", "/image"), ("GET", "/events"), ("POST", "/cancel"), ("POST", "/retry"), ("DELETE", ""),
        ):  # fmt: skip
            answer = await bob.request(method, f"/v1/jobs/{job_id}{path}")
            assert (answer.status_code, answer.json()["code"]) == (404, "not_found"), path
        assert (await bob.get("/v1/jobs")).json()["jobs"] == []
    async with person("admin", web.url) as admin:
        assert (await admin.get(f"/v1/jobs/{job_id}")).status_code == 200
        assert [job["id"] for job in (await admin.get("/v1/jobs")).json()["jobs"]] == [job_id]


async def test_a_list_is_walked_page_by_page_newest_first(alice: httpx.AsyncClient) -> None:
    made = [await ordered(alice, seed=n) for n in range(5)]
    cursor, seen = "", []
    while True:
        page = (await alice.get("/v1/jobs", params={"limit": 2, "status": "queued", "cursor": cursor})).json()
        seen += [job["id"] for job in page["jobs"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    listed = {job["id"] for job in (await alice.get("/v1/jobs")).json()["jobs"]}
    assert seen == sorted(made, reverse=True)
    assert listed == set(made)


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=", "status=", "limit=201", "limit=x", "limit=٣", "status=done", "batch=x", "cursor=!"]
)
async def test_a_wrong_parameter_is_named(alice: httpx.AsyncClient, query: str) -> None:
    answer = await alice.get(f"/v1/jobs?{query}")
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, f"/{query.partition('=')[0]}")


# ---- waiting -----------------------------------------------------------------------------------------------------


async def test_a_wait_ends_when_the_job_does(alice: httpx.AsyncClient, desk: Desk) -> None:
    job_id = await ordered(alice)
    waiting = asyncio.create_task(alice.get(f"/v1/jobs/{job_id}", headers={"Prefer": "respond-async, wait=30"}))
    await asyncio.sleep(0)
    await move(desk, job_id, events.CancelAsked())
    answer = await waiting
    assert (answer.json()["status"], answer.headers["preference-applied"]) == ("cancelled", "wait=30")


async def test_a_wait_that_ends_first_answers_202(alice: httpx.AsyncClient) -> None:
    answer = await alice.post("/v1/jobs", json=ORDER, headers={"Prefer": "wait=0"})
    assert (answer.status_code, answer.json()["status"]) == (202, "queued")


async def test_a_new_job_that_ends_in_time_is_answered_200(alice: httpx.AsyncClient, desk: Desk) -> None:
    waiting = asyncio.create_task(alice.post("/v1/jobs", json=ORDER, headers={"Prefer": "wait=30"}))
    entry = (await desk.store.events("0-0", block_s=4.0))[0]
    await move(desk, entry.data["id"], events.CancelAsked())
    answer = await waiting
    assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")


async def test_at_shutdown_waiters_are_answered_at_once(redis_url: str, desk: Desk) -> None:
    with serving(redis_url) as web:
        async with person("alice", web.url) as alice:
            waiting = asyncio.create_task(alice.post("/v1/jobs", json=ORDER, headers={"Prefer": "wait=60"}))
            assert await desk.store.events("0-0", block_s=4.0)
            web.server.should_exit = True
            assert (await asyncio.wait_for(waiting, 10)).status_code == 202


# ---- ending, repeating, removing ---------------------------------------------------------------------------------


async def test_a_cancelled_job_stays_cancelled(alice: httpx.AsyncClient) -> None:
    job_id = await ordered(alice)
    answer = await alice.post(f"/v1/jobs/{job_id}/cancel")
    assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
    again = await alice.post(f"/v1/jobs/{job_id}/cancel")
    assert (again.status_code, again.json()["code"]) == (409, "already_ended")


async def test_a_retry_asks_for_what_was_bought_and_there_is_one(alice: httpx.AsyncClient, desk: Desk) -> None:
    job_id = await ordered(alice)
    assert (await alice.post(f"/v1/jobs/{job_id}/retry")).json()["code"] == "not_retryable"
    await move(desk, job_id, *accepted(), events.CancelAsked())
    answers = await asyncio.gather(*(alice.post(f"/v1/jobs/{job_id}/retry") for _ in range(5)))
    assert sorted(answer.status_code for answer in answers) == [200, 200, 200, 200, 202]
    (new_id,) = {answer.json()["id"] for answer in answers}
    new = await desk.store.get(new_id)
    old = await desk.store.get(job_id)
    assert new
    assert old
    assert (new.status, new.retry_of, new.tasks, new.open) == (Status.GENERATING, job_id, {"1": "task-1"}, (1,))
    assert (old.retried_by, old.open) == (new_id, ())


async def test_an_unknown_outcome_is_bought_again_only_with_rerun(alice: httpx.AsyncClient, desk: Desk) -> None:
    first, second = await ordered(alice), await ordered(alice)
    for job_id in (first, second):
        await move(desk, job_id, accepted()[0], events.CancelAsked())
    kept = (await alice.post(f"/v1/jobs/{first}/retry")).json()
    assert (kept["status"], kept["error"]["code"], bool(kept["finished_at"])) == ("failed", "outcome_unknown", True)
    assert (await alice.get(f"/v1/jobs/{kept['id']}")).json() == kept
    assert (await alice.post(f"/v1/jobs/{second}/retry?rerun=true")).json()["status"] == "queued"
    for unclear in ("maybe", "", "1"):
        assert (await alice.post(f"/v1/jobs/{second}/retry", params={"rerun": unclear})).status_code == 422


async def test_a_purchase_that_is_known_only_after_the_retry_is_found_by_the_next_one(
    alice: httpx.AsyncClient, desk: Desk
) -> None:
    intended, known = accepted()
    job_id = await ordered(alice)
    await move(desk, job_id, intended, events.CancelAsked())
    lost = (await alice.post(f"/v1/jobs/{job_id}/retry")).json()
    again = (await alice.post(f"/v1/jobs/{lost['id']}/retry")).json()
    await move(desk, job_id, known)
    last = (await alice.post(f"/v1/jobs/{again['id']}/retry")).json()
    assert [each["status"] for each in (lost, again, last)] == ["failed", "failed", "generating"]
    new, old = await desk.store.get(last["id"]), await desk.store.get(job_id)
    assert new
    assert old
    assert (new.tasks, new.open, old.open) == ({"1": "task-1"}, (1,), (1,)), "both know that it may run"


async def test_a_retry_leaves_an_attempt_of_unknown_outcome_with_its_slot_to_the_old_job(
    alice: httpx.AsyncClient, desk: Desk
) -> None:
    job_id = await ordered(alice)
    await move(desk, job_id, accepted()[0], events.Intended(attempt=2), accepted()[1], events.CancelAsked())
    new_id = (await alice.post(f"/v1/jobs/{job_id}/retry")).json()["id"]
    await move(desk, job_id, events.TaskAccepted(attempt=2, provider_id="task-2"))
    new, old = await desk.store.get(new_id), await desk.store.get(job_id)
    assert new
    assert old
    assert (new.open, old.open, old.tasks) == ((1,), (2,), {"1": "task-1", "2": "task-2"})
    assert (await desk.store.figures()).slots == 2


async def test_a_deleted_job_is_gone_and_its_objects_are_due_to_be_erased(
    web: Serving, alice: httpx.AsyncClient, desk: Desk
) -> None:
    job_id = await ordered(alice)
    assert (await alice.delete(f"/v1/jobs/{job_id}")).json()["code"] == "not_ended"
    await alice.post(f"/v1/jobs/{job_id}/cancel")
    assert (await alice.delete(f"/v1/jobs/{job_id}")).status_code == 204
    assert (await alice.delete(f"/v1/jobs/{job_id}")).status_code == 204
    assert (await alice.get(f"/v1/jobs/{job_id}")).status_code == 404
    async with person("bob", web.url) as bob:
        assert (await bob.delete(f"/v1/jobs/{job_id}")).status_code == 404


# ---- the bucket --------------------------------------------------------------------------------------------------


@pytest.fixture
async def bucket(bucket_config: BucketConfig, s3_session: Session) -> AsyncIterator[Bucket]:
    made = Bucket(bucket_config, s3_session)
    yield made
    await made.close()


@pytest.fixture
def shop(redis_url: str, bucket_config: BucketConfig, s3_session: Session) -> Iterator[Serving]:
    with serving(redis_url, Bucket(bucket_config, s3_session), S3_BUCKET=bucket_config.name) as running:
        yield running


async def succeeded(desk: Desk, bucket: Bucket, job_id: str) -> Job:
    key = layout.image_key(job_id, "png")
    await bucket.put_bytes(key, PNG, content_type="image/png", metadata={"job-id": job_id})
    image = Image(bucket.name, bucket.full_key(key), "0" * 64, len(PNG), 1, 1, "image/png", 7)
    return await move(desk, job_id, *accepted(), ready(), events.Sealed(image=image), events.SidecarWritten())


async def test_the_image_is_a_fresh_link_to_the_bucket(shop: Serving, bucket: Bucket, desk: Desk) -> None:
    async with person("alice", shop.url) as alice:
        job_id = await ordered(alice)
        assert (await alice.get(f"/v1/jobs/{job_id}/image")).json()["code"] == "not_ready"
        await succeeded(desk, bucket, job_id)
        answer = await alice.get(f"/v1/jobs/{job_id}/image")
        assert (answer.status_code, answer.headers["cache-control"]) == (307, "no-store")
        assert answer.headers["referrer-policy"] == "no-referrer"
        async with httpx.AsyncClient(trust_env=False) as anybody:
            assert (await anybody.get(answer.headers["location"])).content == PNG


async def test_a_base64_image_waits_in_the_bucket_and_not_in_redis(shop: Serving, bucket: Bucket, desk: Desk) -> None:
    async with person("alice", shop.url) as alice:
        job_id = await ordered(alice, image_prompt=base64.b64encode(PNG).decode())
        kept = (await alice.get(f"/v1/jobs/{job_id}")).json()["request"]["image_prompt"]
        assert (kept["key"], kept["bytes"]) == (f"inputs/{job_id}/image_prompt.png", len(PNG))
        assert await bucket.get_bytes(kept["key"], 1000) == PNG
        await move(desk, job_id, events.CancelAsked())
        new = (await alice.post(f"/v1/jobs/{job_id}/retry")).json()
        assert new["request"]["image_prompt"]["key"] == f"inputs/{new['id']}/image_prompt.png"
        assert await bucket.get_bytes(new["request"]["image_prompt"]["key"], 1000) == PNG


async def test_input_images_have_a_bound_of_their_own(redis_url: str) -> None:
    with serving(redis_url, INPUT_IMAGE_MAX_BYTES="1KiB") as web:
        async with person("alice", web.url) as alice:
            large = base64.b64encode(bytes(2000)).decode()
            assert (await alice.post("/v1/jobs", json=ORDER | {"image_prompt": large})).status_code == 413
            small = base64.b64encode(bytes(500)).decode()
            answer = await alice.post("/v1/jobs", json=ORDER | {"image_prompt": small})
            assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")  # this bucket is away


async def test_a_job_whose_record_is_gone_is_told_from_its_sidecar(shop: Serving, bucket: Bucket, desk: Desk) -> None:
    async with person("alice", shop.url) as alice, person("bob", shop.url) as bob:
        job_id = await ordered(alice)
        job = await succeeded(desk, bucket, job_id)
        told = json.dumps(view(job)).encode()
        key = layout.sidecar_key(job_id)
        await bucket.put_bytes(key, told, content_type="application/json", metadata={"job-id": job_id})
        await desk.store._redis.delete(f"dr1:job:{job_id}")
        assert (await alice.get(f"/v1/jobs/{job_id}")).json() == view(job)
        assert (await alice.get(f"/v1/jobs/{job_id}/image")).status_code == 307
        late = [await alice.post(f"/v1/jobs/{job_id}/{verb}") for verb in ("cancel", "retry")]
        assert [(told.status_code, told.json()["code"]) for told in late] == [
            (409, "already_ended"),
            (409, "not_retryable"),
        ]
        assert (await bob.post(f"/v1/jobs/{job_id}/cancel")).status_code == 404
        assert (await bob.get(f"/v1/jobs/{job_id}")).status_code == 404
        assert (await bob.delete(f"/v1/jobs/{job_id}")).status_code == 404
        assert [(await alice.delete(f"/v1/jobs/{job_id}")).status_code for _ in range(2)] == [204, 204]
        assert (await alice.get(f"/v1/jobs/{job_id}")).status_code == 404


# ---- Redis away --------------------------------------------------------------------------------------------------


async def test_an_unknown_path_is_404_and_only_a_known_one_can_have_a_wrong_method(alice: httpx.AsyncClient) -> None:
    tries = [("GET", "/v1/job"), ("POST", "/v1/job"), ("POST", "/v1/events"), ("GET", "/v1/flux-dev")]
    found = {f"{method} {path}": await alice.request(method, path, json={}) for method, path in tries}
    seen = {
        tried: (answer.status_code, sorted(answer.headers.get("allow", "").split(", ")))
        for tried, answer in found.items()
    }
    assert seen == {
        "GET /v1/job": (404, [""]),
        "POST /v1/job": (404, [""]),
        "POST /v1/events": (405, ["GET", "HEAD"]),
        "GET /v1/flux-dev": (405, ["POST"]),
    }


async def test_while_redis_is_away_everything_is_503_and_then_well_again(own_valkey: Valkey) -> None:
    with serving(own_valkey.url) as web:
        async with person("alice", web.url) as alice:
            await ordered(alice)
            own_valkey.kill()
            for answer in [await alice.post("/v1/jobs", json=ORDER), await alice.get("/v1/jobs")]:
                assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
                assert answer.headers["retry-after"] == "1"
            own_valkey.start()
            await ordered(alice)


async def test_a_full_backlog_is_429(redis_url: str) -> None:
    with serving(redis_url, BACKLOG_MAX="2", FLUX_MAX_IN_FLIGHT="1") as web:
        async with person("alice", web.url) as alice:
            answers = [await alice.post("/v1/jobs", json=ORDER) for _ in range(3)]
            assert (answers[2].status_code, answers[2].json()["code"]) == (429, "backlog_full")
            assert answers[2].headers["retry-after"]


async def test_a_job_that_no_replica_confirmed_is_503_with_its_id(redis_url: str, desk: Desk) -> None:
    await desk.store.plan("stage", "nothing", None)  # the script is known: a NOSCRIPT would wait for replicas, too
    with serving(redis_url, REDIS_REPLICAS_TO_WAIT="1") as web:
        async with person("alice", web.url) as alice:
            key = {"Idempotency-Key": "spring-3"}
            answer = await alice.post("/v1/jobs", json=ORDER, headers=key)
            assert (answer.status_code, answer.json()["code"]) == (503, "durability_unconfirmed")
            again = await alice.post("/v1/jobs", json=ORDER, headers=key)
            assert again.json()["job_id"] == answer.json()["job_id"]
