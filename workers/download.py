"""Pulls an image from a URL that a stranger gave us: to a file, hashed, within bounds, and never further than that.

Whatever the far side does ends as a `Download` or a `DownloadFailure`. Killed half-way, a temp file stays behind, which
`sweep_leftovers` removes; it is in nobody's way, its name being unique.
"""

import asyncio
import hashlib
import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

import httpx

from service.domain.addresses import RESULT_URL_MAX_CHARS, HostList, Refusal, Target, check_url
from workers.network import AddressRefused, Shards

_PREFIX: Final = "pull-"
_SUFFIX: Final = ".part"
_HEADERS: Final = {
    "Accept": "*/*",
    "Accept-Encoding": "identity",  # bytes are kept as the provider made them; and a bomb needs an encoding
    # Bytes left over by one answer can then never be read as the next one's, which is another job's image.
    "Connection": "close",
}
_GONE: Final = frozenset({403, 404, 410})
# Five times a pull's deadline: the file waits here until it has been inspected and put in the bucket or the spool.
STALE_AFTER_S: Final = 300.0


class FailureKind(StrEnum):
    """Refused and too_large are final, expired wants a fresh URL, the others may be tried again."""

    REFUSED = "refused"  # the URL, its address, a redirect or a compressed answer: nothing of it is used
    EXPIRED = "expired"  # 403, 404, 410: signed URLs die after about ten minutes
    UNAVAILABLE = "unavailable"  # unreachable, too slow, 5xx and whatever else is not an answer
    TRUNCATED = "truncated"  # ended before its announced end
    TOO_LARGE = "too_large"
    LOCAL = "local"  # our own disk or connections: says nothing about the job


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one pull. The rate is judged as bytes per window, waits included.

    The first window ends at the answer's head, so a drip is cut after at most two: 14 s.
    """

    max_bytes: int = 32 * 1024 * 1024  # 4 MP as PNG is several MB; 64 MP never come
    deadline_s: float = 60.0
    min_rate_bytes_per_s: int = 8 * 1024
    rate_window_s: float = 7.0


@dataclass(frozen=True, slots=True)
class Download:
    """A file that is now the caller's to move or delete. It has not been fsynced."""

    path: Path
    bytes: int
    sha256: str  # hexadecimal


@dataclass(frozen=True, slots=True)
class DownloadFailure:
    """Why there is no file. `detail` is for logs: no part of it was written by the far side or read from the URL."""

    kind: FailureKind
    detail: str


class _PullError(Exception):
    def __init__(self, kind: FailureKind, detail: str) -> None:
        super().__init__(detail)
        self.failure = DownloadFailure(kind, detail)


DEFAULT_LIMITS: Final = Limits()


async def download(
    url: str, *, shards: Shards, hosts: HostList, directory: Path, limits: Limits = DEFAULT_LIMITS
) -> Download | DownloadFailure:
    """Pull `url` into a new file in `directory`. Cancelled or failed, no file stays."""
    target = check_url(url, hosts, RESULT_URL_MAX_CHARS)
    if isinstance(target, Refusal):
        return DownloadFailure(FailureKind.REFUSED, target.reason)
    try:
        with _part(directory) as part:
            await _pull(target, part, shards, limits)
            return part.done()
    except _PullError as failed:
        return failed.failure


class _Part:
    """The temp file and the running hash of what went into it. A chunk is written before the next one is read."""

    def __init__(self, directory: Path) -> None:
        with _ours():
            self._fd, name = tempfile.mkstemp(prefix=_PREFIX, suffix=_SUFFIX, dir=directory)
        self.path = Path(name)
        self.bytes = 0
        self._sha256 = hashlib.sha256()

    def write(self, chunk: bytes) -> None:
        self._sha256.update(chunk)
        self.bytes += len(chunk)
        rest = memoryview(chunk)
        with _ours():
            while rest:
                # Into the page cache: 64 KiB take 20 µs, a hop to a thread and back takes 100.
                rest = rest[os.write(self._fd, rest) :]

    def done(self) -> Download:
        return Download(self.path, self.bytes, self._sha256.hexdigest())

    def close(self) -> None:
        with _ours():
            os.close(self._fd)


@contextmanager
def _part(directory: Path) -> Iterator[_Part]:
    part = _Part(directory)
    try:
        try:
            yield part
        finally:
            part.close()
    except BaseException:  # cancellation too
        part.path.unlink(missing_ok=True)
        raise


