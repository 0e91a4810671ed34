"""Is it the same batch? Batches are compared as parsed JSON: their lines in order, then what they have besides."""

import asyncio
import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final

from service.domain.parsing import NOT_JSON, loads
from service.storage.batches import Beginning

THREAD_FROM_BYTES: Final = 2**19  # a line with images: parsing them is not for the loop


class RequestHash:
    """What a batch asked for."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def line(self, body: object) -> None:
        self._hash.update(_digest(body))

    def whole(self, metadata: Mapping[str, Any], callback_url: str | None) -> str:
        whole = self._hash.copy()
        whole.update(_digest({"metadata": dict(metadata), "callback_url": callback_url}))
        return whole.hexdigest()


class Comparison:
    """Takes the lines of a batch whose key is known, and keeps none of them. `size` is how many have come."""

    def __init__(self, known: Beginning) -> None:
        self.size = 0
        self._known = known
        self._hash = RequestHash()

    async def add(self, raw: bytes) -> None:
        self.size += 1
        body = await asyncio.to_thread(loads, raw) if len(raw) >= THREAD_FROM_BYTES else loads(raw)
        self._hash.line(None if body is NOT_JSON else body)

    async def breathe(self) -> None:
        """Nothing waits for us."""

    def same(self, metadata: Mapping[str, Any], callback_url: str | None) -> bool:
        """All lines are in: whether the key's own batch had the same, and the same besides."""
        return self._hash.whole(metadata, callback_url) == self._known.hash


def _digest(body: object) -> bytes:
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).digest()
