"""A batch handed over through the queue: an RQ entry of a service that shares our Redis and imports nothing of ours.

    {"caller": …, "jobs": [{…}, …]}       at most 5,000 jobs and 16 MiB
    {"caller": …, "key": "…"}             more, as over HTTP: an NDJSON object in the bucket, its key without S3_PREFIX

and `callback_url` and `metadata` beside them. The RQ job id is its idempotency key: the same id with the same batch
finds it, with another is refused. What is wrong with a batch is the entry's result, never an exception; a bucket or a
Redis that is away is one, and RQ runs the entry again (where it was enqueued with retries) or shows it as failed.
Killed half-way: nothing is there, the upload's lease runs out, and RQ's maintenance does the same.
"""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict, dataclass
from typing import Any, Final

from service.comparison import Comparison
from service.domain.errors import FieldError
from service.domain.rules import Extras
from service.intake import BadLines, Intake, Upload, UploadLost
from service.ndjson import pour
from service.storage.batches import Began, Beginning, Enrolled
from service.storage.bucket import Bucket
from service.storage.desk import Desk
from service.storage.objects import BucketError, ObjectFacts
from service.storage.terms import Bell

INLINE_LINES_MOST: Final = 5_000
INLINE_BYTES_MOST: Final = 16 * 2**20
OBJECT_BYTES_MOST: Final = 200_000_000  # as over HTTP
KEY_BYTES_MOST: Final = 1024  # S3's own bound
TRIES: Final = 3
EXTRAS: Final = ("callback_url", "metadata")
NAMES: Final = frozenset({"caller", "jobs", "key", *EXTRAS})

MORE: Final = FieldError("", "Has mistakes, too")  # of a bad line beyond those that are shown in full

Answer = dict[str, Any] | list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class _Asked:
    """`lines` is where they are: at hand, or in the bucket."""

    caller: str
    lines: list[object] | ObjectFacts
    extras: Extras


class Handover:
    """`known_caller`: what a caller may be named."""

    def __init__(
        self,
        desk: Desk,
        intake: Intake,
        bucket: Bucket,
        known_caller: Callable[[str], bool],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._desk = desk
        self._intake = intake
        self._bucket = bucket
        self._known_caller = known_caller
        self._sleep = sleep

    async def submit(self, told: object, entry_id: str | None) -> Answer:
        """`{"batch_id": …}`, or the list of what is wrong: `{"line", "pointer", "detail"}` (line None: with the whole).

        Raises RedisError, BucketError.
        """
        asked = await self._understand(told)
        if not isinstance(asked, _Asked):
            return _mistakes(asked)
        key = hashlib.sha256(f"rq\n{entry_id}".encode()).hexdigest() if entry_id else None
        for _ in range(TRIES):
            begun = await self._begin(asked.caller, key)
            if isinstance(begun, Beginning):
                return await self._known(begun, asked)
            try:
                return await self._take_in(begun, asked)
            except UploadLost:  # this process was stopped for longer than its lease
                continue
        raise UploadLost

    async def _understand(self, told: object) -> _Asked | list[FieldError]:
        if not isinstance(told, dict):
            return [FieldError("", "Input should be an object")]
        errors = [FieldError(f"/{name}", "Is not known here") for name in sorted(map(str, told.keys() - NAMES))]
        caller = told.get("caller")
        if not isinstance(caller, str) or not self._known_caller(caller):
            return [*errors, FieldError("/caller", "Should be a name of [a-z0-9_-]")]
        lines = await self._lines(told)
        if isinstance(lines, FieldError):
            return [*errors, lines]
        extras = self._intake.rules.extras({name: told[name] for name in EXTRAS if name in told}, caller)
        return errors or (_Asked(caller, lines, extras) if isinstance(extras, Extras) else extras)

    async def _lines(self, told: dict[str, Any]) -> list[object] | ObjectFacts | FieldError:
        if "key" in told:
            return FieldError("/jobs", "Is not for a batch with a key") if "jobs" in told else await self._there(told)
        jobs = told.get("jobs")
        if not isinstance(jobs, list) or not 0 < len(jobs) <= INLINE_LINES_MOST:
            return FieldError("/jobs", f"Should be a list of 1 to {INLINE_LINES_MOST} jobs; more: in a `key`")
        if sum(len(_row(job)) for job in jobs) > INLINE_BYTES_MOST:
            return FieldError("/jobs", f"Should have at most {INLINE_BYTES_MOST} bytes; more: in a `key`")
        return jobs

    async def _there(self, told: dict[str, Any]) -> ObjectFacts | FieldError:
        """What the bucket says of the object."""
        key = told["key"]
        if not isinstance(key, str) or not 0 < len(key.encode("utf-8", "replace")) <= KEY_BYTES_MOST:
            return FieldError("/key", f"Should be a key of 1 to {KEY_BYTES_MOST} bytes")
        if not {".", ".."}.isdisjoint(key.split("/")):  # which stores refuse, as if something else were wrong
            return FieldError("/key", "Should have no . or .. between its slashes")
        facts = await self._bucket.head(key)
        if facts is None:
            return FieldError("/key", "There is no such object in the bucket")
        if facts.size_bytes > OBJECT_BYTES_MOST:
            return FieldError("/key", f"Is an object of more than {OBJECT_BYTES_MOST} bytes")
        return facts

    async def _begin(self, caller: str, key: str | None) -> Upload | Beginning:
        while True:
            begun = await self._intake.begin(caller, key)
            if isinstance(begun, Upload) or begun.began is Began.KNOWN:
                return begun
            await self._sleep(begun.busy_s)  # another worker is at it, or has died over it

    async def _known(self, begun: Beginning, asked: _Asked) -> Answer:
        comparison = Comparison(begun)
        await pour(self._pieces(asked), comparison, self._intake.rules.max_order_bytes)
        if comparison.same(asked.extras.metadata or {}, asked.extras.callback_url):
            return {"batch_id": begun.known_id}
        return _mistakes([FieldError("", "This RQ job id came with another batch before")])

    async def _take_in(self, upload: Upload, asked: _Asked) -> Answer:
        try:
            await pour(self._pieces(asked), upload, self._intake.rules.max_order_bytes)
        except BucketError:
            await upload.abandon()
            raise
        if upload.size == 0:
            await upload.abandon()
            return _mistakes([FieldError("/key", "A batch has at least one line")])
        if upload.bad:
            await upload.abandon()
            return _bad_lines(upload.bad)
        enrolled, batch_id = await upload.seal(asked.extras.metadata or {}, asked.extras.callback_url)
        if enrolled is Enrolled.FULL:
            await upload.abandon()
            return _mistakes([FieldError("", "Too many jobs wait already; enqueue it again later")])
        self._desk.ring([Bell("batches", batch_id)])
        return {"batch_id": batch_id}

    def _pieces(self, asked: _Asked) -> AsyncIterator[bytes]:
        return self._bucket.parts(asked.lines) if isinstance(asked.lines, ObjectFacts) else _rows(asked.lines)


async def _rows(jobs: list[object]) -> AsyncIterator[bytes]:
    for job in jobs:
        yield _row(job)


def _row(job: object) -> bytes:
    return json.dumps(job).encode() + b"\n"


def _mistakes(errors: list[FieldError]) -> Answer:
    return [{"line": None, **asdict(error)} for error in errors]


def _bad_lines(bad: BadLines) -> Answer:
    more = [(number, MORE) for number in bad.more]
    return [{"line": number, **asdict(error)} for number, error in (*bad.errors, *more)]
