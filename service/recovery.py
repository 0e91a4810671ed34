"""The retry of a batch: a new batch of those of its jobs that failed, and that nobody has retried by itself."""

import secrets
from collections.abc import AsyncIterator
from typing import Final

from service.clock import Clock
from service.domain import layout
from service.domain.batch import Batch, BatchStatus
from service.domain.job import Status
from service.intake import UploadLost
from service.storage.batches import Enrolled
from service.storage.store import Store

IDS_AT_ONCE: Final = 500


class Recovery:
    """One per process. Raises RedisError."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def begin(self, old: Batch) -> tuple[str, bool] | None:
        """(id of the retry, whether it is new); None: there is nothing to retry. Raises UploadLost, Unconfirmed.

        Killed before the last write: there is no retry, and what was staged is cleared away when its lease is over.
        """
        new_id = layout.new_id("batch", self._clock.now_ms(), secrets.token_bytes(layout.ENTROPY_BYTES))
        await self._store.batches.open(new_id, old.caller, None)
        total = 0
        async for job_ids in self._failed(old.id):
            if not await self._store.batches.stage_retries(new_id, old.caller, job_ids):
                raise UploadLost
            total += len(job_ids)
        if total == 0:
            await self._store.batches.discard(new_id)
            return None
        whole = Batch(
            new_id,
            old.caller,
            BatchStatus.RUNNING,
            total=total,
            metadata=old.metadata,
            callback_url=old.callback_url,
            retry_of=old.id,
        )
        enrolled, batch_id = await self._store.batches.enroll(whole)
        if enrolled is Enrolled.GONE:
            raise UploadLost
        if enrolled is Enrolled.RETRIED:
            await self._store.batches.discard(new_id)
        return batch_id, enrolled is not Enrolled.RETRIED

    async def _failed(self, batch_id: str) -> AsyncIterator[list[str]]:
        after: str | None = None
        while ids := await self._store.members(batch_id, after, IDS_AT_ONCE, Status.FAILED):
            jobs = await self._store.several(ids)
            if found := [job.id for job in jobs if job.retried_by is None]:
                yield found
            after = ids[-1]
