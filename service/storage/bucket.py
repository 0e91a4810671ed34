"""The bucket: objects are written once, whole or not at all, and never overwritten. The only file that knows boto3.

boto3 blocks, so each call runs in a thread of the bucket's own pool. It is tried once: retries belong to the caller,
who alone knows what else is due. A call ends by its deadline in any case, which is short after a failure (`allowance`).
Its thread may outlive it a little: an upload ends when it next asks for bytes (its body has been closed), a download at
its next 64 KiB, and either after `read_timeout_s` of silence.

The credentials need s3:PutObject, s3:GetObject, s3:DeleteObject and s3:ListBucket (without which S3 answers 403
where nothing is); with tags s3:PutObjectTagging.
"""

import asyncio
import hashlib
import re
import secrets
from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from io import BytesIO
from pathlib import Path
from threading import Event
from typing import IO, TYPE_CHECKING, Any, Final, TypeVar

from boto3.session import Session  # type: ignore[import-untyped]  # boto3 has no py.typed; the client is typed below
from botocore.config import Config  # type: ignore[import-untyped]  # the same
from botocore.exceptions import (  # type: ignore[import-untyped]  # the same
    ClientError,
    CredentialRetrievalError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
)

from service.domain.layout import image_keys
from service.storage.allowance import Allowance
from service.storage.objects import (
    BucketConfig,
    BucketError,
    BucketRefused,
    BucketUnavailable,
    Conflict,
    ObjectFacts,
    ProbeReport,
    Stored,
)

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

T = TypeVar("T")

CHUNK_BYTES: Final = 64 * 1024
PART_BYTES: Final = 4 * 2**20
PAGE_KEYS: Final = 1000  # the most that ListObjectsV2 gives
PROBE: Final = b"a probe that may be deleted"

NOT_FOUND, PRECONDITION_FAILED, NOT_IMPLEMENTED, BAD_REQUEST = 404, 412, 501, 400
# 4xx that say nothing about rights or configuration: the bytes or the moment were bad.
PASSING_STATUSES: Final = frozenset({408, 409, 412, 425, 429})
PASSING_CODES: Final = frozenset(
    {"BadDigest", "IncompleteBody", "RequestTimeout", "SlowDown", "Throttling", "XAmzContentSHA256Mismatch"}
)
OPERATORS_ERRORS: Final = (
    CredentialRetrievalError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
)


