"""The manifest of a batch: a line for each job that has ended, as in its sidecar, in the order of the batch's lines."""

from collections.abc import AsyncIterator
from typing import Final

from service.domain import layout
from service.domain.batch import Batch
from service.domain.job import Job, Status
from service.domain.view import view
from service.storage.bucket import Bucket
from service.storage.record import compact
from service.storage.store import Store

JOBS_AT_ONCE: Final = 200
SIDECAR_BYTES_MAX: Final = 4 * 2**20


class Manifest:
    """Reads records, and sidecars where records have left Redis or cannot be read. Raises RedisError, BucketError."""

    def __init__(self, store: Store, bucket: Bucket) -> None:
        self._store = store
        self._bucket = bucket

    async def chunks(self, batch: Batch) -> AsyncIterator[bytes]:
        """Some lines each, NDJSON; a job that has not ended, or that was deleted, has none."""
        after: str | None = None
        while ids := await self._store.members(batch.id, after, JOBS_AT_ONCE):
            jobs = {job.id: job for job in await self._store.several(ids)}
            lines = [await self._line(job_id, jobs.get(job_id)) for job_id in ids]
            yield b"".join(lines)
            after = ids[-1]

    async def _line(self, job_id: str, job: Job | None) -> bytes:
        if job is None:
            written = await self._bucket.get_bytes(layout.sidecar_key(job_id), SIDECAR_BYTES_MAX)
            return b" ".join(written.split(b"\n")) + b"\n" if written else b""
        return line(job) if job.ended else b""


def line(job: Job) -> bytes:
    """An ended job in one line; a sealed one is told as the success that it is about to be, as its sidecar does."""
    return compact(view(job, status=Status.SUCCEEDED if job.sealed else job.status)).encode() + b"\n"
