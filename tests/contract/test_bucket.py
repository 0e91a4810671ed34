"""What the bucket promises, of a real SeaweedFS and, where it is faithful enough, of moto."""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest
from boto3.session import Session  # type: ignore[import-untyped]  # boto3 has no py.typed
from moto import mock_aws

from deploy.local.seaweed import Seaweed
from service.domain.layout import image_key, new_id
from service.storage.bucket import PAGE_KEYS, Bucket
from service.storage.objects import BucketConfig, BucketRefused, BucketUnavailable, Conflict, ProbeReport, Stored

pytest_plugins = ["tests.fixtures_s3"]
pytestmark = pytest.mark.anyio

JOB = new_id("job", 1_798_761_599_999, bytes(10))
KEY = image_key(JOB, "png")
OURS = {"job-id": JOB, "seed": "7"}
THEIRS = {"job-id": new_id("job", 1_798_761_599_999, b"\xff" * 10)}
PNG = os.urandom(200_000)
WIDTH = 8
GET_TIMEOUT_S = 5


@pytest.fixture(params=["seaweed", "moto"])
def store(request: pytest.FixtureRequest) -> Iterator[tuple[BucketConfig, Session]]:
    if request.param == "seaweed":
        yield request.getfixturevalue("bucket_config"), request.getfixturevalue("s3_session")
        return
    with mock_aws():
        session = Session("moto", "moto", region_name="us-east-1")
        session.client("s3").create_bucket(Bucket="darkroom")
        yield BucketConfig("darkroom", prefix="/test/"), session


@pytest.fixture
async def bucket(store: tuple[BucketConfig, Session]) -> AsyncIterator[Bucket]:
    made = Bucket(*store)
    yield made
    await made.close()


@pytest.fixture
async def real(bucket_config: BucketConfig, s3_session: Session) -> AsyncIterator[Bucket]:
    made = Bucket(bucket_config, s3_session)
    yield made
    await made.close()


async def put(bucket: Bucket, data: bytes = PNG, metadata: dict[str, str] = OURS) -> Stored | Conflict:
    return await bucket.put_bytes(KEY, data, content_type="image/png", metadata=metadata)


async def test_a_file_is_stored_byte_for_byte_with_its_facts(bucket: Bucket, tmp_path: Path) -> None:
    file = tmp_path / "pulled"
    file.write_bytes(PNG)
    sha256 = hashlib.sha256(PNG).hexdigest()
    stored = await bucket.put_file(KEY, file, content_type="image/png", sha256=sha256, metadata=OURS)
    there = await bucket.head(KEY)
    assert isinstance(stored, Stored)
    assert stored.created
    assert stored.facts == there
    assert there is not None
    assert (there.size_bytes, there.content_type, there.metadata) == (len(PNG), "image/png", OURS)
    assert await bucket.get_bytes(KEY, len(PNG)) == PNG
    assert await bucket.hash_object(KEY, len(PNG)) == (sha256, len(PNG))


async def test_our_own_object_is_adopted_and_not_overwritten(bucket: Bucket) -> None:
    first = await put(bucket)
    again = await put(bucket, b"other bytes of the same job")
    assert isinstance(first, Stored)
    assert again == replace(first, created=False)
    assert await bucket.get_bytes(KEY, len(PNG)) == PNG


@pytest.mark.parametrize("metadata", [THEIRS, {}, {"seed": "7"}])
async def test_anothers_object_is_a_conflict_and_stays_as_it_is(bucket: Bucket, metadata: dict[str, str]) -> None:
    await put(bucket, PNG, metadata)
    refused = await put(bucket, b"ours", OURS)
    assert isinstance(refused, Conflict)
    assert refused.facts.metadata == metadata
    assert await bucket.get_bytes(KEY, len(PNG)) == PNG


async def test_a_batch_adopts_its_own_manifest(bucket: Bucket) -> None:
    mine = {"batch-id": "batch_1"}
    assert isinstance(await put(bucket, b"{}", mine), Stored)
    assert isinstance(await put(bucket, b"{}", mine), Stored)
    assert isinstance(await put(bucket, b"{}", {"batch-id": "batch_2"}), Conflict)


async def test_what_is_not_there_is_none(bucket: Bucket) -> None:
    assert await bucket.head(KEY) is None
    assert await bucket.get_bytes(KEY, 10) is None
    assert await bucket.hash_object(KEY, 10) is None
    assert await bucket.find_image(JOB) is None
    assert await bucket.list_keys("", 10) == []
    await bucket.delete(KEY)