class Bucket:
    """Every method raises BucketUnavailable or BucketRefused, and else only what it names. Keys are without prefix."""

    def __init__(self, config: BucketConfig, session: Session | None = None) -> None:
        """Takes some 100 ms: once per process. Without a session the credentials are those that boto3 finds itself."""
        session = session or Session()
        self._config = config
        self._client = _client(session, config, config.endpoint_url)
        self._links = _client(session, config, config.public_endpoint_url or config.endpoint_url)
        self._allowance = Allowance(config.deadline_s, config.again_deadline_s)
        self._pool = ThreadPoolExecutor(config.max_connections, thread_name_prefix="bucket")

    @property
    def name(self) -> str:
        return self._config.name

    def full_key(self, key: str) -> str:
        """The key as consumers of the bucket know it: with `S3_PREFIX`."""
        return self._config.full_key(key)

    async def close(self) -> None:
        """No call begins any more; those under way end by their own timeouts."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._client.close()
        self._links.close()

    async def put_file(
        self,
        key: str,
        path: Path,
        *,
        content_type: str,
        sha256: str,
        metadata: Mapping[str, str],
        content_disposition: str | None = None,
    ) -> Stored | Conflict:
        """Create the object from a file, streamed. `sha256` is hex, and the store checks it; `metadata` is printable
        ASCII and names the owner (`job-id` or `batch-id`). What is there already stays: ours is adopted, another's is a
        Conflict. Killed or cut at any point: there is the whole object or none, and the same call again tells which.
        OSError: the file cannot be opened.
        """
        with await asyncio.to_thread(path.open, "rb") as body:
            return await self._put(key, body, _headers(content_type, sha256, metadata, content_disposition))

    async def put_stream(
        self, key: str, body: IO[bytes], *, content_type: str, sha256: str, metadata: Mapping[str, str]
    ) -> Stored | Conflict:
        """`put_file` for a file that is open, and stands at its beginning."""
        return await self._put(key, body, _headers(content_type, sha256, metadata, None))

    async def put_bytes(
        self,
        key: str,
        data: bytes,
        *,
        content_type: str,
        metadata: Mapping[str, str],
        content_disposition: str | None = None,
    ) -> Stored | Conflict:
        """`put_file` for what is in memory."""
        sha256 = hashlib.sha256(data).hexdigest()
        with BytesIO(data) as body:
            return await self._put(key, body, _headers(content_type, sha256, metadata, content_disposition))

    async def head(self, key: str) -> ObjectFacts | None:
        return await self._run("head", lambda _: self._look_hard([key]))

    async def find_image(self, job_id: str) -> ObjectFacts | None:
        """The image of this job, under whichever of its keys and only if its `job-id` agrees. ValueError: no job id."""
        keys = image_keys(job_id)
        return await self._run("find image", lambda _: self._look_hard(keys, {"job-id": job_id}))

    async def get_bytes(self, key: str, max_bytes: int) -> bytes | None:
        """The object's bytes; None if there is none, or one of more than `max_bytes` (`head` tells which)."""
        return await self._run("get", lambda over: self._read(key, max_bytes, over, b"".join))

    async def parts(self, facts: ObjectFacts) -> AsyncIterator[bytes]:
        """The object that `head` told of, PART_BYTES at a time; each read has a deadline of its own.

        BucketUnavailable also if it is another object by then.
        """
        for start in range(0, facts.size_bytes, PART_BYTES):
            yield await self._run("get", partial(self._read_part, facts, start))

    async def hash_object(self, key: str, max_bytes: int) -> tuple[str, int] | None:
        """(SHA-256 in hex, size in bytes) of what a reader would get, read and let go; None as in `get_bytes`."""
        return await self._run("hash", lambda over: self._read(key, max_bytes, over, _digest))

    async def delete(self, key: str) -> None:
        """Afterwards there is no such object, whether there was one or not."""
        await self._run("delete", lambda _: self._remove(key))

    async def delete_prefix(self, prefix: str, limit: int) -> int:
        """Delete at most `limit` objects whose keys begin so; how many there were. ValueError: the prefix is empty.

        Killed or failing half-way: some are gone; the same call again takes the rest.
        """
        if not prefix:
            raise ValueError("an empty prefix is the whole bucket")
        return await self._run("delete prefix", lambda over: self._remove_all(prefix, limit, over))

    async def list_keys(self, prefix: str, limit: int) -> list[str]:
        """The first `limit` keys that begin so, in order."""
        return await self._run("list", lambda over: self._list(prefix, limit, over))

    async def list_after(self, prefix: str, after: str | None, limit: int) -> list[str]:
        """The first `limit` keys that begin with the prefix and sort behind `after`."""
        return await self._run("list", lambda over: self._list(prefix, limit, over, after))

    async def presign_get(self, key: str, filename: str | None = None, *, ttl_s: int | None = None) -> str:
        """A link that anybody may GET for `ttl_s` (else `presign_ttl_s`); `filename`: what a browser saves it as."""
        where = {"Bucket": self._config.name, "Key": self.full_key(key)}
        if filename:
            where["ResponseContentDisposition"] = f'attachment; filename="{re.sub(r"[^A-Za-z0-9._-]", "_", filename)}"'
        return await self._run(
            "presign",
            lambda _: self._links.generate_presigned_url(
                "get_object", Params=where, ExpiresIn=ttl_s or self._config.presign_ttl_s
            ),
            asks=False,
        )

    async def check(self) -> None:
        """Return if the bucket is there and lets us in: one HEAD, cheap enough for a readiness probe."""
        await self._run("check", lambda _: self._client.head_bucket(**self._config.where()))

    async def probe(self) -> ProbeReport:
        """See what the store does rather than what it says, with objects under `.probe/` that are deleted again.

        Killed half-way, up to two objects of 27 bytes stay there.
        """
        key = f".probe/{secrets.token_hex(8)}"
        try:
            return ProbeReport(
                conditional_writes=await self._run("probe", lambda _: self._keeps_first(key)),
                checksums=await self._run("probe", lambda _: self._minds_checksum(f"{key}-bad")),
            )
        finally:
            await self.delete(key)
            await self.delete(f"{key}-bad")

    async def _run(self, name: str, call: Callable[[Event], T], *, asks: bool = True) -> T:
        """Run the call in a thread. The event it is given is set once nobody waits for it any more.

        `asks` False: it needs no answer of the store, and says nothing of it.
        """
        allowed_s, over = self._allowance.now_s, Event()
        try:
            async with asyncio.timeout(allowed_s):
                given = await asyncio.get_running_loop().run_in_executor(self._pool, call, over)
        except TimeoutError:
            self._allowance.ran_out(allowed_s)
            raise BucketUnavailable(f"{name}: not done within {allowed_s:g} s") from None
        except Exception as error:  # noqa: BLE001  botocore also raises what is no BotoCoreError (its parsers, urllib3)
            verdict = error if isinstance(error, BucketError) else _verdict(name, error)
            if isinstance(verdict, BucketUnavailable):
                self._allowance.failed()
            # `from None`: the originals quote URLs, and sometimes what was signed.
            raise verdict from None
        finally:
            over.set()
        if asks:
            self._allowance.worked()
        return given

    async def _put(self, key: str, body: IO[bytes], headers: Mapping[str, Any]) -> Stored | Conflict:
        return await self._run("put", lambda _: self._create(key, body, headers))

    def _create(self, key: str, body: IO[bytes], headers: Mapping[str, Any]) -> Stored | Conflict:
        metadata = headers["Metadata"]
        once: dict[str, Any] = {"IfNoneMatch": "*"}
        if not self._config.conditional_writes:
            if there := self._look(key):
                return _adopt(there, metadata)
            once = {}
        size = body.seek(0, 2)
        body.seek(0)
        try:
            answer = self._client.put_object(
                **self._config.where(key), **self._config.keeping(), **headers, **once, Body=body
            )
        except ClientError as error:
            if _status(error) != PRECONDITION_FAILED:
                raise
        else:
            facts = ObjectFacts(key, answer["ETag"], size, headers["ContentType"], dict(metadata))
            return Stored(facts, created=True)
        if there := self._look(key):
            return _adopt(there, metadata)
        raise BucketUnavailable("put: 412, but nothing is there")

    def _look(self, key: str) -> ObjectFacts | None:
        try:
            answer = self._client.head_object(**self._config.where(key))
        except ClientError as error:
            if _status(error) == NOT_FOUND:
                return None
            raise
        metadata = {name.lower(): value for name, value in answer["Metadata"].items()}
        return ObjectFacts(key, answer["ETag"], answer["ContentLength"], answer.get("ContentType", ""), metadata)

    def _look_hard(self, keys: Iterable[str], owner: Mapping[str, str] | None = None) -> ObjectFacts | None:
        """The first that is there; when none is, make sure that the bucket is: the 404 of a HEAD does not say which."""
        for key in keys:
            if (there := self._look(key)) and (owner is None or there.is_of(owner)):
                return there
        self._client.head_bucket(**self._config.where())
        return None

    def _read(self, key: str, max_bytes: int, over: Event, fold: Callable[[Iterator[bytes]], T]) -> T | None:
        try:
            answer = self._client.get_object(**self._config.where(key))
        except ClientError as error:
            if error.response["Error"]["Code"] == "NoSuchKey":
                return None
            raise
        with closing(answer["Body"]) as body:
            if answer["ContentLength"] > max_bytes:
                return None
            return fold(_until(over, body.iter_chunks(CHUNK_BYTES)))

    def _read_part(self, facts: ObjectFacts, start: int, over: Event) -> bytes:
        part = f"bytes={start}-{min(start + PART_BYTES, facts.size_bytes) - 1}"
        answer = self._client.get_object(**self._config.where(facts.key), Range=part, IfMatch=facts.etag)
        with closing(answer["Body"]) as body:
            return b"".join(_until(over, body.iter_chunks(CHUNK_BYTES)))

    def _list(self, prefix: str, limit: int, over: Event, after: str | None = None) -> list[str]:
        keys: list[str] = []
        more: dict[str, Any] = {} if after is None else {"StartAfter": self.full_key(after)}
        base = self._config.full_key("")
        while len(keys) < limit and not over.is_set():
            page = self._client.list_objects_v2(
                **self._config.where(), Prefix=self.full_key(prefix), MaxKeys=min(limit - len(keys), PAGE_KEYS), **more
            )
            keys += [entry["Key"].removeprefix(base) for entry in page.get("Contents", [])]
            if not page["IsTruncated"]:
                break
            more = {"ContinuationToken": page["NextContinuationToken"]}
        return keys

    def _remove(self, key: str) -> None:
        self._client.delete_object(**self._config.where(key))

    def _remove_all(self, prefix: str, limit: int, over: Event) -> int:
        """One by one: not every store speaks DeleteObjects, and a job has a handful of inputs."""
        keys = self._list(prefix, limit, over)
        for key in _until(over, iter(keys)):
            self._remove(key)
        return len(keys)

    def _keeps_first(self, key: str) -> bool:
        """Whether a second write under `If-None-Match: *` is refused as it should be, with 412."""
        headers = _headers("text/plain", hashlib.sha256(PROBE).hexdigest(), {}, None)
        try:
            for _ in range(2):
                self._client.put_object(
                    **self._config.where(key), **self._config.keeping(), **headers, IfNoneMatch="*", Body=PROBE
                )
        except ClientError as error:
            if _status(error) not in {PRECONDITION_FAILED, NOT_IMPLEMENTED}:
                raise
            return _status(error) == PRECONDITION_FAILED
        return False

    def _minds_checksum(self, key: str) -> bool:
        """Whether bytes that are not those of the checksum are refused."""
        headers = _headers("text/plain", hashlib.sha256(b"other").hexdigest(), {}, None)
        try:
            self._client.put_object(**self._config.where(key), **self._config.keeping(), **headers, Body=PROBE)
        except ClientError as error:
            if _status(error) != BAD_REQUEST:
                raise
            return True
        return False


