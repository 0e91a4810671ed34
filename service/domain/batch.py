"""A batch: many jobs that were sealed together, and what has become of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from service.domain import layout
from service.domain.instants import epoch_ms, rfc3339
from service.domain.job import Status

LINES_MOST: Final = 50_000


class BatchStatus(StrEnum):
    """`STAGING`: an upload that is not whole; to callers it does not exist."""

    STAGING = "staging"
    RUNNING = "running"
    COMPLETED = "completed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Batch:
    """`rest` lines are not jobs yet. `closed`: jobs that ended, with their sidecars. Instants: epoch milliseconds."""

    id: str
    caller: str
    status: BatchStatus
    now: int = 0
    total: int = 0
    rest: int = 0
    closed: int = 0
    counts: Mapping[str, int] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    callback_url: str | None = None
    retry_of: str | None = None
    retried_by: str | None = None
    created_at: int = 0
    finished_at: int | None = None
    hash: str | None = None  # of the request: its lines, callback_url and metadata
    key: str | None = None  # digest of the caller's Idempotency-Key
    marked: bool = False  # manifest and marker are in the bucket

    @property
    def done(self) -> int:
        return self.total if self.marked else self.closed

    @property
    def succeeded(self) -> int:
        return self.counts.get(Status.SUCCEEDED, 0)

    @property
    def eta_s(self) -> int | None:
        """At the pace so far; None while nothing tells a pace."""
        if self.done >= self.total:
            return 0
        took_ms = self.now - self.created_at
        return round(took_ms / 1000 / self.done * (self.total - self.done)) if self.done and took_ms > 0 else None


def view(batch: Batch) -> dict[str, Any]:
    """The batch as callers see it (the contract's batch)."""
    return {
        "id": batch.id,
        "status": batch.status,
        "caller": batch.caller,
        "metadata": dict(batch.metadata),
        "callback_url": batch.callback_url,
        "retry_of": batch.retry_of,
        "created_at": rfc3339(batch.created_at),
        "finished_at": rfc3339(batch.finished_at) if batch.finished_at is not None and batch.marked else None,
        "total": batch.total,
        "counts": {status: batch.counts.get(status, 0) for status in Status},
        "progress": round(batch.done / batch.total, 4) if batch.total else 1.0,
        "eta_s": None if batch.status is BatchStatus.CANCELLED and not batch.marked else batch.eta_s,
        "manifest_key": layout.manifest_key(batch.id),
    }


def unview(told: Mapping[str, Any]) -> Batch:
    """The batch that a marker tells of. KeyError, TypeError or ValueError: it tells of none."""
    total = int(told["total"])
    known = told["idempotency"]
    return Batch(
        id=str(told["id"]),
        caller=str(told["caller"]),
        status=BatchStatus(told["status"]),
        total=total,
        closed=total,
        counts={status: int(told["counts"][status]) for status in Status},
        metadata=dict(told["metadata"]),
        callback_url=told["callback_url"],
        retry_of=told["retry_of"],
        created_at=epoch_ms(told["created_at"]),
        finished_at=epoch_ms(told["finished_at"]),
        hash=known["hash"],
        key=known["key"],
        marked=True,
    )
