"""The bucket in a dict, and what stands before it: the same methods, answers and errors as the real ones.

An object is put once: who comes later is told whose it is, and changes nothing.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeVar

from service.domain import layout
from service.storage.objects import BucketRefused, BucketUnavailable, Conflict, ObjectFacts, Stored
from tests.sim.world import Cut, Process

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Thing:
    data: bytes
    content_type: str
    metadata: Mapping[str, str]


class Shelf:
    """What the bucket holds, and the files of all processes. `once` False: a store without conditional writes."""

    def __init__(self, *, once: bool = True) -> None:
        self.things: dict[str, Thing] = {}
        self.erased: set[str] = set()  # keys
        self.files: dict[str, bytes] = {}
        self.once = once
        self.refuses = False  # our keys are not believed: 403
        self.mute = False  # what is put is there, and who put it never hears so

    def put(self, key: str, thing: Thing) -> Stored | Conflict:
        there = self.things.get(key) if self.once else None
        self.things[key] = there or thing
        if self.mute:
            raise BucketUnavailable("no answer")
        if there is None:
            return Stored(facts(key, thing), created=True)
        found = facts(key, there)
        return Stored(found, created=False) if found.is_of(thing.metadata) else Conflict(found)

    def find_image(self, job_id: str) -> ObjectFacts | None:
        found = (self.facts(key) for key in layout.image_keys(job_id))
        return next((one for one in found if one and one.metadata.get("job-id") == job_id), None)

    def facts(self, key: str) -> ObjectFacts | None:
        thing = self.things.get(key)
        return facts(key, thing) if thing else None

    def drop(self, keys: list[str]) -> int:
        for key in keys:
            if self.things.pop(key, None):
                self.erased.add(key)
        return len(keys)


def facts(key: str, thing: Thing) -> ObjectFacts:
    return ObjectFacts(key, digest(thing.data), len(thing.data), thing.content_type, thing.metadata)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class SimBucket:
    """A process's way to the shelf: stands where `service.storage.bucket.Bucket` does."""

    name = "sim"

    def __init__(self, process: Process, shelf: Shelf) -> None:
        self._process = process
        self._shelf = shelf

    def full_key(self, key: str) -> str:
        return key

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
        data = self._shelf.files[str(path)]
        assert digest(data) == sha256
        thing = Thing(data, content_type, dict(metadata))
        return await self._do("put_file", lambda: self._shelf.put(key, thing))

    async def put_stream(
        self, key: str, body: IO[bytes], *, content_type: str, sha256: str, metadata: Mapping[str, str]
    ) -> Stored | Conflict:
        data = body.read()
        assert digest(data) == sha256
        return await self._do("put_stream", lambda: self._shelf.put(key, Thing(data, content_type, dict(metadata))))

    async def put_bytes(
        self,
        key: str,
        data: bytes,
        *,
        content_type: str,
        metadata: Mapping[str, str],
        content_disposition: str | None = None,
    ) -> Stored | Conflict:
        return await self._do("put_bytes", lambda: self._shelf.put(key, Thing(data, content_type, dict(metadata))))

    async def head(self, key: str) -> ObjectFacts | None:
        return await self._do("head", lambda: self._shelf.facts(key))

    async def find_image(self, job_id: str) -> ObjectFacts | None:
        return await self._do("find", lambda: self._shelf.find_image(job_id))

    async def get_bytes(self, key: str, max_bytes: int) -> bytes | None:
        thing = await self._do("get", lambda: self._shelf.things.get(key))
        return thing.data if thing and len(thing.data) <= max_bytes else None

    async def list_after(self, prefix: str, after: str | None, limit: int) -> list[str]:
        def keys() -> list[str]:
            return [key for key in sorted(self._shelf.things) if key.startswith(prefix) and key > (after or "")][:limit]

        return await self._do("list", keys)

    async def delete(self, key: str) -> None:
        await self._do("delete", lambda: self._shelf.drop([key]))

    async def delete_prefix(self, prefix: str, limit: int) -> int:
        def keys() -> list[str]:
            return [key for key in sorted(self._shelf.things) if key.startswith(prefix)][:limit]

        return await self._do("delete_prefix", lambda: self._shelf.drop(keys()))

    async def _do(self, call: str, act: Callable[[], T]) -> T:
        if self._shelf.refuses:
            await self._process.effect(f"bucket.{call}", lambda: None)
            raise BucketRefused(f"{call}: 403")
        try:
            return await self._process.effect(f"bucket.{call}", act)
        except Cut as cut:
            raise BucketUnavailable(f"{call}: cut off") from cut