@contextmanager
def _ours() -> Iterator[None]:
    """Tell a full or broken disk of ours from the sockets' errors, which are OSErrors as well."""
    try:
        yield
    except OSError as error:
        raise _PullError(FailureKind.LOCAL, f"disk: {error.strerror}") from error


async def _pull(target: Target, part: _Part, shards: Shards, limits: Limits) -> None:
    """Fill `part`, or raise _PullError: every error of the network ends here."""
    body_began = False
    window = asyncio.timeout(limits.rate_window_s)
    try:
        async with asyncio.timeout(limits.deadline_s), window, _answer(target, shards) as response:
            _check_head(response, limits)
            body_began = True
            await _copy(response, part, window, limits)
    except TimeoutError:
        detail = "below the minimum rate" if window.expired() else f"not done in {limits.deadline_s:g} s"
        raise _PullError(FailureKind.UNAVAILABLE, detail) from None
    except AddressRefused as error:
        raise _PullError(FailureKind.REFUSED, str(error)) from error
    except httpx.PoolTimeout as error:
        raise _PullError(FailureKind.LOCAL, "no free connection") from error
    except httpx.RemoteProtocolError as error:
        kind = FailureKind.TRUNCATED if body_began else FailureKind.UNAVAILABLE
        raise _PullError(kind, type(error).__name__) from error
    except (httpx.HTTPError, OSError) as error:  # OSError: a TLS alert in mid-stream passes httpcore as it is
        raise _PullError(FailureKind.UNAVAILABLE, type(error).__name__) from error


def _answer(target: Target, shards: Shards) -> AbstractAsyncContextManager[httpx.Response]:
    """Ask. Path and query travel beside httpx's URL: its log and its errors show the origin, not the signature."""
    extensions = {"target": target.path_and_query.encode("ascii")}
    return shards.client().stream("GET", f"{target.origin}/", headers=_HEADERS, extensions=extensions)


def _check_head(response: httpx.Response, limits: Limits) -> None:
    status = response.status_code
    if status in _GONE:
        raise _PullError(FailureKind.EXPIRED, f"status {status}")
    if httpx.codes.is_redirect(status):
        raise _PullError(FailureKind.REFUSED, f"redirect, status {status}")
    if status != httpx.codes.OK:
        raise _PullError(FailureKind.UNAVAILABLE, f"status {status}")
    if response.headers.get("content-encoding", "identity").lower() != "identity":
        raise _PullError(FailureKind.REFUSED, "compressed")
    # h11 has refused every Content-Length that is not one number of at most 20 digits.
    if int(response.headers.get("content-length", "0")) > limits.max_bytes:
        raise _PullError(FailureKind.TOO_LARGE, f"announced more than {limits.max_bytes} bytes")


async def _copy(response: httpx.Response, part: _Part, window: asyncio.Timeout, limits: Limits) -> None:
    now_s = asyncio.get_running_loop().time
    window_bytes = limits.min_rate_bytes_per_s * limits.rate_window_s
    window.reschedule(now_s() + limits.rate_window_s)
    judged_bytes = 0
    async for chunk in response.aiter_raw():
        if part.bytes + len(chunk) > limits.max_bytes:
            raise _PullError(FailureKind.TOO_LARGE, f"more than {limits.max_bytes} bytes")
        part.write(chunk)
        if part.bytes - judged_bytes >= window_bytes:
            judged_bytes = part.bytes
            window.reschedule(now_s() + limits.rate_window_s)


def sweep_leftovers(directory: Path, *, stale_after_s: float = STALE_AFTER_S) -> int:
    """Delete temp files that no living pull can own, and tell how many. OSError if `directory` cannot be written.

    Several processes may share `directory`, so age decides, by the clock of the file system itself.
    """
    with tempfile.TemporaryFile(dir=directory) as probe:
        stale_before_s = os.fstat(probe.fileno()).st_mtime - stale_after_s
    leftovers = [each for each in directory.glob(f"{_PREFIX}*{_SUFFIX}") if _changed_at_s(each) <= stale_before_s]
    for each in leftovers:
        each.unlink(missing_ok=True)
    return len(leftovers)


def _changed_at_s(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # another process swept it
        return math.inf
