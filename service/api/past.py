"""Jobs whose record has left Redis: their sidecars in the bucket tell of them."""

import json
from typing import Any, Final

from service.api.auth import may_see, promptly, unknown_job
from service.domain import layout
from service.storage.bucket import Bucket
from service.storage.store import Store

SIDECAR_BYTES_MAX: Final = 4 * 2**20


class Past:
    """Raises BucketError where the bucket cannot be asked."""

    def __init__(self, store: Store, bucket: Bucket) -> None:
        self._store = store
        self._bucket = bucket

    async def look(self, job_id: str, caller: str) -> dict[str, Any]:
        """The job as its sidecar says. ProblemError 404: there is none, it was deleted, or it is another caller's."""
        if not layout.valid_id("job", job_id) or await promptly(self._store.buried_by(job_id)) is not None:
            raise unknown_job()
        content = await self._bucket.get_bytes(layout.sidecar_key(job_id), SIDECAR_BYTES_MAX)
        told = json.loads(content) if content else {}
        if not told or not may_see(caller, told["caller"]):
            raise unknown_job()
        return dict(told)

    async def delete(self, job_id: str, caller: str) -> None:
        """Its objects are due to be erased, and a tombstone stands. Deleting twice is fine. ProblemError 404 as above.

        Killed half-way: they are erased without a tombstone.
        """
        owner = await promptly(self._store.buried_by(job_id))
        if owner is None:
            owner = str((await self.look(job_id, caller))["caller"])
            await promptly(self._store.entomb(job_id, owner))
        elif not may_see(caller, owner):
            raise unknown_job()
