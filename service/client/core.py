"""Talks with the service, without a socket: what to ask, what the answer means, and whether to ask again.

A talk is a generator: it yields an `Ask`, is sent the `Answer` (or `Lost`, where none came), and returns its result.
`Client` and `AsyncClient` do nothing but carry the two to and fro.

Asked again: what brought no whole answer, 429, 502, 503, 504 and a `409 in_progress`, with full jitter, never before
`Retry-After`, until the patience is over. That is safe, because all that is asked here may be asked twice: an order
carries an Idempotency-Key, a job and a batch have one retry each, and what is cancelled or deleted stays so.
"""

import hashlib
import json
import math
import secrets
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO, Final, TypeVar, cast
from urllib.parse import quote

from .errors import ServiceError, Unfinished, Unreachable, document
from .shapes import ENDED, Batch, Job, Log

T = TypeVar("T")

READ_S: Final = 15.0  # for the first byte of an answer, beyond what is asked to take longer
WAIT_S: Final = 30.0  # one `Prefer: wait`; proxies often cut what is silent for 60 s
WAIT_GAP_S: Final = 1.0  # between looks at a job, should an answer come before its wait is over
UPLOAD_BYTES_PER_S: Final = 64 * 1024  # the least that the service takes
SEAL_S: Final = 120.0  # for a batch of 50,000 lines to be checked and sealed
PAGE: Final = 200
AGAIN: Final = frozenset({429, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class Ask:
    """One request. A `path` with a host of its own is the bucket's: it is sent no token.

    `after_s`: the pause before it; `slow_s`: by how much its answer may take longer than others.
    """

    method: str
    path: str
    params: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | BinaryIO | None = None
    after_s: float = 0.0
    slow_s: float = 0.0

    @property
    def ours(self) -> bool:
        return self.path.startswith("/")


@dataclass(frozen=True, slots=True)
class Answer:
    """`tries`: how often it was asked for. Header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    tries: int = 1


@dataclass(frozen=True, slots=True)
class Lost:
    """No whole answer came. Whether the request was served is unknown."""

    why: str


Talk = Generator[Ask, Answer | Lost, T]
Page = tuple[list[T], str | None]  # and the cursor of the next, None after the last


@dataclass(frozen=True, slots=True)
class Patience:
    """How long, and in what gaps, one call is tried. `clock` is monotonic, `dice` are in 0 to 1."""

    total_s: float = 60.0
    first_gap_s: float = 0.5
    longest_gap_s: float = 8.0
    clock: Callable[[], float] = time.monotonic
    dice: Callable[[], float] = secrets.SystemRandom().random

    def gap_s(self, tries: int, reply: Answer | Lost) -> float:
        """The pause after so many tries: full jitter, on top of what the service asks for."""
        most = min(self.longest_gap_s, self.first_gap_s * 2.0 ** min(tries - 1, 32))
        return _retry_after_s(reply) + self.dice() * most


class Talks:
    """Everything that may be asked. Each raises ServiceError and Unreachable."""

    def __init__(self, patience: Patience) -> None:
        self.patience = patience

    # ---- jobs ----------------------------------------------------------------------------------------------------

    def submit(self, order: Mapping[str, Any], key: str | None, wait_s: float) -> Talk[Job]:
        headers = {"Content-Type": "application/json", "Idempotency-Key": key or fresh_key()}
        ask = Ask("POST", "/v1/jobs", headers=headers, body=json.dumps(order).encode())
        return _job((yield from self._insist(_waiting(ask, wait_s))))

    def get(self, job_id: str, wait_s: float = 0.0, after_s: float = 0.0) -> Talk[Job]:
        return _job((yield from self._insist(_waiting(Ask("GET", path_of("jobs", job_id), after_s=after_s), wait_s))))

    def wait(self, job_id: str, timeout_s: float | None) -> Talk[Job]:
        """Unfinished: the job has not ended by then."""
        clock, gap_s = self.patience.clock, 0.0
        until = clock() + (math.inf if timeout_s is None else timeout_s)
        while True:
            asked_at = clock() + gap_s
            job = yield from self.get(job_id, max(0.0, min(WAIT_S, until - asked_at)), gap_s)
            if job["status"] in ENDED:
                return job
            if clock() >= until:
                raise Unfinished(job)
            gap_s = 0.0 if clock() - asked_at >= WAIT_GAP_S else WAIT_GAP_S

    def jobs(self, status: str | None, batch_id: str | None, cursor: str | None) -> Talk[Page[Job]]:
        return (yield from self._page("jobs", {"status": status, "batch": batch_id, "cursor": cursor}))

    def log(self, job_id: str) -> Talk[Log]:
        return cast("Log", _object((yield from self._insist(Ask("GET", path_of("jobs", job_id, "log")))), events=list))

    def cancel(self, job_id: str) -> Talk[Job]:
        answer = yield from self._insist(Ask("POST", path_of("jobs", job_id, "cancel")))
        if answer.status == 409 and answer.tries > 1:  # perhaps it was this very call that ended it, unheard
            job = yield from self.get(job_id)
            if job["status"] == "cancelled":
                return job
        return _job(answer)

    def retry(self, job_id: str, *, rerun: bool) -> Talk[Job]:
        """A job has one retry: asked again, the answer is the same job."""
        params = {"rerun": "true"} if rerun else {}
        return _job((yield from self._insist(Ask("POST", path_of("jobs", job_id, "retry"), params))))

    def delete(self, job_id: str) -> Talk[None]:
        _checked((yield from self._insist(Ask("DELETE", path_of("jobs", job_id)))))

    def link(self, job_id: str) -> Talk[str]:
        answer = yield from self._insist(Ask("GET", path_of("jobs", job_id, "image")))
        return _elsewhere(answer)

    def image(self, job: Job | str) -> Talk[bytes]:
        """Its bytes from the bucket, by a fresh link each time; of a job (not an id alone) those that were hashed."""
        job_id, facts = (job, None) if isinstance(job, str) else (job["id"], job["image"])
        sha256 = facts and facts["sha256"]
        tries, gap_s, until = 0, 0.0, self.patience.clock() + self.patience.total_s
        while True:
            reply = yield Ask("GET", (yield from self.link(job_id)), after_s=gap_s)
            tries += 1
            if isinstance(reply, Answer) and reply.status == 200:
                if sha256 in {None, hashlib.sha256(reply.body).hexdigest()}:
                    return reply.body
                reply = Lost("other bytes than those that were hashed")
            gap_s = self.patience.gap_s(tries, reply)
            if self.patience.clock() + gap_s > until:
                raise Unreachable(f"The image cannot be fetched: {_why(reply)}")

    # ---- batches -------------------------------------------------------------------------------------------------

    def submit_batch(self, lines: BinaryIO, size_bytes: int, key: str | None, params: Mapping[str, str]) -> Talk[Batch]:
        """`lines` is sent from its beginning each time."""
        headers = {
            "Content-Type": "application/x-ndjson",
            "Content-Length": str(size_bytes),
            "Idempotency-Key": key or fresh_key(),
        }
        slow_s = SEAL_S + size_bytes / UPLOAD_BYTES_PER_S
        ask = Ask("POST", "/v1/batches", params, headers, body=lines, slow_s=slow_s)
        return _batch((yield from self._insist(ask)))

    def batch(self, batch_id: str, after_s: float = 0.0) -> Talk[Batch]:
        return _batch((yield from self._insist(Ask("GET", path_of("batches", batch_id), after_s=after_s))))

    def batches(self, cursor: str | None) -> Talk[Page[Batch]]:
        return (yield from self._page("batches", {"cursor": cursor}))

    def cancel_batch(self, batch_id: str) -> Talk[Batch]:
        answer = yield from self._insist(Ask("POST", path_of("batches", batch_id, "cancel")))
        if answer.status == 409 and answer.tries > 1:
            batch = yield from self.batch(batch_id)
            if batch["status"] == "cancelled":
                return batch
        return _batch(answer)

    def retry_batch(self, batch_id: str) -> Talk[Batch]:
        """A new batch of the lines that failed; a batch has one retry."""
        return _batch((yield from self._insist(Ask("POST", path_of("batches", batch_id, "retry")))))

    # ---- lists -----------------------------------------------------------------------------------------------------

    def _page(self, kind: str, wanted: Mapping[str, str | None]) -> Talk[Page[Any]]:
        """Newest first."""
        params = {name: value for name, value in wanted.items() if value} | {"limit": str(PAGE)}
        told = _object((yield from self._insist(Ask("GET", f"/v1/{kind}", params))), **{kind: list})
        return told[kind], told.get("next_cursor")

    # ---- asking again --------------------------------------------------------------------------------------------

    def _insist(self, ask: Ask) -> Talk[Answer]:
        """The first answer that is final, or the last one before the patience is over. Raises Unreachable."""
        tries, clock = 0, self.patience.clock
        until = clock() + self.patience.total_s + ask.slow_s + ask.after_s
        while True:
            reply = yield ask
            tries += 1
            if isinstance(reply, Answer) and not again(reply):
                return replace(reply, tries=tries)
            gap_s = self.patience.gap_s(tries, reply)
            if clock() + gap_s > until:
                if isinstance(reply, Answer):
                    return replace(reply, tries=tries)
                raise Unreachable(f"No answer after {tries} tries: {reply.why}")
            ask = replace(ask, after_s=gap_s)


def again(answer: Answer) -> bool:
    """Whether this answer speaks of now, and not of the request."""
    busy = answer.status == 409 and document(answer.body).get("code") == "in_progress"
    return busy or answer.status in AGAIN


def redirected(answer: Answer) -> str | None:
    """The bucket's address in a 307; an address without a host of its own leads nowhere."""
    target = answer.headers.get("location", "")
    return target if answer.status == 307 and target.startswith(("http://", "https://")) else None


def fresh_key() -> str:
    return secrets.token_hex(16)


def _waiting(ask: Ask, wait_s: float) -> Ask:
    if wait_s <= 0:
        return ask
    whole_s = math.ceil(min(wait_s, 2 * WAIT_S))
    return replace(ask, headers={**ask.headers, "Prefer": f"wait={whole_s}"}, slow_s=float(whole_s))


def path_of(kind: str, id_: str, verb: str = "") -> str:
    """An id is one segment of a path, whatever is in it."""
    segment = quote(id_, safe="")
    if segment in {"", ".", ".."}:
        raise ValueError(f"{id_!r} is no id")
    return f"/v1/{kind}/{segment}" + (f"/{verb}" if verb else "")


def _checked(answer: Answer) -> Answer:
    if not 200 <= answer.status < 300:
        raise ServiceError.of(answer.status, answer.body)
    return answer


def _object(answer: Answer, **kinds: type[Any]) -> Mapping[str, Any]:
    told = document(_checked(answer).body)
    if not all(isinstance(told.get(name), kind) for name, kind in kinds.items()):
        raise ServiceError(answer.status, "not_understood", "The answer is not this service's.")
    return told


def _job(answer: Answer) -> Job:
    return cast("Job", _object(answer, id=str, status=str))


def _batch(answer: Answer) -> Batch:
    return cast("Batch", _object(answer, id=str, status=str, total=int, counts=dict))


def _elsewhere(answer: Answer) -> str:
    if answer.status != 307:
        raise ServiceError.of(answer.status, answer.body)
    target = redirected(answer)
    if target is None:
        raise ServiceError(answer.status, "not_understood", "The answer leads nowhere.")
    return target


def _retry_after_s(reply: Answer | Lost) -> float:
    """In seconds, as this service writes it; a date, or anything else, counts as nothing (RFC 9110, section 10.2.3)."""
    text = "" if isinstance(reply, Lost) else reply.headers.get("retry-after", "")
    return float(text) if text.isascii() and text.isdigit() and len(text) <= 6 else 0.0


def _why(reply: Answer | Lost) -> str:
    return reply.why if isinstance(reply, Lost) else f"the bucket answered {reply.status}"
