"""The spool: where pulled images wait, on this machine's disk, while the bucket cannot be reached.

Two files a job: `{job_id}.{extension}`, the bytes as they were pulled, and `{job_id}.json`, what is known of them. The
facts are put in place last, and nothing is believed without them: bytes are hashed and inspected again before they are
handed out. Several processes may share a directory; it has one id, and a job's record names it.
"""

import asyncio
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import tempfile
import threading
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from service.clock import Clock
from service.domain.layout import EXTENSIONS
from workers import images
from workers.fetch import Fetched

log = logging.getLogger(__name__)

ID_BYTES: Final = 8
RECOUNT_S: Final = 2.0  # what other processes put here is noticed after so long: the bound may be passed by as much
STALE_PART_S: Final = 300.0  # a part is written in seconds; an older one is of a process that died
CROWDED_SHARE: Final = 0.5
_FACTS: Final = ".json"
_PART: Final = ".part"
_ID: Final = re.compile(r"[0-9a-f]{16}")


class Disk:
    """What is done to files, one step each: so that a test can cut the power between any two."""

    def copy(self, source: Path, target: Path) -> None:
        shutil.copyfile(source, target)

    def write(self, target: Path, data: bytes) -> None:
        target.write_bytes(data)

    def sync(self, path: Path) -> None:
        """A file's bytes, or a directory's names, survive a power cut from here on."""
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        source.rename(target)

    def unlink(self, path: Path) -> None:
        path.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class Usage:
    bytes: int
    files: int


class Kept(Protocol):
    """What a step knows of a spool. `id` None: there is none."""

    @property
    def id(self) -> str | None: ...
    async def keep(self, job_id: str, got: Fetched) -> bool: ...
    async def find(self, job_id: str) -> Fetched | None: ...
    async def drop(self, job_id: str) -> None: ...


class NoSpool:
    """Keeps nothing."""

    id: None = None

    async def keep(self, job_id: str, got: Fetched) -> bool:  # noqa: ARG002 -- whatever it is
        return False

    async def find(self, job_id: str) -> Fetched | None:  # noqa: ARG002 -- whatever it is
        return None

    async def drop(self, job_id: str) -> None:
        pass


