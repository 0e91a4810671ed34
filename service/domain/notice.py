"""A notification: what a caller is told when a job, or a batch, of his is over, and what became of telling him."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from service.domain.instants import rfc3339

LASTS_S: Final = 72 * 3600  # from when it became due; the try at its end is the last


class NoticeState(StrEnum):
    """`OFF`: the receiver said 410. `GIVEN_UP`: nothing else was heard from him in 72 h."""

    PENDING = "pending"
    DELIVERED = "delivered"
    GIVEN_UP = "given_up"
    OFF = "off"


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try. `status` is the receiver's, or None where none came; `error` is a word of ours."""

    at: int
    took_ms: int
    status: int | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Notice:
    """`id` is that of the job or batch. `url`: the caller's; or `hook`, where address and secret came sealed.

    `tries` counts those since `since`; instants are epoch milliseconds of Redis's clock.
    """

    id: str
    caller: str
    state: NoticeState
    since: int
    tries: int
    now: int
    url: str | None = None
    hook: str | None = None
    attempts: Sequence[Attempt] = ()
    due_at: int | None = None


def message_id(id_: str) -> str:
    """`webhook-id`: the same in every try, so that a receiver knows what he has seen."""
    return f"msg_{id_}"


def view(id_: str, notice: Notice | None, *, wanted: bool) -> dict[str, Any]:
    """As callers see it. `wanted`: there is somebody to call. `state` is one of STATES."""
    state = notice.state if notice else "waiting" if wanted else "none"
    pending = notice is not None and notice.state is NoticeState.PENDING
    return {
        "webhook_id": message_id(id_),
        "state": state,
        "next_at": rfc3339(notice.due_at) if notice and pending and notice.due_at is not None else None,
        "attempts": [_told(attempt) for attempt in (notice.attempts if notice else ())],
    }


STATES: Final = ("none", "waiting", *(state.value for state in NoticeState))


def _told(attempt: Attempt) -> dict[str, Any]:
    return {
        "at": rfc3339(attempt.at),
        "status": attempt.status,
        "error": attempt.error,
        "duration_s": attempt.took_ms / 1000,
    }


def letter(told: Mapping[str, Any]) -> bytes:
    """The body for a job or batch as its sidecar or marker tells of it: the same bytes each time, since those are."""
    kind = str(told["id"]).partition("_")[0]
    data = {name: value for name, value in told.items() if name != "idempotency"}
    body = {"type": f"{kind}.{told['status']}", "timestamp": told["finished_at"], "data": data}
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
