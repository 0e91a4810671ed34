"""Pulling and looking in one: a URL becomes one whole image in a file of ours, or the reason why it does not."""

import asyncio
import tempfile
from dataclasses import dataclass
from pathlib import Path

from service.domain.addresses import HostList
from workers import images
from workers.download import DEFAULT_LIMITS, Download, DownloadFailure, Limits, download
from workers.images import NotAnImage
from workers.network import Shards


@dataclass(frozen=True, slots=True)
class Fetched:
    """The file is the caller's to move or delete."""

    path: Path
    bytes: int
    sha256: str
    seen: images.Image


class Fetcher:
    """`directory` holds pulls in progress; `limits` bound every one."""

    def __init__(self, shards: Shards, hosts: HostList, directory: Path, limits: Limits = DEFAULT_LIMITS) -> None:
        self._shards = shards
        self._hosts = hosts
        self._directory = directory
        self._limits = limits

    @property
    def max_bytes(self) -> int:
        return self._limits.max_bytes

    async def fetch(self, url: str) -> Fetched | DownloadFailure | NotAnImage:
        """Pull and inspect. Failed or cancelled, no file stays."""
        got = await download(
            url, shards=self._shards, hosts=self._hosts, directory=self._directory, limits=self._limits
        )
        if isinstance(got, DownloadFailure):
            return got
        return await self._inspected(got)

    async def examine(self, data: bytes) -> images.Image | NotAnImage:
        """What bytes from elsewhere (the bucket) are."""
        with tempfile.NamedTemporaryFile(dir=self._directory, prefix="adopt-") as file:
            await asyncio.to_thread(file.write, data)
            file.flush()
            return await asyncio.to_thread(images.inspect, Path(file.name))

    async def _inspected(self, got: Download) -> Fetched | NotAnImage:
        seen: images.Image | NotAnImage | None = None
        try:
            seen = await asyncio.to_thread(images.inspect, got.path)
        finally:
            if not isinstance(seen, images.Image):
                got.path.unlink(missing_ok=True)
        return seen if isinstance(seen, NotAnImage) else Fetched(got.path, got.bytes, got.sha256, seen)
