"""Input images that came as base64: they wait in the bucket, and the request keeps where.

In the field's place stands `{"key": "inputs/job_…/input_image.png", "sha256": …, "bytes": …}`; the key is without
`S3_PREFIX`. Before the first byte leaves, the job's id is due as `stage`: killed at any point, what was put is either
a job's or is cleared away.
"""

import hashlib
from collections.abc import Mapping
from typing import Any, Final

from service.domain import layout
from service.domain.inputs import kept_key
from service.domain.job import Job
from service.storage.bucket import Bucket
from service.storage.objects import BucketUnavailable, Conflict
from service.storage.store import Store

DROPPED_AT_ONCE: Final = 100
STAGE_S: Final = 900.0  # longer than any upload and its create can take
_MAGIC: Final = (
    (b"\x89PNG\r\n\x1a\n", "png", "image/png"),
    (b"\xff\xd8\xff", "jpeg", "image/jpeg"),
    (b"RIFF", "webp", "image/webp"),
    (b"GIF8", "gif", "image/gif"),
)


class Inputs:
    """Raises BucketError and RedisError: nothing was accepted then, and what was put is cleared away as due work."""

    def __init__(self, store: Store, bucket: Bucket, max_bytes: int) -> None:
        self._store = store
        self._bucket = bucket
        self._max_bytes = max_bytes

    async def keep(self, job_id: str, images: Mapping[str, bytes]) -> dict[str, Any]:
        """Put them in the bucket; what the request says in their place."""
        if not images:
            return {}
        await self._store.plan("stage", job_id, STAGE_S)
        return {name: await self._put(job_id, name, content) for name, content in images.items()}

    async def copy(self, old: Job, job_id: str) -> dict[str, Any] | None:
        """The old job's request for a new one, with copies of its own; None if one is no longer there."""
        images: dict[str, bytes] = {}
        for name, value in old.request.items():
            if key := kept_key(value, old.id):
                content = await self._bucket.get_bytes(key, self._max_bytes)
                if content is None:
                    return None
                images[name] = content
        return {**old.request, **await self.keep(job_id, images)}

    async def drop(self, job_id: str) -> None:
        """None of this job's are left in the bucket."""
        while await self._bucket.delete_prefix(layout.inputs_prefix(job_id), DROPPED_AT_ONCE) == DROPPED_AT_ONCE:
            pass

    async def _put(self, job_id: str, name: str, content: bytes) -> dict[str, Any]:
        extension, content_type = _kind(content)
        key = layout.input_key(job_id, f"{name}.{extension}")
        stored = await self._bucket.put_bytes(key, content, content_type=content_type, metadata={"job-id": job_id})
        if isinstance(stored, Conflict):
            raise BucketUnavailable("put: the key of a new job's input is taken")
        return {"key": key, "sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


def _kind(content: bytes) -> tuple[str, str]:
    """(extension, content type) by the first bytes; the provider judges the rest."""
    for magic, extension, content_type in _MAGIC:
        if content.startswith(magic):
            return extension, content_type
    return "bin", "application/octet-stream"
