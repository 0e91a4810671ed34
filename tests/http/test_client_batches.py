"""What the client does with batches, images and foreign answers, against a server that answers as it is told."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.client import AsyncClient, Client, Patience, ServiceError, Unreachable
from tests.fake_service import FakeService, Reply, fake_service, told

pytestmark = [pytest.mark.anyio, pytest.mark.processes]

TOKEN = "alice-" + "a" * 32
COUNTS = dict.fromkeys(("queued", "submitting", "generating", "collecting", "succeeded", "failed", "cancelled"), 0)
BATCH: dict[str, Any] = {"id": "batch_1", "status": "running", "total": 2, "counts": COUNTS, "progress": 0.0}
DONE = BATCH | {"status": "completed", "progress": 1.0}
ORDERS = [{"model": "flux-dev", "prompt": "a fox", "custom_id": str(n)} for n in range(3)]
NDJSON = b"".join(json.dumps(order).encode() + b"\n" for order in ORDERS)
BUSY = {"code": "in_progress", "detail": "The same key is still uploading."}


@pytest.fixture
def fake() -> Iterator[FakeService]:
    with fake_service() as made:
        yield made


@pytest.fixture
def darkroom(fake: FakeService) -> Iterator[Client]:
    with Client(fake.url, TOKEN, sleep=lambda _: None) as client:
        yield client


# ---- batches -----------------------------------------------------------------------------------------------------


def test_a_batchs_events_go_on_over_its_jobs_ends_until_its_own(fake: FakeService, darkroom: Client) -> None:
    lines = [("1-0", "job.succeeded", "job_1", "succeeded"), ("2-0", "batch.completed", "batch_1", "completed")]
    texts = [
        f"id: {eid}\nevent: {kind}\ndata: {json.dumps({'id': id_, 'batch_id': 'batch_1', 'status': status})}\n\n"
        for eid, kind, id_, status in lines
    ]
    fake.script["GET /v1/batches/batch_1/events"] = [Reply(200, texts[0].encode()), Reply(200, texts[1].encode())]
    assert [event.type for event in darkroom.events("batch_1")] == ["job.succeeded", "batch.completed"]
    assert [asked.headers.get("last-event-id") for asked in fake.asked] == [None, "1-0"]


def test_orders_are_sent_line_by_line_with_a_key_of_their_own(fake: FakeService, darkroom: Client) -> None:
    fake.script["POST /v1/batches"] = [told(BATCH, 202)]
    batch = darkroom.submit_batch((order for order in ORDERS), metadata={"season": "spring"})
    (asked,) = fake.asked
    assert (batch["id"], asked.body, asked.headers["content-type"]) == ("batch_1", NDJSON, "application/x-ndjson")
    assert "metadata=%7B%22season%22" in asked.path
    assert asked.headers["authorization"] == f"Bearer {TOKEN}"
    assert "transfer-encoding" not in asked.headers


async def test_a_file_is_sent_whole_again_after_a_cut(fake: FakeService, tmp_path: Path) -> None:
    file = tmp_path / "orders.ndjson"
    file.write_bytes(NDJSON)
    cut = told(BATCH, 202)
    fake.script["POST /v1/batches"] = [
        Reply(202, cut.body, cut_bytes=5),
        told(BUSY, 409, **{"Retry-After": "1"}),
        told(BATCH, 202),
    ]
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    async with AsyncClient(fake.url, TOKEN, sleep=sleep) as darkroom:
        await darkroom.submit_batch(file)
    assert [asked.body for asked in fake.asked] == [NDJSON] * 3
    assert len({asked.headers["idempotency-key"] for asked in fake.asked}) == 1
    assert pauses[2] >= 1


def test_bad_lines_are_named_and_not_sent_again(fake: FakeService, darkroom: Client) -> None:
    errors = [{"line": 2, "pointer": "/width", "detail": "Too small"}]
    refusal = {"code": "invalid_request", "detail": "2 lines.", "errors": errors, "more_lines": [7]}
    fake.script["POST /v1/batches"] = [told(refusal, 422)]
    with pytest.raises(ServiceError) as error:
        darkroom.submit_batch(ORDERS)
    assert (error.value.errors, error.value.more_lines, len(fake.asked)) == (errors, [7], 1)


def test_a_batch_is_watched_to_its_end(fake: FakeService, darkroom: Client) -> None:
    halfway = BATCH | {"progress": 0.5}
    fake.script["GET /v1/batches/batch_1"] = [told(each) for each in (BATCH, BATCH, halfway, DONE)]
    assert [batch["progress"] for batch in darkroom.watch("batch_1")] == [0.0, 0.5, 1.0]


PAGES: list[dict[str, Any]] = [
    {"batches": [BATCH], "next_cursor": "further"},
    {"batches": [DONE | {"id": "batch_0"}], "next_cursor": None},
]


def test_batches_are_listed_over_their_pages(fake: FakeService, darkroom: Client) -> None:
    fake.script["GET /v1/batches"] = [told(page) for page in PAGES]
    assert [batch["id"] for batch in darkroom.batches()] == ["batch_1", "batch_0"]
    assert ["cursor=further" in asked.path for asked in fake.asked] == [False, True]


async def test_batches_are_listed_over_their_pages_on_asyncio(fake: FakeService) -> None:
    fake.script["GET /v1/batches"] = [told(page) for page in PAGES]
    async with AsyncClient(fake.url, TOKEN) as darkroom:
        assert [batch["id"] async for batch in darkroom.batches()] == ["batch_1", "batch_0"]


def test_a_cancelled_batch_whose_answer_was_lost_is_cancelled(fake: FakeService, darkroom: Client) -> None:
    ended = {"code": "already_ended", "detail": "It is over."}
    fake.script["POST /v1/batches/batch_1/cancel"] = [Reply(200, b"{}", cut_bytes=1), told(ended, 409)]
    fake.script["GET /v1/batches/batch_1"] = [told(BATCH | {"status": "cancelled"})]
    assert darkroom.cancel_batch("batch_1")["status"] == "cancelled"


def test_a_manifest_that_was_cut_tells_each_line_once(fake: FakeService, darkroom: Client) -> None:
    lines = b"".join(json.dumps({"id": f"job_{n}", "status": "succeeded"}).encode() + b"\n" for n in range(3))
    whole = Reply(200, lines)
    fake.script["GET /v1/batches/batch_1/manifest"] = [Reply(200, lines, cut_bytes=len(lines) - 20), whole]
    assert [job["id"] for job in darkroom.manifest("batch_1")] == ["job_0", "job_1", "job_2"]
    assert len(fake.asked) == 2


def test_a_manifest_in_the_bucket_is_fetched_without_the_token(fake: FakeService, darkroom: Client) -> None:
    with fake_service() as bucket:
        bucket.script["GET /manifest.ndjson"] = [Reply(200, b'{"id": "job_0", "status": "failed"}\n')]
        there = {"Location": f"{bucket.url}/manifest.ndjson?sig=x"}
        fake.script["GET /v1/batches/batch_1/manifest"] = [Reply(307, headers=there)]
        assert [job["id"] for job in darkroom.manifest("batch_1")] == ["job_0"]
        assert "authorization" not in bucket.asked[0].headers


# ---- the image ---------------------------------------------------------------------------------------------------


@pytest.fixture
def bucket(fake: FakeService) -> Iterator[FakeService]:
    with fake_service() as made:
        fake.script["GET /v1/jobs/job_1/image"] = [Reply(307, headers={"Location": f"{made.url}/picture.png?sig=x"})]
        yield made


def job_of(data: bytes) -> Any:
    return {"id": "job_1", "status": "succeeded", "image": {"sha256": hashlib.sha256(data).hexdigest()}}


def test_the_bucket_is_never_shown_the_token(fake: FakeService, bucket: FakeService, darkroom: Client) -> None:
    bucket.script["GET /picture.png"] = [Reply(200, b"picture")]
    assert darkroom.image(job_of(b"picture")) == b"picture"
    assert "authorization" not in bucket.asked[0].headers
    assert fake.asked[0].headers["authorization"]


def test_a_dead_link_is_replaced_by_a_fresh_one(fake: FakeService, bucket: FakeService, darkroom: Client) -> None:
    bucket.script["GET /picture.png"] = [Reply(403), Reply(200, b"pict", cut_bytes=2), Reply(200, b"picture")]
    assert darkroom.image("job_1") == b"picture"
    assert len(fake.asked) == 3


def test_other_bytes_than_those_that_were_hashed_are_no_image(fake: FakeService, bucket: FakeService) -> None:
    bucket.script["GET /picture.png"] = [Reply(200, b"another")]
    hasty = Client(fake.url, TOKEN, patience=Patience(total_s=0.0), sleep=lambda _: None)
    with hasty as darkroom, pytest.raises(Unreachable, match="hashed"):
        darkroom.image(job_of(b"picture"))


# ---- foreign answers ---------------------------------------------------------------------------------------------


def test_a_gateway_that_is_not_the_service_is_asked_again(fake: FakeService, darkroom: Client) -> None:
    job = {"id": "job_1", "status": "queued"}
    fake.script["GET /v1/jobs/job_1"] = [Reply(502, b"<html>"), Reply(504), Reply(503), told(job)]
    assert dict(darkroom.get("job_1")) == job
    assert len(fake.asked) == 4


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"null", b"\xff", b"{}", b'{"id": 1, "status": []}', b"[" * 99_999])
def test_an_answer_that_is_not_the_services_is_told_so(fake: FakeService, darkroom: Client, body: bytes) -> None:
    fake.script["GET /v1/jobs/job_1"] = [Reply(200, body)]
    with pytest.raises(ServiceError, match="not_understood"):
        darkroom.get("job_1")


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_of_the_api_is_not_followed(fake: FakeService, darkroom: Client, status: int) -> None:
    with fake_service() as other:
        fake.script["GET /v1/jobs/job_1"] = [Reply(status, headers={"Location": other.url + "/v1/jobs/job_1"})]
        with pytest.raises(ServiceError):
            darkroom.get("job_1")
        assert other.asked == []