class Spool:
    """`max_bytes` bounds the images in the directory, whoever put them there; 0: nothing is kept any more.

    `corrupt` counts the kept images that were not what had been kept. OSError if the directory cannot be made.
    """

    def __init__(self, directory: Path, max_bytes: int, clock: Clock, disk: Disk | None = None) -> None:
        self._directory = directory
        self._max_bytes = max_bytes
        self._clock = clock
        self._disk = disk or Disk()
        self._lock = threading.Lock()
        self._counted_s = float("-inf")
        self._usage = Usage(0, 0)
        self.corrupt = 0
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._id = self._own_id()

    # ---- what a step asks for ------------------------------------------------------------------------------------

    async def keep(self, job_id: str, got: Fetched) -> bool:
        """Whether the bytes are safe here: True means that they survive a power cut. `got`'s file stays as it is.

        Killed half-way, nothing is kept; what is left of it is cleared away later.
        """
        return await asyncio.to_thread(self._keep, job_id, got)

    async def find(self, job_id: str) -> Fetched | None:
        """The job's image, hashed and inspected again; its file is the spool's. What is not whole is dropped."""
        return await asyncio.to_thread(self._find, job_id)

    async def drop(self, job_id: str) -> None:
        """The job's image is in the bucket, or nobody wants it."""
        await asyncio.to_thread(self._drop, job_id)

    async def held(self) -> dict[str, float]:
        """Every job of which anything lies here, and since how many seconds. Parts of dead processes are removed."""
        return await asyncio.to_thread(self._held)

    @property
    def id(self) -> str:
        """The directory's own, for as long as it lives."""
        return self._id

    @property
    def usage(self) -> Usage:
        """At most RECOUNT_S old."""
        with self._lock:
            self._recount()
            return self._usage

    @property
    def used_bytes(self) -> int:
        return self.usage.bytes

    @property
    def crowded(self) -> bool:
        """So full that no more should be bought before the bucket is back."""
        return self.used_bytes > self._max_bytes * CROWDED_SHARE

    # ---- keeping -------------------------------------------------------------------------------------------------

    def _keep(self, job_id: str, got: Fetched) -> bool:
        parts = [self._part(job_id), self._part(job_id)]
        booked = False
        try:
            booked = self._book(got.bytes)
            if booked:
                self._put(job_id, got, *parts)
        except OSError as error:
            log.warning("not spooled: %s", error.strerror, extra={"job": job_id})
            self._unwind(job_id, parts, got.bytes if booked else 0)
            return False
        return booked

    def _put(self, job_id: str, got: Fetched, image: Path, facts: Path) -> None:
        told = {"sha256": got.sha256, "bytes": got.bytes} | asdict(got.seen)
        self._disk.copy(got.path, image)
        self._place(image, self._image(job_id, got.seen.extension))
        self._disk.write(facts, json.dumps(told).encode())
        self._place(facts, self._facts(job_id))
        self._disk.sync(self._directory)

    def _unwind(self, job_id: str, parts: list[Path], size: int) -> None:
        with suppress(OSError):
            for part in parts:
                self._disk.unlink(part)
            self._remove(job_id)
        self._unbook(size)

    def _place(self, part: Path, target: Path) -> None:
        self._disk.sync(part)
        self._disk.rename(part, target)

    def _book(self, size: int) -> bool:
        with self._lock:
            self._recount()
            if self._usage.bytes + size > self._max_bytes:
                return False
            self._usage = Usage(self._usage.bytes + size, self._usage.files + 1)
            return True

    def _recount(self) -> None:
        now_s = self._clock.monotonic_s()
        if now_s - self._counted_s >= RECOUNT_S:
            sizes = [_size(each) for each in self._directory.iterdir() if each.suffix[1:] in EXTENSIONS]
            self._usage, self._counted_s = Usage(sum(sizes), len(sizes)), now_s

    # ---- finding -------------------------------------------------------------------------------------------------

    def _find(self, job_id: str) -> Fetched | None:
        try:
            facts = self._facts(job_id).read_bytes()
        except OSError:
            return None
        found = self._believed(job_id, facts)
        if found is None:
            self.corrupt += 1
            log.error("a spooled image is not what was kept: it is dropped", extra={"job": job_id})
            self._drop(job_id)
        return found

    def _believed(self, job_id: str, facts: bytes) -> Fetched | None:
        """Only if the bytes are those that the facts speak of. Total."""
        try:
            told: Any = json.loads(facts)
            path = self._image(job_id, told["extension"])
            with path.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            seen = images.inspect(path)
            size = path.stat().st_size
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None
        if not isinstance(seen, images.Image) or told != {"sha256": sha256, "bytes": size} | asdict(seen):
            return None
        return Fetched(path, size, sha256, seen)

    # ---- clearing away -------------------------------------------------------------------------------------------

    def _drop(self, job_id: str) -> None:
        size = sum(_size(self._image(job_id, extension)) for extension in EXTENSIONS)
        with suppress(OSError):
            self._remove(job_id)
        self._unbook(size)

    def _remove(self, job_id: str) -> None:
        """Facts first: from then on the rest is not believed."""
        self._disk.unlink(self._facts(job_id))
        for extension in EXTENSIONS:
            self._disk.unlink(self._image(job_id, extension))

    def _unbook(self, size: int) -> None:
        if size:
            with self._lock:
                self._usage = Usage(max(0, self._usage.bytes - size), max(0, self._usage.files - 1))

    def _held(self) -> dict[str, float]:
        with tempfile.TemporaryFile(dir=self._directory) as probe:  # the file system's own clock
            now_s = os.fstat(probe.fileno()).st_mtime
        held: dict[str, float] = {}
        for path in self._directory.iterdir():
            with suppress(FileNotFoundError):
                age_s = now_s - path.stat().st_mtime
                if path.suffix == _PART and age_s > STALE_PART_S:
                    self._disk.unlink(path)
                elif path.suffix == _FACTS or path.suffix[1:] in EXTENSIONS:
                    held[path.stem] = max(age_s, held.get(path.stem, 0.0))
        return held

    # ---- names ---------------------------------------------------------------------------------------------------

    def _image(self, job_id: str, extension: str) -> Path:
        if extension not in EXTENSIONS:
            raise ValueError("an image is jpeg, png or webp")
        return self._directory / f"{job_id}.{extension}"

    def _facts(self, job_id: str) -> Path:
        return self._directory / f"{job_id}{_FACTS}"

    def _part(self, job_id: str) -> Path:
        return self._directory / f".{job_id}.{secrets.token_hex(ID_BYTES)}{_PART}"

    def _own_id(self) -> str:
        """The directory's id, made by whoever comes first. A file that holds none (a disk's mistake) is replaced."""
        file = self._directory / "id"
        part = self._part("id")
        self._disk.write(part, secrets.token_hex(ID_BYTES).encode())
        self._disk.sync(part)
        with suppress(FileExistsError):
            file.hardlink_to(part)
        found = file.read_bytes().decode("ascii", "replace")
        if _ID.fullmatch(found) is None:
            part.rename(file)
            found = file.read_bytes().decode("ascii", "replace")
        self._disk.unlink(part)
        self._disk.sync(self._directory)
        return found


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