async def test_an_object_over_the_limit_is_not_read(bucket: Bucket) -> None:
    await put(bucket)
    assert await bucket.get_bytes(KEY, len(PNG) - 1) is None
    assert await bucket.hash_object(KEY, len(PNG) - 1) is None


@pytest.mark.parametrize("extension", ["jpeg", "png", "webp"])
async def test_the_image_of_a_job_is_found_under_any_of_its_keys(bucket: Bucket, extension: str) -> None:
    key = KEY.replace("png", extension)
    await bucket.put_bytes(key, PNG, content_type=f"image/{extension}", metadata=OURS)
    found = await bucket.find_image(JOB)
    assert found is not None
    assert found.key == key


async def test_an_image_of_another_job_is_not_found_as_ours(bucket: Bucket) -> None:
    await put(bucket, PNG, THEIRS)
    assert await bucket.find_image(JOB) is None


async def test_a_deleted_object_is_gone(bucket: Bucket) -> None:
    await put(bucket)
    await bucket.delete(KEY)
    assert await bucket.head(KEY) is None
    assert isinstance(await put(bucket, b"anew"), Stored)


async def test_deleting_by_prefix_takes_no_more_than_it_may(bucket: Bucket) -> None:
    names = ["inputs/a/1", "inputs/a/2", "inputs/a/3", "inputs/ab/1"]
    for name in names:
        await bucket.put_bytes(name, b"x", content_type="text/plain", metadata={})
    assert await bucket.list_keys("inputs/", 3) == names[:3]
    assert await bucket.delete_prefix("inputs/a/", 2) == 2
    assert await bucket.delete_prefix("inputs/a/", 10) == 1
    assert await bucket.list_keys("", 10) == ["inputs/ab/1"]
    with pytest.raises(ValueError, match="whole bucket"):
        await bucket.delete_prefix("", 10)


@pytest.mark.parametrize("store", ["moto"], indirect=True)
async def test_a_listing_goes_on_over_pages(bucket: Bucket, store: tuple[BucketConfig, Session]) -> None:
    client = store[1].client("s3")
    names = [f"many/{n:04}" for n in range(PAGE_KEYS + 2)]
    for name in names:
        client.put_object(Bucket=bucket.name, Key=bucket.full_key(name), Body=b"")
    client.close()
    assert await bucket.list_keys("many/", 2 * PAGE_KEYS) == names


async def test_without_conditional_writes_a_look_comes_first(store: tuple[BucketConfig, Session]) -> None:
    config, session = store
    bucket = Bucket(replace(config, conditional_writes=False), session)
    first = await put(bucket)
    assert isinstance(first, Stored)
    assert await put(bucket, b"again") == replace(first, created=False)
    assert isinstance(await put(bucket, b"x", THEIRS), Conflict)
    await bucket.close()


async def test_of_eight_writers_at_once_one_creates(real: Bucket) -> None:
    for turn in range(3):  # SeaweedFS's lock may cost a loser whole seconds
        key, each = f"{turn}/{KEY}", [os.urandom(50_000) for _ in range(WIDTH)]
        writes = [real.put_bytes(key, data, content_type="image/png", metadata=OURS) for data in each]
        outcomes = await asyncio.gather(*writes)
        created = [n for n, outcome in enumerate(outcomes) if isinstance(outcome, Stored) and outcome.created]
        assert len(created) == 1
        assert all(isinstance(outcome, Stored) for outcome in outcomes)
        assert await real.get_bytes(key, 50_000) == each[created[0]]


async def test_bytes_that_are_not_those_of_the_checksum_are_not_stored(real: Bucket, tmp_path: Path) -> None:
    file = tmp_path / "spooled"
    file.write_bytes(PNG[:-1])
    with pytest.raises(BucketUnavailable, match="put: 400 BadDigest"):
        await real.put_file(KEY, file, content_type="image/png", sha256=hashlib.sha256(PNG).hexdigest(), metadata=OURS)
    assert await real.head(KEY) is None


