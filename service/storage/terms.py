"""What the store is told and what it answers: bounds, outcomes, claims, figures."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from service.domain.job import Job
from service.storage.connection import RedisError

LOST_SHARE_MOST: Final = 0.2  # above it polling no longer leans on callbacks, and an alarm shows
OVERDUE_S: Final = 10.0  # healthy callbacks come within a second or two
STORAGE: Final = "storage"  # a reason for which submissions pause


class Unconfirmed(RedisError):
    """Written, but fewer replicas than asked for have confirmed it. `job_id`: of the job that was on record before."""

    def __init__(self, told: str, job_id: str | None = None) -> None:
        super().__init__(told)
        self.job_id = job_id


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds that the script works with. `caps`: provider's in-flight caps of single models."""

    max_in_flight: int = 24
    caps: Mapping[str, int] = field(default_factory=dict)
    backlog_max: int = 200_000
    events_max: int = 100_000
    idempotency_s: int = 24 * 3600
    retention_s: int = 7 * 24 * 3600
    callbacks: bool = True  # whether submissions ask for one
    spool_lost_s: float = 900.0  # a spool silent for so long is lost
    spool_stopped_s: float = 30.0  # nobody serves a spool that is silent for so long
    spool_rescue_s: float = 120.0  # the rest of its URL's life in which the image of a stopped spool is pulled again
    replicas: int = 0
    replicas_timeout_s: float = 1.0


@dataclass(frozen=True, slots=True)
class Bell:
    """Look at `id` now: an entry for the queue (or a kind of due work that the sweep does itself)."""

    queue: str
    id: str


class Outcome(StrEnum):
    """What a guarded write did."""

    CREATED = "created"
    ALREADY = "already"
    REPLAYED = "replayed"
    CONFLICT = "conflict"
    BUSY = "busy"  # a batch is being uploaded under this key
    FULL = "full"
    RETRIED = "retried"
    STALE = "stale"
    APPLIED = "applied"
    GONE = "gone"
    TAKEN = "taken"
    BURIED = "buried"
    CONDEMNED = "condemned"


@dataclass(frozen=True, slots=True)
class Written:
    """`job_id`: of the job that the caller should look at (another than its own where a key or a retry is known)."""

    outcome: Outcome
    at: int
    job_id: str
    bells: tuple[Bell, ...] = ()


@dataclass(frozen=True, slots=True)
class Idempotency:
    """`key` is the digest of the caller's header, `body` that of the parsed request."""

    key: str
    body: str


@dataclass(frozen=True, slots=True)
class Claim:
    """A lease on a job: until `lease_end` (ms, Redis's clock) no other worker is given it. `gate`: why, if closed.

    `alone`: the group of suspects that it is claimed from.
    """

    job: Job
    now: int
    lease_end: int
    gate: str
    alone: str | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """One transition, as the events stream carries it. `eid` is the stream's own id."""

    eid: str
    data: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Remains:
    """Of a deleted job: its attempts that may still run at the provider, as its record told of them."""

    open: tuple[int, ...]
    tasks: Mapping[str, str]
    intent_at: int | None
    submitted_at: int | None

    @classmethod
    def read(cls, fields: Mapping[str, str]) -> "Remains":
        instants = (int(fields[name]) if fields[name] else None for name in ("intent_at", "submitted_at"))
        return cls(tuple(json.loads(fields["open"])), json.loads(fields["tasks"]), *instants)


@dataclass(frozen=True, slots=True)
class Suspicion:
    """How many jobs are suspect, in how many groups, and how often one of them has crashed when alone, at most."""

    jobs: int = 0
    groups: int = 0
    crashes_most: int = 0


NOBODY: Final = Suspicion()


@dataclass(frozen=True, slots=True)
class Figures:
    """What `/metrics` shows of the store."""

    counts: Mapping[str, int]
    slots: int
    due: int
    oldest_due_s: float
    gate: Mapping[str, str]
    storage_s: float = 0.0  # submissions pause for so long, because images cannot be stored or pulled in time
    suspects: Suspicion = NOBODY

    @property
    def closed(self) -> frozenset[str]:
        """Why submissions pause; empty: they do not."""
        return frozenset(({self.gate.get("reason", "")} - {""}) | ({STORAGE} if self.storage_s > 0 else set()))


@dataclass(frozen=True, slots=True)
class Callbacks:
    """Of the last images: how many were told by a callback first, by one that came after a poll had found the image
    (and how late, median), and how many never came. `overdue`: awaited for longer than `OVERDUE_S`, so probably lost.
    """

    first: int = 0
    late: int = 0
    lost: int = 0
    awaited: int = 0
    overdue: int = 0
    late_s: float | None = None

    @classmethod
    def told(cls, found: Sequence[str], awaited: int, overdue: int) -> "Callbacks":
        late = sorted(int(word.partition(":")[2]) / 1000 for word in found if word.startswith("late:"))
        return cls(
            first=found.count("webhook"),
            late=len(late),
            lost=found.count("lost"),
            awaited=awaited,
            overdue=overdue,
            late_s=late[len(late) // 2] if late else None,
        )

    @property
    def lost_share(self) -> float:
        """0 to 1; 0 while nothing is known."""
        gone = self.lost + self.overdue
        return gone / (gone + self.first + self.late) if gone else 0.0


def storage_s(gate: Mapping[str, str], now_s: float) -> float:
    """For how much longer submissions pause for want of storage."""
    return max(0.0, int(gate.get(f"{STORAGE}_until", "0")) / 1000 - now_s)
