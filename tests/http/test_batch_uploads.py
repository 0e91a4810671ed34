"""`POST /v1/batches` over a real socket and a real Valkey: all lines of it, or nothing."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from boto3.session import Session  # type: ignore[import-untyped]  # boto3 has no py.typed

from service.storage.bucket import Bucket
from service.storage.desk import Desk
from service.storage.objects import BucketConfig
from service.storage.store import PREFIX
from tests.batches import NDJSON, ORDER, WITHIN_S, Worker, keys, keys_once, named, rows
from tests.serving import PEOPLE, Serving, person, serving

pytest_plugins = ["tests.fixtures_web", "tests.fixtures_s3", "tests.fixtures_batches"]
pytestmark = [pytest.mark.anyio, pytest.mark.processes]

KEY = {"Idempotency-Key": "spring-2026"}


async def posted(client: httpx.AsyncClient, body: Any, **headers: str) -> httpx.Response:
    return await client.post("/v1/batches", content=body, headers=NDJSON | headers)


async def nothing_is_left(desk: Desk) -> None:
    """Soon: whoever was cut hears of it a moment later."""
    await keys_once(desk, lambda found: not found)


async def begun(desk: Desk, what: str = "upload:") -> str:
    """An upload is under way: the key of Redis that tells of it."""
    found = await keys_once(desk, lambda found: any(key.startswith(what) for key in found))
    return next(key for key in found if key.startswith(what))


class Slow:
    """A body of two halves; the second comes when the test says so."""

    def __init__(self, first: bytes, second: bytes) -> None:
        self._halves = (first, second)
        self.go = asyncio.Event()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._halves[0]
        await self.go.wait()
        yield self._halves[1]


# ---- taken -------------------------------------------------------------------------------------------------------


async def test_lines_are_taken_in_their_order(alice: httpx.AsyncClient, desk: Desk) -> None:
    params = {"metadata": '{"season": "spring"}', "callback_url": "https://shop.example/done"}
    answer = await alice.post("/v1/batches", content=named(5), params=params, headers=NDJSON)
    batch = answer.json()
    assert (answer.status_code, answer.headers["location"]) == (202, f"/v1/batches/{batch['id']}")
    assert (batch["status"], batch["total"], batch["counts"]["queued"], batch["progress"]) == ("running", 5, 5, 0)
    assert (batch["metadata"], batch["callback_url"]) == ({"season": "spring"}, "https://shop.example/done")
    await desk.store.batches.unfold(batch["id"], 10)
    jobs = (await alice.get(f"/v1/batches/{batch['id']}/jobs")).json()["jobs"]
    assert [job["custom_id"] for job in jobs] == ["c0", "c1", "c2", "c3", "c4"]


async def test_a_list_is_taken_like_lines(alice: httpx.AsyncClient, desk: Desk) -> None:
    body = {"jobs": [ORDER | {"custom_id": "a"}, ORDER | {"prompt": "ein Füchslein"}], "metadata": {"n": 1}}
    batch = (await alice.post("/v1/batches", json=body)).json()
    await desk.store.batches.unfold(batch["id"], 10)
    jobs = (await alice.get(f"/v1/batches/{batch['id']}/jobs")).json()["jobs"]
    assert [(job["custom_id"], job["request"]["prompt"]) for job in jobs] == [
        ("a", ORDER["prompt"]),
        (None, "ein Füchslein"),
    ]
    assert batch["metadata"] == {"n": 1}


@pytest.mark.parametrize("body", [named(2).strip(), named(2) + b"\n \r\n\n", named(2).replace(b"\n", b"\r\n")])
async def test_how_a_file_ends_its_lines_does_not_matter(alice: httpx.AsyncClient, body: bytes) -> None:
    answer = await posted(alice, body)
    assert (answer.status_code, answer.json()["total"]) == (202, 2)


async def test_a_base64_image_of_a_line_waits_in_the_bucket(
    buyer: httpx.AsyncClient, worker: Worker, bucket: Bucket
) -> None:
    image = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(300_000)).decode()
    batch_id = (await posted(buyer, named(1) + rows(ORDER | {"image_prompt": image}))).json()["id"]
    _, job = await worker.jobs(batch_id)
    assert job.request["image_prompt"]["bytes"] == 300_008
    assert await bucket.head(job.request["image_prompt"]["key"])


# ---- refused -----------------------------------------------------------------------------------------------------


async def test_all_bad_lines_are_named_and_nothing_is_made(alice: httpx.AsyncClient, desk: Desk) -> None:
    bad = [named(1), b"{\n", rows(ORDER | {"width": 1, "colour": "red"}), b"\n", named(1), b"[]"]
    answer = await posted(alice, b"".join(bad))
    told = answer.json()
    assert (answer.status_code, told["code"], told["more_lines"]) == (422, "invalid_request", [])
    assert [(error["line"], error["pointer"]) for error in told["errors"]] == [
        (2, ""), (3, "/width"), (3, "/colour"), (4, ""), (6, ""),
    ]  # fmt: skip
    await nothing_is_left(desk)


class Deaf(Bucket):
    """Deletes nothing, and never says so."""

    async def delete_prefix(self, prefix: str, limit: int) -> int:
        await asyncio.Event().wait()
        return await super().delete_prefix(prefix, limit)


async def test_a_refusal_does_not_wait_for_the_images_that_have_to_go(
    redis_url: str, bucket_config: BucketConfig, s3_session: Session, desk: Desk, worker: Worker, bucket: Bucket
) -> None:
    image = base64.b64encode(b"\x89PNG\r\n\x1a\n").decode()
    with serving(redis_url, Deaf(bucket_config, s3_session), S3_BUCKET=bucket_config.name) as web:
        async with person("alice", web.url) as alice:
            answer = await posted(alice, rows(ORDER | {"image_prompt": image}) + b"{\n", **KEY)
            assert (answer.status_code, answer.json()["errors"][0]["line"]) == (422, 2)
            assert len(await bucket.list_keys("inputs/", 10)) == 1
            await worker.look((await begun(desk, "batch:")).removeprefix("batch:"))
            assert await bucket.list_keys("inputs/", 10) == []
            await nothing_is_left(desk)
            assert (await posted(alice, named(1), **KEY)).status_code == 202


async def test_a_thousand_bad_lines_are_told_in_full_and_the_rest_by_number(alice: httpx.AsyncClient) -> None:
    told = (await posted(alice, named(1) + b"{}\n" * 1_003)).json()
    assert {error["line"] for error in told["errors"]} == set(range(2, 1_002))
    assert told["more_lines"] == [1_002, 1_003, 1_004]


async def test_more_lines_than_a_batch_may_have_are_refused(alice: httpx.AsyncClient, desk: Desk) -> None:
    told = (await posted(alice, b"0\n" * 60_000)).json()
    assert told["more_lines"][-1] == 50_001
    await nothing_is_left(desk)


@pytest.mark.parametrize("body", [b"", b"\n\n \n"])
async def test_an_empty_batch_is_none(alice: httpx.AsyncClient, desk: Desk, body: bytes) -> None:
    answer = await posted(alice, body)
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/jobs")
    await nothing_is_left(desk)


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ([], ""),
        ({}, "/jobs"),
        ({"jobs": {}}, "/jobs"),
        ({"jobs": []}, "/jobs"),
        ({"jobs": [ORDER], "priority": "high"}, "/priority"),
        ({"jobs": [ORDER], "metadata": 1}, "/metadata"),
        ({"jobs": [ORDER], "callback_url": "https://127.0.0.1/"}, "/callback_url"),
        ({"jobs": [ORDER | {"webhook_url": "https://x.example"}]}, "/webhook_url"),
    ],
)
async def test_each_mistake_in_a_list_is_named(alice: httpx.AsyncClient, body: Any, pointer: str) -> None:
    answer = await alice.post("/v1/batches", json=body)
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, pointer)


@pytest.mark.parametrize("params", [{"metadata": "{"}, {"metadata": "[]"}, {"callback_url": "ftp://x"}])
async def test_a_mistake_in_the_query_is_named(alice: httpx.AsyncClient, params: dict[str, str]) -> None:
    answer = await alice.post("/v1/batches", content=named(1), params=params, headers=NDJSON)
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, f"/{next(iter(params))}")


async def test_what_is_neither_json_nor_lines_is_told_so(alice: httpx.AsyncClient) -> None:
    answer = await alice.post("/v1/batches", content=named(1), headers={"Content-Type": "text/csv"})
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media_type")
    answer = await alice.post("/v1/batches", content=named(2), headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_json")


@pytest.mark.parametrize(("kind", "size"), [("application/x-ndjson", 200_000_001), ("application/json", 60_000_000)])
async def test_a_batch_over_its_size_is_refused_before_it_is_read(web: Serving, kind: str, size: int) -> None:
    host, _, port = web.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = f"POST /v1/batches HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\nContent-Length: {size}\r\n"
    writer.write(f"{head}Authorization: Bearer {PEOPLE['alice']}\r\n\r\n".encode())
    async with asyncio.timeout(WITHIN_S):
        assert b" 413 " in await reader.readline()
    writer.close()
    await writer.wait_closed()


async def test_a_line_has_the_size_of_a_job(redis_url: str) -> None:
    with serving(redis_url, MAX_BODY_BYTES="1KiB", INPUT_IMAGE_MAX_BYTES="1KiB") as web:
        async with person("alice", web.url) as alice:
            wide = rows(ORDER | {"prompt": "x" * 2_000}, ORDER | {"prompt": "x" * 80_000}, ORDER)
            told = (await posted(alice, wide)).json()
            assert [(error["line"], error["detail"][:17]) for error in told["errors"]] == [
                (1, "Without input ima"), (2, "A line may have 6"),
            ]  # fmt: skip


async def test_a_full_backlog_takes_no_batch(redis_url: str, desk: Desk) -> None:
    with serving(redis_url, BACKLOG_MAX="3") as web:
        async with person("alice", web.url) as alice:
            answer = await posted(alice, named(4), **KEY)
            assert (answer.status_code, answer.json()["code"]) == (429, "backlog_full")
            assert answer.headers["retry-after"]
            await nothing_is_left(desk)
            assert (await posted(alice, named(3), **KEY)).status_code == 202


# ---- the same key ------------------------------------------------------------------------------------------------


async def test_the_same_key_and_lines_are_the_same_batch(web: Serving, alice: httpx.AsyncClient, desk: Desk) -> None:
    first = await posted(alice, named(3), **KEY)
    before = await keys(desk)
    again = await posted(alice, named(3).replace(b": ", b":  "), **KEY)
    as_list = await alice.post("/v1/batches", json={"jobs": [*map(json.loads, named(3).split(b"\n")[:3])]}, headers=KEY)
    assert [answer.status_code for answer in (first, again, as_list)] == [202, 200, 200]
    assert first.json() | {"eta_s": None} == again.json() | {"eta_s": None} == as_list.json() | {"eta_s": None}
    assert await keys(desk) == before
    others = [named(2), named(3) + b"{\n", named(3).replace(b"fox", b"cat")]
    for answer in [await posted(alice, body, **KEY) for body in others]:
        assert (answer.status_code, answer.json()["code"]) == (409, "idempotency_conflict")
    with_more = await alice.post("/v1/batches", content=named(3), params={"metadata": '{"a":1}'}, headers=NDJSON | KEY)
    assert with_more.status_code == 409
    assert (await alice.post("/v1/jobs", json=ORDER, headers=KEY)).status_code == 409
    async with person("bob", web.url) as bob:
        assert (await posted(bob, named(3), **KEY)).status_code == 202


async def test_a_key_that_is_being_uploaded_is_busy_until_that_has_ended(alice: httpx.AsyncClient, desk: Desk) -> None:
    slow = Slow(named(1), named(1))
    uploading = asyncio.create_task(posted(alice, slow, **KEY))
    await begun(desk)
    busy = await posted(alice, named(2), **KEY)
    assert (busy.status_code, busy.json()["code"]) == (409, "in_progress")
    assert 1 <= int(busy.headers["retry-after"]) <= 15
    slow.go.set()
    assert (await uploading).status_code == 202
    assert (await posted(alice, named(1) * 2, **KEY)).status_code == 200


async def test_who_is_cut_off_may_begin_anew_at_once(alice: httpx.AsyncClient, desk: Desk) -> None:
    uploading = asyncio.create_task(posted(alice, Slow(named(300), b""), **KEY))
    await begun(desk, "lines:")
    uploading.cancel()
    await nothing_is_left(desk)
    answer = await posted(alice, named(300), **KEY)
    assert (answer.status_code, answer.json()["total"]) == (202, 300)


async def test_an_upload_whose_lease_ran_out_makes_nothing(alice: httpx.AsyncClient, desk: Desk) -> None:
    slow = Slow(named(1), named(1))
    uploading = asyncio.create_task(posted(alice, slow, **KEY))
    lease = await begun(desk)
    await desk.store._redis.delete(PREFIX + lease)
    slow.go.set()
    answer = await uploading
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
    await nothing_is_left(desk)


async def test_a_batch_that_no_replica_confirmed_is_503_with_its_id(redis_url: str, desk: Desk) -> None:
    await desk.store.plan("stage", "nothing", None)  # the script is known: a NOSCRIPT would wait for replicas, too
    with serving(redis_url, REDIS_REPLICAS_TO_WAIT="1") as web:
        async with person("alice", web.url) as alice:
            answer = await posted(alice, named(2), **KEY)
            assert (answer.status_code, answer.json()["code"]) == (503, "durability_unconfirmed")
            again = await posted(alice, named(2), **KEY)
            assert again.json()["id"] == answer.json()["batch_id"]


async def test_without_a_known_token_no_batch_is_read(web: Serving) -> None:
    async with httpx.AsyncClient(base_url=web.url, trust_env=False) as stranger:
        assert (await posted(stranger, named(1))).status_code == 401