async def test_a_file_that_is_gone_is_no_fault_of_the_bucket(real: Bucket, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await real.put_file(KEY, tmp_path / "gone", content_type="image/png", sha256="00" * 32, metadata=OURS)


async def test_a_presigned_link_serves_anybody(real: Bucket) -> None:
    await real.put_bytes(KEY, PNG, content_type="image/png", metadata=OURS, content_disposition="attachment")
    link = await real.presign_get(KEY, 'a "photo".png')
    with await asyncio.to_thread(urlopen, link, timeout=GET_TIMEOUT_S) as answer:
        assert answer.read() == PNG
        assert answer.headers["Content-Type"] == "image/png"
        assert answer.headers["Content-Disposition"] == 'attachment; filename="a__photo_.png"'


async def test_a_presigned_link_with_a_letter_changed_serves_nobody(real: Bucket) -> None:
    await put(real)
    link = await real.presign_get(KEY)
    forged = link[:-1] + ("0" if link[-1] != "0" else "1")
    with pytest.raises(HTTPError, match="403") as refused:
        await asyncio.to_thread(urlopen, forged, timeout=GET_TIMEOUT_S)
    refused.value.close()


async def test_a_presigned_link_names_the_public_host(bucket_config: BucketConfig, s3_session: Session) -> None:
    bucket = Bucket(replace(bucket_config, public_endpoint_url="https://images.example", presign_ttl_s=60), s3_session)
    link = urlsplit(await bucket.presign_get(KEY))
    assert (link.scheme, link.netloc) == ("https", "images.example")
    assert link.path == f"/{bucket.name}/{bucket.full_key(KEY)}"
    assert "X-Amz-Expires=60" in link.query
    await bucket.close()


async def test_a_probe_sees_what_seaweed_does_and_leaves_nothing(real: Bucket) -> None:
    assert await real.probe() == ProbeReport(conditional_writes=True, checksums=True)
    assert (await real.probe()).missing == ()
    assert await real.list_keys("", 10) == []


@pytest.mark.parametrize("store", ["moto"], indirect=True)  # SeaweedFS keeps no keys here, and forgets the class
async def test_what_the_operator_wants_goes_with_every_write(store: tuple[BucketConfig, Session]) -> None:
    config, session = store
    bucket = Bucket(replace(config, sse_kms_key_id="alias/photos", storage_class="STANDARD_IA"), session)
    await put(bucket)
    client = session.client("s3")
    head = client.head_object(Bucket=bucket.name, Key=bucket.full_key(KEY))
    assert (head["ServerSideEncryption"], head["SSEKMSKeyId"]) == ("aws:kms", "alias/photos")
    assert head["StorageClass"] == "STANDARD_IA"
    client.close()
    await bucket.close()


async def test_every_write_carries_the_operators_tags(store: tuple[BucketConfig, Session], tmp_path: Path) -> None:
    config, session = store
    tags = {"team": "images and more", "env/stage": "prod=1+2"}
    bucket = Bucket(replace(config, tags=tags), session)
    file = tmp_path / "pulled"
    file.write_bytes(PNG)
    sha256 = hashlib.sha256(PNG).hexdigest()
    await bucket.put_file(KEY, file, content_type="image/png", sha256=sha256, metadata=OURS)
    await bucket.put_bytes("jobs/one.json", b"{}", content_type="application/json", metadata=OURS)
    assert (await bucket.probe()).conditional_writes
    client = session.client("s3", endpoint_url=config.endpoint_url)
    for key in (KEY, "jobs/one.json"):
        kept = client.get_object_tagging(Bucket=bucket.name, Key=bucket.full_key(key))["TagSet"]
        assert {tag["Key"]: tag["Value"] for tag in kept} == tags
    client.close()
    await bucket.close()


@pytest.mark.parametrize("pair", [("nobody", "nothing"), (None, "wrong")])
async def test_wrong_credentials_are_the_operators_to_mend(
    seaweed: Seaweed, bucket_config: BucketConfig, pair: tuple[str | None, str]
) -> None:
    bucket = Bucket(bucket_config, Session(pair[0] or seaweed.access_key, pair[1]))
    with pytest.raises(BucketRefused) as refused:
        await put(bucket)
    assert refused.value.detail.startswith("put: 403 ")
    for call in (bucket.check(), bucket.head(KEY), bucket.find_image(JOB), bucket.get_bytes(KEY, 1), bucket.probe()):
        with pytest.raises(BucketRefused):
            await call
    await bucket.close()


async def test_a_bucket_that_is_not_there_is_the_operators_to_make(
    bucket_config: BucketConfig, s3_session: Session
) -> None:
    bucket = Bucket(replace(bucket_config, name="no-such-bucket"), s3_session)
    calls = [put(bucket), bucket.check(), bucket.head(KEY), bucket.find_image(JOB), bucket.get_bytes(KEY, 1)]
    for call in (*calls, bucket.hash_object(KEY, 1), bucket.delete_prefix("x", 1), bucket.probe()):
        with pytest.raises(BucketRefused, match="404"):
            await call
    await bucket.close()
