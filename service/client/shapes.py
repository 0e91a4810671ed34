"""What the service answers, as it answers it: plain dicts. Fields that a newer service adds are kept, and come along.

Instants are RFC 3339 in UTC with milliseconds, or None where the thing has not happened.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, NotRequired, TypedDict

Status = Literal["queued", "submitting", "generating", "collecting", "succeeded", "failed", "cancelled"]

ENDED: Final = frozenset({"succeeded", "failed", "cancelled"})
BATCH_ENDED: Final = frozenset({"completed", "cancelled"})


class Image(TypedDict):
    """The stored object. `sha256` is of its bytes."""

    bucket: str
    key: str
    sha256: str
    bytes: int
    width: int
    height: int
    content_type: str
    seed: int | None


class JobError(TypedDict):
    """Why a job failed: `code` is stable, `retryable` says whether another try could end better."""

    code: str
    message: str
    retryable: bool


class Job(TypedDict):
    """One job. `cost` is in the provider's credits; `found_by` tells who first said that the image is ready.

    `unsettled`: an attempt may still run at the provider, or nobody ever heard whether it was accepted.
    """

    id: str
    status: Status
    model: str
    request: dict[str, Any]
    priority: str
    caller: str
    batch_id: str | None
    custom_id: str | None
    metadata: dict[str, Any]
    callback_url: str | None
    retry_of: str | None
    created_at: str
    submitted_at: str | None
    ready_at: str | None
    finished_at: str | None
    provider_id: str | None
    attempts: int
    possible_duplicate: bool
    unsettled: bool
    found_by: str | None
    cost: float | None
    image: Image | None
    error: JobError | None


# One line of a job's log. `from` is the status before, `by` the process that wrote it.
Moment = TypedDict(
    "Moment",
    {
        "at": str,
        "status": Status,
        "from": Status | None,
        "reason": str,
        "by": str | None,
        "detail": str | None,
    },
)


class Suspect(TypedDict):
    """A job that was in flight when a worker process died, so that it runs apart. `crashes`: of its own, when alone."""

    crashes: int


class Next(TypedDict):
    """When a job is looked at next at the latest, what for, and why submissions pause if they do."""

    at: str
    what: str
    paused: list[str]
    suspect: NotRequired[Suspect | None]  # an older service does not tell


class Log(TypedDict):
    """A job's life, oldest first; empty once its record has left Redis. `next` is None when nothing is left to do."""

    events: list[Moment]
    next: Next | None


class Batch(TypedDict):
    """`progress` is 0 to 1; `eta_s` None while nothing tells a pace."""

    id: str
    status: Literal["running", "completed", "cancelled"]
    caller: str
    metadata: dict[str, Any]
    callback_url: str | None
    retry_of: str | None
    created_at: str
    finished_at: str | None
    total: int
    counts: dict[str, int]
    progress: float
    eta_s: float | None
    manifest_key: str


@dataclass(frozen=True, slots=True)
class Event:
    """A transition (`job.<status>`), or `reset`: some that came before are not kept, so read the jobs themselves."""

    id: str
    type: str
    data: Mapping[str, Any]
