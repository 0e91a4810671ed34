"""Batches as callers see them: from their records, and from their markers in the bucket once those have left Redis."""

import json
from typing import Any, Final

from service.api.auth import may_see, promptly
from service.api.problems import ProblemError
from service.domain import layout
from service.domain.batch import Batch, BatchStatus, view
from service.storage.bucket import Bucket
from service.storage.store import Store

MARKER_BYTES_MAX: Final = 2**20


class PastBatches:
    """Raises BucketError where the bucket must be asked and cannot."""

    def __init__(self, store: Store, bucket: Bucket) -> None:
        self._store = store
        self._bucket = bucket

    async def record(self, batch_id: str, caller: str) -> Batch | None:
        """The batch on record; None: it has left Redis, or there never was one. ProblemError 404: another caller's."""
        batch = await promptly(self._store.batches.get(batch_id))
        if batch is None:
            return None
        if batch.status is BatchStatus.STAGING or not may_see(caller, batch.caller):
            raise unknown_batch()
        return batch

    async def look(self, batch_id: str, caller: str) -> dict[str, Any]:
        """The batch as its marker says. ProblemError 404: there is none, or it is another caller's."""
        if not layout.valid_id("batch", batch_id):
            raise unknown_batch()
        for ok in (True, False):
            content = await self._bucket.get_bytes(layout.marker_key(batch_id, ok=ok), MARKER_BYTES_MAX)
            if content is not None:
                return _shown(json.loads(content), caller)
        raise unknown_batch()

    async def now_or_then(self, batch_id: str, caller: str) -> dict[str, Any]:
        """From whichever of the two still knows it. ProblemError 404."""
        batch = await self.record(batch_id, caller)
        return await self.look(batch_id, caller) if batch is None else view(batch)


def _shown(told: dict[str, Any], caller: str) -> dict[str, Any]:
    if not may_see(caller, told["caller"]):
        raise unknown_batch()
    return {name: value for name, value in told.items() if name != "idempotency"}


def unknown_batch() -> ProblemError:
    return ProblemError(404, "not_found", "No such batch.")
