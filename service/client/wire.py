"""What both clients do with httpx alike: how an `Ask` looks on the wire, and what came back.

A redirect is never followed by httpx, but by a talk where it is expected, so that the token stays with the service.
"""

import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import Any, BinaryIO, Final
from urllib.parse import urlsplit

import httpx

from .core import READ_S, Answer, Ask

Order = Mapping[str, Any]
Lines = Iterable[Order] | os.PathLike[str]

CONNECT_S: Final = 5.0
WRITE_S: Final = 30.0
WATCH_GAP_S: Final = 2.0  # between looks at a running batch
CHUNK_BYTES: Final = 64 * 1024
AGENT: Final = "darkroom-client/1"
LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")


class Wire:
    """Where the service is, and how a request to it looks."""

    def __init__(self, url: str, token: str) -> None:
        self._url = url.rstrip("/")
        self._token = token

    def arguments(self, ask: Ask) -> dict[str, Any]:
        """For httpx's `build_request`, but for the body. The token is for the service alone."""
        headers = {"User-Agent": AGENT, **ask.headers}
        if ask.ours:
            headers["Authorization"] = f"Bearer {self._token}"
        timeout = httpx.Timeout(READ_S + ask.slow_s, connect=CONNECT_S, write=WRITE_S)
        url = self._url + ask.path if ask.ours else ask.path
        return {"method": ask.method, "url": url, "params": ask.params or None, "headers": headers, "timeout": timeout}


def past_proxies(url: str) -> dict[str, None]:
    """For httpx's `mounts`: what is on this machine, the service or a store beside it, is asked directly.

    For all else a proxy that the environment names stands, so that a link into a store far away still works.
    """
    host = _host(url)
    own = (host,) if _is_loopback(host) else ()
    return {f"all://[{each}]" if ":" in each else f"all://{each}": None for each in (*LOOPBACK, *own)}


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:  # the first call says what is wrong with it
        return ""


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


@contextmanager
def body_of(lines: Lines) -> Iterator[tuple[BinaryIO, int]]:
    """A file that can be sent twice: the caller's own, or one that the orders are written to first."""
    if isinstance(lines, os.PathLike):
        with Path(lines).open("rb") as file:
            yield file, os.fstat(file.fileno()).st_size
        return
    with tempfile.TemporaryFile() as file:
        for line in lines:
            file.write(json.dumps(line).encode() + b"\n")
        file.flush()
        yield file, file.tell()


def content(body: bytes | BinaryIO | None) -> bytes | Iterator[bytes] | None:
    """For httpx: a file piece by piece, so that it is never whole in memory."""
    return body if body is None or isinstance(body, bytes) else chunks(body)


def chunks(file: BinaryIO) -> Iterator[bytes]:
    file.seek(0)
    while chunk := file.read(CHUNK_BYTES):
        yield chunk


def told(callback_url: str | None, metadata: Order | None) -> dict[str, str]:
    """What an NDJSON batch carries in its query."""
    params = {"callback_url": callback_url} if callback_url else {}
    return params | ({"metadata": json.dumps(metadata)} if metadata else {})


def answer_of(response: httpx.Response) -> Answer:
    headers = {name.lower(): value for name, value in response.headers.items()}
    return Answer(response.status_code, headers, response.content)


def why(error: httpx.RequestError) -> str:
    return f"{type(error).__name__} {error}".strip()