def _client(session: Session, config: BucketConfig, endpoint_url: str | None) -> "S3Client":
    client: S3Client = session.client(
        "s3",
        region_name=config.region,
        endpoint_url=endpoint_url,
        config=Config(
            signature_version="s3v4",  # presigning falls back to the old v2 in places
            connect_timeout=config.connect_timeout_s,
            read_timeout=config.read_timeout_s,
            max_pool_connections=config.max_connections,
            retries={"total_max_attempts": 1},
            # Stores other than AWS rarely have a DNS name for each bucket.
            s3={"addressing_style": "path" if endpoint_url else "auto"},
            # Our own SHA-256 is enough; the default adds a CRC in a trailer, which older stores do not know.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )
    return client


def _headers(content_type: str, sha256: str, metadata: Mapping[str, str], disposition: str | None) -> dict[str, Any]:
    checksum = b64encode(bytes.fromhex(sha256)).decode()
    headers: dict[str, Any] = {
        "ContentType": content_type,
        "ChecksumSHA256": checksum,
        "Metadata": dict(metadata),
    }
    return headers | ({"ContentDisposition": disposition} if disposition else {})


def _adopt(there: ObjectFacts, metadata: Mapping[str, str]) -> Stored | Conflict:
    return Stored(there, created=False) if there.is_of(metadata) else Conflict(there)


def _digest(chunks: Iterator[bytes]) -> tuple[str, int]:
    digest, size = hashlib.sha256(), 0
    for chunk in chunks:
        digest.update(chunk)
        size += len(chunk)
    return digest.hexdigest(), size


def _until(over: Event, items: Iterator[T]) -> Iterator[T]:
    """The items, for as long as somebody waits for them."""
    for item in items:
        if over.is_set():
            raise BucketUnavailable("nobody waits any more")
        yield item


def _status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _verdict(name: str, error: Exception) -> BucketError:
    """Whose fault an error is, told without what boto3 would quote."""
    if not isinstance(error, ClientError):
        family = BucketRefused if isinstance(error, OPERATORS_ERRORS) else BucketUnavailable
        return family(f"{name}: {type(error).__name__}")
    status, code = _status(error), str(error.response.get("Error", {}).get("Code", ""))
    passing = not 300 <= status < 500 or status in PASSING_STATUSES or code in PASSING_CODES
    said = re.sub(r"[^A-Za-z0-9]", "", code)[:64]
    return (BucketUnavailable if passing else BucketRefused)(f"{name}: {status} {said}")
