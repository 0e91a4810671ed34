"""A job: what a caller asked for, and what has become of it.

The first half of the fields is the *order*: written once, when the job is accepted. The second half is its *course*:
it changes only through `lifecycle.decide` and the store's guarded write.
Instants are epoch milliseconds of Redis's clock, None where the thing has not happened.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from service.domain.errors import JobError


class Status(StrEnum):
    """Where a job is (contract: the job's `status`)."""

    QUEUED = "queued"
    SUBMITTING = "submitting"
    GENERATING = "generating"
    COLLECTING = "collecting"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


ENDED = frozenset({Status.SUCCEEDED, Status.FAILED, Status.CANCELLED})


class Priority(StrEnum):
    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


class FoundBy(StrEnum):
    """Who told us first that the image is ready."""

    WEBHOOK = "webhook"
    POLL = "poll"


class Queue(StrEnum):
    """The RQ queue whose worker looks at a job next."""

    SUBMIT = "submit"
    COLLECT = "collect"


@dataclass(frozen=True, slots=True)
class Image:
    """The stored object's facts (contract: the job's `image`)."""

    bucket: str
    key: str
    sha256: str
    bytes: int
    width: int
    height: int
    content_type: str
    seed: int | None

    def to_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Image":
        return cls(**{name: data[name] for name in cls.__slots__})


@dataclass(frozen=True, slots=True)
class Job:
    """One job as its record says. `open` and `tasks` speak of attempts, numbered from 1."""

    id: str
    caller: str
    model: str
    request: Mapping[str, Any]
    priority: Priority = Priority.NORMAL
    metadata: Mapping[str, Any] = field(default_factory=dict)
    callback_url: str | None = None
    batch_id: str | None = None
    custom_id: str | None = None
    retry_of: str | None = None
    hook: str | None = None  # whom else to notify: address and secret, sealed; never shown
    idempotency: str | None = None  # digests of the caller's key and of the request that came with it

    version: int = 0
    digest: str = field(default="", compare=False)  # of the record that was read: a version alone may not be unique
    status: Status = Status.QUEUED
    reason: str = ""
    created_at: int = 0
    deadline_at: int | None = None
    intent_at: int | None = None  # when the latest attempt's intent to buy went on record
    submitted_at: int | None = None  # when the provider was first known to have accepted
    ready_at: int | None = None
    finished_at: int | None = None  # ended, or sealed
    attempt: int = 0  # the latest attempt whose intent is on record
    open: tuple[int, ...] = ()  # attempts that may be outstanding at the provider; the slot is held while any is
    refusals: int = 0  # attempts surely not accepted that count against the limit
    possible_duplicate: bool = False  # a second purchase was risked, once, after an unknown outcome
    untold: bool = False  # an attempt was closed without the provider ever saying whether it had accepted it
    tasks: Mapping[str, str] = field(default_factory=dict)  # attempt -> provider's task id
    costs: Mapping[str, float] = field(default_factory=dict)  # attempt -> what the provider charged
    candidate: str | None = None  # a provider id that a callback without proof named; not yet confirmed
    candidate_of: int = 0  # the attempt to whose address that callback came
    hints: int = 0  # callbacks without (right) proof that brought a poll forward
    polls: int = 0
    polled_at: int | None = None
    pulls: int = 0  # pulls or stores of the image that failed
    provider_id: str | None = None  # the task whose image is, or will be, collected
    found_by: FoundBy | None = None
    result_url: str | None = None  # never shown, never logged: it is a signed URL
    result_expires_at: int | None = None
    result_seed: int | None = None
    asked_at: int | None = None  # since when the provider is asked in vain for a URL that gives the image
    spool: str | None = None  # the machine's directory where its pulled bytes wait for the bucket
    image: Image | None = None
    error: JobError | None = None
    sidecar: bool = False  # the bucket's lasting record of the ended job is written
    scrub: bool = False  # it ended while an image of it may have been put: that object must go
    retried_by: str | None = None

    @property
    def ended(self) -> bool:
        return self.status in ENDED

    @property
    def sealed(self) -> bool:
        """The image is in the bucket and on record: no cancel and no deadline any more."""
        return self.image is not None

    @property
    def bought(self) -> bool:
        """The provider has, or may have, accepted an attempt."""
        return bool(self.tasks or self.open or self.possible_duplicate or self.untold)

    @property
    def task(self) -> str | None:
        """The provider's task that the job goes by; also one that was told of only after the job's end."""
        return self.provider_id or (self.tasks[max(self.tasks, key=int)] if self.tasks else None)

    def attempt_of(self, provider_id: str) -> int | None:
        """The attempt that this provider task belongs to."""
        return next((int(n) for n, task in self.tasks.items() if task == provider_id), None)
