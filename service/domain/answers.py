"""What a foreign answer means: decided once, here, as one of a closed set.

The one distinction that costs money is NotAccepted against Unknown. NotAccepted may be posted again at once, so it is
given only where the provider cannot have taken the task. Whatever else happens after the bytes have left is Unknown.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from service.domain import payloads
from service.domain.parsing import loads
from service.domain.payloads import Payload, Word
from service.domain.redaction import clean

RETRY_AFTER_S_MAX: Final = 300.0
HELD_STATUSES: Final = frozenset({401, 402, 403})  # key or credits: the account is wrong, not the job
REQUEST_TIMEOUT: Final = 408  # a gateway gave up waiting; the house behind it may have the task all the same
_SECONDS: Final = re.compile(r"[0-9]{1,6}(\.[0-9]{1,6})?")


@dataclass(frozen=True, slots=True)
class Accepted:
    """The provider has the task, and it is paid for. `cost` in the provider's credits."""

    provider_id: str
    cost: float | None = None


@dataclass(frozen=True, slots=True)
class Pending:
    """Not ended. `progress` 0 to 1."""

    provider_id: str | None = None
    progress: float | None = None


@dataclass(frozen=True, slots=True)
class Ready:
    """The image waits at `url`, until `expires_at` (epoch milliseconds) where the URL says so: ten minutes or so."""

    provider_id: str | None
    url: str = field(repr=False)
    seed: int | None = None
    cost: float | None = None
    duration_s: float | None = None
    expires_at: int | None = None


@dataclass(frozen=True, slots=True)
class Moderated:
    provider_id: str | None
    reasons: str


@dataclass(frozen=True, slots=True)
class Failed:
    """The provider took the task and gave it up."""

    provider_id: str | None
    message: str


@dataclass(frozen=True, slots=True)
class Rejected:
    """The request is wrong, and will be wrong again."""

    message: str


@dataclass(frozen=True, slots=True)
class Held:
    """The account or the route is wrong: no job's fault, so nothing is burnt and submissions pause."""

    reason: str
    status: int


@dataclass(frozen=True, slots=True)
class Throttled:
    """429. `retry_after_s`: what the provider asked for, where that is a sane number of seconds."""

    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class NotAccepted:
    """Refused before it could be taken: may be posted again."""

    detail: str


