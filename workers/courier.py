"""One POST to an address that a caller chose, within bounds: nobody private is dialled, nothing is followed or trusted.

Whatever the far side does ends as a `Reply`. Its body is not read.
"""

import asyncio
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Protocol

import httpx

from service.domain.addresses import HostList, Refusal, check_url
from workers.network import AddressRefused, Shards

DEADLINE_S: Final = 15.0
HOST_MOST: Final = 8  # posts to one host at once, of all that a process makes: a slow receiver holds up no other
SECONDS: Final = re.compile(r"[0-9]{1,9}")


@dataclass(frozen=True, slots=True)
class Reply:
    """`status` is None where none came: then `error` says why, in a word of ours. `asked_s`: its Retry-After."""

    status: int | None = None
    error: str | None = None
    asked_s: float = 0.0


class Courier(Protocol):
    """A simulation has its own."""

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Reply | None: ...


class HttpCourier:
    """`hosts`: private ones that may be dialled, besides all that are public. `shards` must be guarded alike."""

    def __init__(self, shards: Shards, hosts: HostList, *, deadline_s: float = DEADLINE_S) -> None:
        self._shards = shards
        self._hosts = hosts
        self._deadline_s = deadline_s
        self._busy: Counter[str] = Counter()

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Reply | None:
        """None: so much is being posted to this host just now that nothing was sent."""
        target = check_url(url, self._hosts)
        if isinstance(target, Refusal):
            return Reply(error=target.reason)
        with self._place(target.host) as placed:
            if not placed:
                return None
            # Path and query travel beside httpx's URL: its log and its errors show the origin alone.
            extensions = {"target": target.path_and_query.encode("ascii")}
            try:
                async with (
                    asyncio.timeout(self._deadline_s),
                    self._shards.client().stream(
                        "POST", f"{target.origin}/", headers=dict(headers), content=body, extensions=extensions
                    ) as response,
                ):
                    return Reply(response.status_code, asked_s=_seconds(response.headers.get("retry-after", "")))
            except AddressRefused:
                return Reply(error="address_refused")
            except (TimeoutError, httpx.TimeoutException):
                return Reply(error="timeout")
            except httpx.ConnectError:
                return Reply(error="unreachable")
            except (httpx.HTTPError, OSError):
                return Reply(error="broken_off")

    @contextmanager
    def _place(self, host: str) -> Iterator[bool]:
        if self._busy[host] >= HOST_MOST:
            yield False
            return
        self._busy[host] += 1
        try:
            yield True
        finally:
            self._busy[host] -= 1
            if not self._busy[host]:
                del self._busy[host]


def _seconds(text: str) -> float:
    """Of a Retry-After in seconds; its other form, a date, is taken for none."""
    return float(text) if SECONDS.fullmatch(text) else 0.0
