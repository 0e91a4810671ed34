"""The bucket is the lasting record: ended jobs, batches and young idempotency keys are made again from it alone.

    sidecars → jobs → who retried whom → markers → batches → which retried which → traces of what had not ended

What had not ended has no sidecar, and nobody can know it again; what the bucket shows of it is told as traces.
What ended longer ago than the retention stays in the bucket alone, so that Redis holds no more than it did.
What is on record as if it still ran, in a Redis that came back older than the bucket, ends as it had ended.
Killed anywhere: run it again. It overwrites no end, so it may also run beside a service that lives.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeVar

from service.domain import batch as batches
from service.domain.view import unview
from service.storage.bucket import Bucket
from service.storage.rebuilding import KEY_LIFE_MS, Made
from service.storage.store import Store

T = TypeVar("T")

PAGE_KEYS: Final = 1_000
AT_ONCE: Final = 16
OBJECT_BYTES_MAX: Final = 4 * 2**20
_SIDECAR: Final = re.compile(r"jobs/\d{4}/\d\d/\d\d/(job_[0-9A-Z]{26})\.json")
_IMAGE: Final = re.compile(r"images/\d{4}/\d\d/\d\d/(job_[0-9A-Z]{26})\.\w+")
_INPUT: Final = re.compile(r"inputs/(job_[0-9A-Z]{26})/.+")
_BATCH: Final = re.compile(r"batches/\d{4}/\d\d/\d\d/(batch_[0-9A-Z]{26})/(\w+)(?:\.ndjson)?")


@dataclass
class Report:
    """What was done. `overruled`: those of `jobs` that had not ended on record; `aged`: jobs and batches that ended too
    long ago; `unreadable`: keys of sidecars and markers that do not tell of anything; the rest: traces of what had not
    ended, `images` and `inputs` of jobs without a sidecar, `unmarked` batches.
    """

    jobs: int = 0
    batches: int = 0
    overruled: int = 0
    known: int = 0
    aged: int = 0
    unreadable: list[str] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)
    unmarked: list[str] = field(default_factory=list)


class Rebuild:
    """Keeps the ids of all jobs of the bucket in memory: 100 MB for a million."""

    def __init__(self, store: Store, bucket: Bucket, tell: Callable[[str], None] = lambda _: None) -> None:
        self._store = store
        self._bucket = bucket
        self._tell = tell
        self._report = Report()
        self._ended: set[str] = set()
        self._retries: list[tuple[str, str]] = []
        self._batch_retries: list[tuple[str, str]] = []
        self._now_ms = 0

    async def run(self) -> Report:
        """Raises RedisError, BucketError: what was done until then stands."""
        self._now_ms = await self._store.now_ms()
        await self._each("jobs/", _SIDECAR, self._job)
        for old, new in self._retries:
            await self._store.rebuilding.link(old, new)
        await self._batches()
        self._report.images = await self._without_sidecar("images/", _IMAGE)
        self._report.inputs = await self._without_sidecar("inputs/", _INPUT)
        return self._report

    async def _each(self, prefix: str, shape: re.Pattern[str], do: Callable[[str, str], Awaitable[None]]) -> None:
        async for keys in self._pages(prefix):
            found = [(key, match[1]) for key in keys if (match := shape.fullmatch(key))]
            for start in range(0, len(found), AT_ONCE):
                await asyncio.gather(*(do(key, id_) for key, id_ in found[start : start + AT_ONCE]))
            self._tell(f"{prefix}: {self._report.jobs} jobs, {self._report.batches} batches")

    async def _pages(self, prefix: str) -> AsyncIterator[list[str]]:
        after: str | None = None
        while keys := await self._bucket.list_after(prefix, after, PAGE_KEYS):
            yield keys
            after = keys[-1]

    async def _job(self, key: str, job_id: str) -> None:
        job = await self._told(key, unview)
        if job is None or job.id != job_id:
            self._report.unreadable.append(key)
            return
        self._ended.add(job_id)
        if self._now_ms - job.created_at < KEY_LIFE_MS and (facts := await self._bucket.head(key)):
            job = replace(job, idempotency=facts.metadata.get("idempotency"))
        if job.retry_of:
            self._retries.append((job.retry_of, job.id))
        made = await self._store.rebuilding.job(job, self._now_ms)
        self._report.jobs += made in (Made.REBUILT, Made.OVERRULED)
        self._report.overruled += made is Made.OVERRULED
        self._note(made)

    async def _batches(self) -> None:
        seen: set[str] = set()
        marked: set[str] = set()
        async for keys in self._pages("batches/"):
            for key in keys:
                if match := _BATCH.fullmatch(key):
                    seen.add(match[1])
                    if match[2] in {"_SUCCESS", "_FAILED"}:
                        marked.add(match[1])
                        await self._batch(key, match[1])
        for old, new in self._batch_retries:
            await self._store.rebuilding.link_batch(old, new)
        self._report.unmarked = sorted(seen - marked)

    async def _batch(self, key: str, batch_id: str) -> None:
        batch = await self._told(key, batches.unview)
        if batch is None or batch.id != batch_id:
            self._report.unreadable.append(key)
            return
        if batch.retry_of and batch.status is not batches.BatchStatus.CANCELLED:
            self._batch_retries.append((batch.retry_of, batch.id))
        made = await self._store.rebuilding.batch(batch, self._now_ms)
        self._report.batches += made is Made.REBUILT
        self._note(made)

    def _note(self, made: Made) -> None:
        self._report.known += made is Made.KNOWN
        self._report.aged += made is Made.AGED

    async def _told(self, key: str, understand: Callable[[Any], T]) -> T | None:
        """What the object tells of, if it is ours and whole."""
        content = await self._bucket.get_bytes(key, OBJECT_BYTES_MAX)
        try:
            return understand(json.loads(content or b"null"))
        except (KeyError, TypeError, ValueError):
            return None

    async def _without_sidecar(self, prefix: str, shape: re.Pattern[str]) -> list[str]:
        """Jobs of which the bucket shows something, but not how they ended."""
        found: set[str] = set()
        async for keys in self._pages(prefix):
            found |= {match[1] for key in keys if (match := shape.fullmatch(key))} - self._ended
        return sorted(found)
