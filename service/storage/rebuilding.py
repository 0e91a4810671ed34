"""Records made again from what the bucket tells: ended jobs, batches that are over, idempotency keys.

What has ended on record is left alone, so that any of it may be done twice, or beside a service that runs.
"""

from collections.abc import Awaitable, Mapping, Sequence
from enum import StrEnum
from typing import Any, Final, Protocol

from service.domain.batch import Batch
from service.domain.job import Job
from service.domain.notice import LASTS_S
from service.storage import record
from service.storage.newborn import newborn
from service.storage.notices import wanted

KEY_LIFE_MS: Final = 24 * 3600 * 1000


class Run(Protocol):
    """A verb of the script, with its arguments and what follows them."""

    def __call__(
        self,
        verb: str,
        arguments: Mapping[str, Any],
        fields: Mapping[str, Any] | None = None,
        *,
        words: Sequence[str] = (),
    ) -> Awaitable[list[Any]]: ...


class Made(StrEnum):
    """What became of the wish to make a record again."""

    REBUILT = "rebuilt"
    OVERRULED = "overruled"  # on record it had not ended: Redis is older than the bucket
    KNOWN = "known"  # it is on record, or was deleted
    AGED = "aged"  # it ended longer ago than the retention: the bucket alone tells of it


class Rebuilding:
    """Every method raises RedisError; `now_ms` is Redis's."""

    def __init__(self, run: Run, capped: Mapping[str, int], retention_s: int) -> None:
        self._run = run
        self._capped = capped
        self._retention_ms = retention_s * 1000

    async def job(self, job: Job, now_ms: int) -> Made:
        arguments, fields = newborn(job, self._capped, None)
        key, _, body = (job.idempotency or "").partition(" ")
        notify = _untold(job.callback_url, job.finished_at, now_ms)
        told = (
            arguments
            | {"ended_at": job.finished_at or now_ms, "retention_ms": self._retention_ms, "notify": notify}
            | _key(job.created_at, now_ms, key, body)
        )
        return Made((await self._run("rebuild", told, fields | {"created_at": job.created_at}))[0])

    async def link(self, job_id: str, retried_by: str) -> None:
        """The job, if it is on record, was retried by that one."""
        await self._run("link", {"id": job_id, "retried_by": retried_by})

    async def link_batch(self, batch_id: str, retried_by: str) -> None:
        """The same of a batch."""
        await self._run("link_batch", {"id": batch_id, "retried_by": retried_by})

    async def batch(self, batch: Batch, now_ms: int) -> Made:
        notify = _untold(batch.callback_url, batch.finished_at, now_ms)
        told = {"id": batch.id, "caller": batch.caller, "ended_at": batch.finished_at or now_ms, "notify": notify}
        told |= {"retention_ms": self._retention_ms} | _key(batch.created_at, now_ms, batch.key or "", batch.hash or "")
        body = record.compact({"metadata": batch.metadata, "callback_url": batch.callback_url})
        flat = {
            "id": batch.id,
            "caller": batch.caller,
            "status": batch.status,
            "idem": batch.key,
            "created_at": batch.created_at,
            "finished_at": batch.finished_at,
            "total": batch.total,
            "made": batch.total,
            "hash": batch.hash,
            "body": body,
            "retry_of": batch.retry_of,
            "counts": record.compact(dict(batch.counts)),
            "marked": True,
        }
        return Made((await self._run("rebuild_batch", told, words=list(record.write(flat))))[0])


def _untold(callback_url: str | None, finished_at: int | None, now_ms: int) -> dict[str, str] | None:
    """Nobody knows any more whether the caller was told: as long as he might still be waiting, he is told again."""
    recent = finished_at is not None and now_ms - finished_at < LASTS_S * 1000
    return wanted(callback_url, None) if recent else None


def _key(created_at: int, now_ms: int, key: str, body: str) -> dict[str, Any]:
    """What is left of an idempotency key's life."""
    return {"idem": key, "hash": body, "idem_ms": created_at + KEY_LIFE_MS - now_ms} if key and body else {}
