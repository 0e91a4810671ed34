"""The store fails in every way it can: no partial object, no foreign exception, no call without an end."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import urlsplit

import pytest
from boto3.session import Session  # type: ignore[import-untyped]  # boto3 has no py.typed

from deploy.local.seaweed import Seaweed
from service.storage.bucket import Bucket
from service.storage.objects import BucketConfig, BucketError, BucketRefused, BucketUnavailable, Conflict, Stored
from tests.cutting_proxy import CuttingProxy

pytest_plugins = ["tests.fixtures_s3"]
pytestmark = pytest.mark.anyio

KEY = "images/one.png"
OURS = {"job-id": "ours"}
PNG = os.urandom(1_000_000)
CONTINUE_BYTES = len(b"HTTP/1.1 100 Continue\r\n\r\n")
DEADLINE_S = 1.0
SLACK_S = 5.0  # for a busy machine; without a deadline the calls below would take for ever
LONG_BYTES = 30_000_000
CHUNK_DELAY_S = 0.1  # 64 KiB each: the above takes 46 s
SECRET = "do-not-tell"


def put(bucket: Bucket, key: str = KEY, data: bytes = PNG) -> Awaitable[Stored | Conflict]:
    return bucket.put_bytes(key, data, content_type="image/png", metadata=OURS)


@asynccontextmanager
async def through_proxy(config: BucketConfig, session: Session) -> AsyncIterator[tuple[Bucket, CuttingProxy]]:
    port = urlsplit(config.endpoint_url).port
    assert isinstance(port, int)
    async with CuttingProxy("127.0.0.1", port) as proxy:
        bucket = Bucket(replace(config, endpoint_url=proxy.url), session)
        yield bucket, proxy
        await bucket.close()


@pytest.mark.parametrize("tenth", range(10))
async def test_an_upload_cut_at_any_tenth_leaves_no_object(
    bucket_config: BucketConfig, s3_session: Session, tenth: int
) -> None:
    async with through_proxy(bucket_config, s3_session) as (bucket, proxy):
        proxy.cut_up_bytes = 2_000 + tenth * len(PNG) // 10  # the head of the request takes some 1,000
        with pytest.raises(BucketUnavailable):
            await put(bucket)
        assert proxy.cuts == 1
        proxy.cut_up_bytes = None
        assert await bucket.head(KEY) is None
        assert await bucket.list_keys("", 10) == []
        stored = await put(bucket)
        assert isinstance(stored, Stored)
        assert stored.created


async def test_when_the_answer_to_an_upload_is_lost_the_object_is_found_again(
    bucket_config: BucketConfig, s3_session: Session
) -> None:
    async with through_proxy(bucket_config, s3_session) as (bucket, proxy):
        proxy.cut_down_bytes = CONTINUE_BYTES
        with pytest.raises(BucketUnavailable):
            await put(bucket)
        proxy.cut_down_bytes = None
        again = await put(bucket)
        assert isinstance(again, Stored)
        assert not again.created
        assert await bucket.get_bytes(KEY, len(PNG)) == PNG


async def test_a_download_that_is_cut_is_no_object(bucket_config: BucketConfig, s3_session: Session) -> None:
    async with through_proxy(bucket_config, s3_session) as (bucket, proxy):
        await put(bucket)
        await proxy.drop()
        proxy.cut_down_bytes = len(PNG) // 2
        for call in (bucket.get_bytes(KEY, len(PNG)), bucket.hash_object(KEY, len(PNG))):
            with pytest.raises(BucketUnavailable):
                await call


async def test_a_store_that_refuses_connections_is_unavailable_until_it_is_back(
    bucket_config: BucketConfig, s3_session: Session
) -> None:
    async with through_proxy(bucket_config, s3_session) as (bucket, proxy):
        await proxy.refuse()
        with pytest.raises(BucketUnavailable, match="put: EndpointConnectionError"):
            await put(bucket)
        with pytest.raises(BucketUnavailable, match="check: "):
            await bucket.check()
        await proxy.accept()
        await bucket.check()
        assert isinstance(await put(bucket), Stored)


async def test_a_store_that_hangs_costs_no_more_than_the_deadline(
    bucket_config: BucketConfig, s3_session: Session
) -> None:
    async with through_proxy(replace(bucket_config, deadline_s=DEADLINE_S), s3_session) as (bucket, proxy):
        proxy.stall()
        began = time.monotonic()
        with pytest.raises(BucketUnavailable, match="put: not done within 1 s"):
            await put(bucket)
        assert time.monotonic() - began < DEADLINE_S + SLACK_S
        proxy.resume()
        await bucket.check()


async def test_an_upload_that_nobody_waits_for_any_more_ends(bucket_config: BucketConfig, s3_session: Session) -> None:
    """Its one thread is free again, though the store would go on taking the bytes for most of a minute."""
    slow = replace(bucket_config, deadline_s=DEADLINE_S, max_connections=1)
    async with through_proxy(slow, s3_session) as (bucket, proxy):
        proxy.delay_s = CHUNK_DELAY_S
        with pytest.raises(BucketUnavailable):
            await put(bucket, data=bytes(LONG_BYTES))
        await comes_back(bucket)
        assert await bucket.head(KEY) is None


async def test_a_download_that_nobody_waits_for_any_more_ends(bucket_config: BucketConfig, s3_session: Session) -> None:
    async with through_proxy(replace(bucket_config, max_connections=1), s3_session) as (bucket, proxy):
        await put(bucket, data=bytes(LONG_BYTES))
        proxy.delay_s = CHUNK_DELAY_S
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(DEADLINE_S):
                await bucket.hash_object(KEY, LONG_BYTES)
        await comes_back(bucket)


async def comes_back(bucket: Bucket) -> None:
    """The bucket answers within the slack, though each call of its own may be too slow while the old one ends."""
    async with asyncio.timeout(SLACK_S):
        while True:
            with contextlib.suppress(BucketUnavailable):
                return await bucket.check()


async def test_after_a_failure_a_call_may_take_little_then_more_and_after_a_good_one_all_again(
    bucket_config: BucketConfig, s3_session: Session
) -> None:
    config = replace(bucket_config, deadline_s=4.0, again_deadline_s=0.5)
    async with through_proxy(config, s3_session) as (bucket, proxy):
        await put(bucket)
        await proxy.refuse()
        with pytest.raises(BucketUnavailable, match="EndpointConnectionError"):
            await bucket.check()
        await proxy.accept()
        proxy.stall()
        together = await asyncio.gather(*(bucket.head(KEY) for _ in range(3)), return_exceptions=True)
        assert {str(each) for each in together} == {"head: not done within 0.5 s"}, "a store that is back may hang"
        await bucket.presign_get(KEY)
        with pytest.raises(BucketUnavailable, match="within 1 s"):
            await bucket.check()
        with pytest.raises(BucketUnavailable, match="within 2 s"):
            await bucket.check()
        proxy.resume()
        await bucket.check()
        proxy.stall()
        with pytest.raises(BucketUnavailable, match="within 4 s"):
            await bucket.check()


async def test_a_closed_bucket_is_unavailable(bucket_config: BucketConfig, s3_session: Session) -> None:
    bucket = Bucket(bucket_config, s3_session)
    await bucket.close()
    with pytest.raises(BucketUnavailable):
        await bucket.check()


@pytest.mark.processes
async def test_what_was_acknowledged_outlives_kill_9_of_the_store(tmp_path: Path) -> None:
    server = Seaweed(tmp_path / "s3")
    server.start()
    bucket = Bucket(
        BucketConfig(server.bucket, server.endpoint_url, deadline_s=DEADLINE_S),
        Session(server.access_key, server.secret_key),
    )
    acknowledged: list[str] = []
    try:
        await _write_until_it_dies(bucket, server, acknowledged)
        with pytest.raises(BucketUnavailable):
            await bucket.check()
        server.start()
        there = [await bucket.get_bytes(key, 100_000) for key in acknowledged]
        assert there == [PNG[:100_000]] * len(acknowledged)
    finally:
        server.stop()
        await bucket.close()
    with pytest.raises(BucketUnavailable):
        await put(bucket)


async def _write_until_it_dies(bucket: Bucket, server: Seaweed, acknowledged: list[str]) -> None:
    """Four writers write on; the store is killed under them after the fortieth acknowledgement."""
    enough = asyncio.Event()

    async def write(writer: int) -> None:
        for turn in range(1_000):
            key = f"{writer}/{turn}"
            try:
                await put(bucket, key, PNG[:100_000])
            except BucketUnavailable:
                return
            acknowledged.append(key)
            if len(acknowledged) == 40:
                enough.set()

    writers = [asyncio.create_task(write(n)) for n in range(4)]
    async with asyncio.timeout(60):
        await enough.wait()
    os.kill(server.pid, signal.SIGKILL)
    await asyncio.gather(*writers)


class Canned(ThreadingHTTPServer):
    """Gives every request the same answer."""

    daemon_threads = True
    status, body = 200, b""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class CannedAnswer(BaseHTTPRequestHandler):
    def handle(self) -> None:
        try:
            super().handle()
        except ConnectionError:
            self.close_connection = True

    def answer(self) -> None:
        assert isinstance(self.server, Canned)
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(self.server.body)))
        self.send_header("Connection", "close")
        self.send_header("x-amz-bucket-region", "eu-west-1")  # botocore follows a 301 there, once
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(self.server.body)

    do_GET = do_PUT = do_HEAD = do_DELETE = answer  # noqa: N815  names that http.server looks up

    def log_message(self, *said: Any) -> None:
        """Keep the output of the tests clean."""


@pytest.fixture
def canned() -> Iterator[Canned]:
    with Canned(("127.0.0.1", 0), CannedAnswer) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def xml(code: str) -> bytes:
    return (
        f"<Error><Code>{code}</Code><Message>{SECRET}</Message><StringToSign>{SECRET}</StringToSign></Error>".encode()
    )


ANSWERS: list[tuple[int, bytes, type[BucketError]]] = [
    (500, xml("InternalError"), BucketUnavailable),
    (503, xml("SlowDown"), BucketUnavailable),
    (503, b"<html>busy</html>", BucketUnavailable),
    (429, b"", BucketUnavailable),
    (409, xml("ConditionalRequestConflict"), BucketUnavailable),
    (400, xml("RequestTimeout"), BucketUnavailable),
    (400, xml("IncompleteBody"), BucketUnavailable),
    (507, xml("XMinioStorageFull"), BucketUnavailable),
    (400, xml("ExpiredToken"), BucketRefused),
    (400, xml("AuthorizationHeaderMalformed"), BucketRefused),
    (403, xml("AccessDenied"), BucketRefused),
    (403, xml("RequestTimeTooSkewed"), BucketRefused),
    (403, b"<html>a proxy says no</html>", BucketRefused),
    (404, xml("NoSuchBucket"), BucketRefused),
    (405, xml("MethodNotAllowed"), BucketRefused),
    (301, xml("PermanentRedirect"), BucketRefused),
    (403, xml(f"{SECRET}?X-Amz-Signature=0"), BucketRefused),
    (403, b"\xff\x00<", BucketRefused),
]


@pytest.mark.parametrize(("status", "body", "verdict"), ANSWERS)
async def test_each_answer_of_a_store_has_one_verdict(
    canned: Canned, status: int, body: bytes, verdict: type[BucketError]
) -> None:
    canned.status, canned.body = status, body
    bucket = Bucket(BucketConfig("darkroom", canned.url), Session("key-id", SECRET))
    with pytest.raises(verdict) as failed:
        await put(bucket, data=b"png")
    assert failed.value.detail.startswith("put: ")
    assert not set(failed.value.detail) & set("?=/<")
    assert failed.value.__suppress_context__
    assert failed.value.__cause__ is None
    await bucket.close()


async def test_a_page_of_html_in_place_of_xml_is_an_outage(canned: Canned) -> None:
    canned.body = b"<html>Sign in to the hotel's network<br>"
    bucket = Bucket(BucketConfig("darkroom", canned.url), Session("key-id", SECRET))
    with pytest.raises(BucketUnavailable):
        await bucket.list_keys("", 10)
    await bucket.close()


async def test_a_store_that_overwrites_and_checks_nothing_is_told_by_the_probe(canned: Canned) -> None:
    bucket = Bucket(BucketConfig("darkroom", canned.url), Session("key-id", SECRET))
    report = await bucket.probe()
    assert (report.conditional_writes, report.checksums) == (False, False)
    assert len(report.missing) == 2
    await bucket.close()


async def test_no_credentials_at_all_are_the_operators_to_give(
    canned: Canned, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    bucket = Bucket(BucketConfig("darkroom", canned.url))
    with pytest.raises(BucketRefused, match="NoCredentialsError"):
        await bucket.check()
    await bucket.close()
