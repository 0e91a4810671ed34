"""Notifications on record: an outbox. What makes one due is the write that ends its job's or batch's own work.

    (sidecar_written | mark | resend) → take → POST → tell: delivered, off, given up, or due again

Killed anywhere: the lease runs out, and the same notification is sent again, under the same id.
"""

import json
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from service.domain.notice import Attempt, Notice, NoticeState
from service.storage.terms import Bell

QUEUE: Final = "notify"


class Run(Protocol):
    """A verb of the script, with its arguments."""

    def __call__(self, verb: str, arguments: Mapping[str, Any]) -> Awaitable[list[Any]]: ...


@dataclass(frozen=True, slots=True)
class NoticeFigures:
    """`tries`: how many there have been, by what came of them (`failed`: due again)."""

    pending: int = 0
    oldest_s: float = 0.0
    tries: Mapping[str, int] = field(default_factory=dict)


class Notices:
    """Every method raises RedisError."""

    def __init__(self, run: Run) -> None:
        self._run = run

    async def take(self, id_: str, lease_s: float) -> Notice | None:
        """The notification, ours until the lease ends; None: it is not due."""
        reply = await self._run("take_notice", {"id": id_, "lease_ms": round(lease_s * 1000)})
        return _read(id_, reply[3], int(reply[1])) if reply[0] == "taken" else None

    async def tell(
        self,
        id_: str,
        to: NoticeState,
        *,
        took_ms: int,
        status: int | None = None,
        error: str | None = None,
        again_s: float = 0.0,
    ) -> None:
        """What came of one try; PENDING: the next comes after `again_s`."""
        tried = {"took_ms": took_ms, "status": status, "error": error}
        attempt = {name: value for name, value in tried.items() if value is not None}
        await self._run("tell_notice", {"id": id_, "to": to, "attempt": attempt, "due_ms": round(again_s * 1000)})

    async def resend(self, id_: str, caller: str, *, url: str | None, hook: str | None) -> tuple[Bell, ...]:
        """It is due now, and lasts from now on. No bells: there is nobody to be told."""
        reply = await self._run("resend", {"id": id_, "caller": caller, "notify": wanted(url, hook)})
        return (Bell(QUEUE, id_),) if reply[0] == "resent" else ()

    async def get(self, id_: str) -> Notice | None:
        """With its newest tries; None: there is none (any more)."""
        reply = await self._run("notice", {"id": id_})
        if reply[0] == "none":
            return None
        return _read(id_, reply[3], int(reply[1]), reply[4], reply[5])

    async def figures(self) -> NoticeFigures:
        reply = await self._run("notice_figures", {})
        since = int(reply[4]) if reply[4] else int(reply[1])
        tries = {state: int(count) for state, count in _pairs(reply[5]).items()}
        return NoticeFigures(int(reply[3]), max(0, int(reply[1]) - since) / 1000, tries)


def wanted(url: str | None, hook: str | None) -> dict[str, str] | None:
    """What the script is told of whom to notify; None: nobody."""
    if hook:
        return {"hook": hook}
    return {"url": url} if url else None


def _read(id_: str, words: Sequence[str], now: int, tries: Sequence[str] = (), due: str = "") -> Notice:
    flat = _pairs(words)
    return Notice(
        id=id_,
        caller=flat["caller"],
        state=NoticeState(flat["state"]),
        since=int(flat["since"]),
        tries=int(flat["tries"]),
        now=now,
        url=flat["url"] or None,
        hook=flat["hook"] or None,
        attempts=[_attempt(json.loads(row)) for row in tries],
        due_at=int(due) if due else None,
    )


def _attempt(row: Mapping[str, Any]) -> Attempt:
    return Attempt(int(row["at"]), int(row["took_ms"]), row.get("status"), row.get("error"))


def _pairs(flat: Sequence[str]) -> dict[str, str]:
    return dict(zip(flat[::2], flat[1::2], strict=True))