@dataclass(frozen=True, slots=True)
class NotFound:
    """`Task not found`: expired, in another region, or only just submitted. May pass."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """No telling. After a submission: the task may have been taken."""

    detail: str


Answer = (
    Accepted | Pending | Ready | Moderated | Failed | Rejected | Held | Throttled | NotAccepted | NotFound | Unknown
)


@dataclass(frozen=True, slots=True)
class Callback:
    """What a callback says, before anyone has judged whether to believe it."""

    answer: Answer
    provider_id: str | None
    secret: str | None = field(repr=False)


def submit_answer(status: int, content_type: str, body: bytes, headers: Mapping[str, str]) -> Answer:
    """What `POST {base}/{model}` was answered with. Total."""
    payload = _object(body)
    if status in HELD_STATUSES or 300 <= status < 400:
        return Held(_detail(status, payload), status)
    if status == 429:
        return Throttled(_retry_after_s(headers))
    if 200 <= status < 300:
        return _submitted(payload) or Unknown(_detail(status, payload))
    if 400 <= status < 500 and status != REQUEST_TIMEOUT:
        return _moderated(payload) or Rejected(_detail(status, payload))
    if status == 500 and payloads.error_code(payload or {}) == "invalid_request":
        return Rejected(_detail(status, payload))
    return _submit_error(status, content_type, payload)


def result_answer(status: int, content_type: str, body: bytes, headers: Mapping[str, str]) -> Answer:
    """What `GET {base}/get_result` was answered with. Total.

    Never Accepted, NotAccepted or Rejected: the job is bought already, and a poll that is refused says nothing of it.
    """
    payload = _object(body)
    if status in HELD_STATUSES:
        return Held(_detail(status, payload), status)
    if status == 429:
        return Throttled(_retry_after_s(headers))
    if status == 404:
        return NotFound()
    if 200 <= status < 300:
        return _task(payload) or Unknown(_detail(status, payload))
    return _ended_by_503(status, content_type, payload) or Unknown(_detail(status, payload))


def callback_payload(body: bytes) -> Callback | None:
    """What a callback says, in either dialect; None: no JSON object. Total."""
    payload = _object(body)
    if payload is None:
        return None
    answer = _task(payload) or Unknown("The callback names no status")
    return Callback(answer, payloads.provider_id(payload), payloads.secret(payload))


def _object(body: bytes) -> Payload | None:
    value = loads(body)
    return value if isinstance(value, dict) else None


def _task(payload: Payload | None) -> Answer | None:
    """The state of the task that `payload` describes; None: it describes none.

    Layers may disagree (a wrapper's SUCCESS around `Request Moderated`): moderation is never taken back, an image that
    can be had outweighs a failure, and what may pass (not found) outweighs what ends a job that is paid for.
    """
    if payload is None:
        return None
    words, provider_id = payloads.words(payload), payloads.provider_id(payload)
    if Word.MODERATED in words:
        return Moderated(provider_id, payloads.reasons(payload))
    if Word.READY in words and (url := payloads.sample_url(payload)):
        return _ready(payload, provider_id, url)
    if Word.NOT_FOUND in words:
        return NotFound()
    if Word.FAILED in words:
        return Failed(provider_id, payloads.message(payload)) if payloads.is_task(payload) else None
    if Word.READY in words:
        return Unknown("Ready, but without a usable sample")
    return Pending(provider_id, payloads.progress(payload)) if words or provider_id else None


def _ready(payload: Payload, provider_id: str | None, url: str) -> Ready:
    return Ready(
        provider_id=provider_id,
        url=url,
        seed=payloads.seed(payload),
        cost=payloads.cost(payload),
        duration_s=payloads.duration_s(payload),
        expires_at=payloads.expires_at(url),
    )


def _submitted(payload: Payload | None) -> Answer | None:
    """A 2xx to a submission: a task that has ended already says so; otherwise an id is an acceptance."""
    if payload is None:
        return None
    task, provider_id = _task(payload), payloads.provider_id(payload)
    if isinstance(task, Ready | Moderated | Failed):
        return task
    return Accepted(provider_id, payloads.cost(payload)) if provider_id else None


def _moderated(payload: Payload | None) -> Moderated | None:
    task = _task(payload)
    return task if isinstance(task, Moderated) else None


def _submit_error(status: int, content_type: str, payload: Payload | None) -> Answer:
    """5xx and whatever no RFC names. Only a 503 in JSON is a refusal, and only if it names no task."""
    if status != 503 or not _is_json(content_type) or payload is None:
        return Unknown(_detail(status, payload))
    if payloads.provider_id(payload) is None:
        return NotAccepted(_detail(status, payload))
    named = _submitted(payload) if payloads.words(payload) else None
    return named or Unknown(_detail(status, payload))


def _ended_by_503(status: int, content_type: str, payload: Payload | None) -> Answer | None:
    """A failed task can arrive as 503 with a normal JSON body: believed if it carries its id."""
    if status != 503 or not _is_json(content_type):
        return None
    task = _task(payload)
    return task if isinstance(task, Ready | Moderated | Failed) and task.provider_id else None


def _is_json(content_type: str) -> bool:
    media_type = content_type.partition(";")[0].strip().lower()
    return media_type == "application/json" or media_type.endswith("+json")


def _detail(status: int, payload: Payload | None) -> str:
    """Of a body that is not JSON (a gateway's page) nothing is repeated."""
    said = payloads.message(payload or {})
    return clean(f"HTTP {status}: {said}" if said else f"HTTP {status}")


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    """RFC 9110 section 10.2.3, seconds only: a date would need the provider's clock and ours to agree."""
    given = next((value.strip() for name, value in headers.items() if name.lower() == "retry-after"), "")
    seconds = float(given) if _SECONDS.fullmatch(given) else RETRY_AFTER_S_MAX + 1
    return seconds if seconds <= RETRY_AFTER_S_MAX else None
