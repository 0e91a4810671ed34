"""What can happen to a job: facts learnt, and decisions taken.

Each event knows which fields of the record it changes (`patch`); where the job goes, and what is due then, the table
in `lifecycle` says. `NOW` in a patch is replaced by Redis's own time inside the guarded write.
A *fact* (the provider said so) may be told again after a stale write; a *decision* (ours) stands on one version.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Final

from service.domain.errors import ErrorCode, JobError
from service.domain.job import FoundBy, Image, Job, Status

Patch = dict[str, Any]


class _Now:
    def __repr__(self) -> str:
        return "NOW"


NOW: Final = _Now()


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Base of all. `delay_s`: when the job is due again, for rows that are due later."""

    name: ClassVar[str] = ""
    delay_s: float = 0.0
    detail: str = ""

    def patch(self, job: Job) -> Patch:  # noqa: ARG002 -- most events read the job, some need not
        return {}

    def applies(self, job: Job) -> bool:  # noqa: ARG002 -- the same
        """Whether it still says something new. False: the event is ignored, and counted."""
        return True


# ---- our decisions --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Intended(Event):
    """We are about to POST attempt n. On record *before* the bytes leave; `delay_s` is the wait for its outcome."""

    name: ClassVar[str] = "intended"
    attempt: int

    def applies(self, job: Job) -> bool:
        return self.attempt == job.attempt + 1

    def patch(self, job: Job) -> Patch:
        known = tuple(n for n in job.open if str(n) in job.tasks)
        return {
            "attempt": self.attempt,
            "intent_at": NOW,
            "open": (*known, self.attempt),
            "possible_duplicate": job.possible_duplicate or bool(job.open),
            "candidate": None,
            "hints": 0,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class InputsAway(Event):
    """Its input images cannot be read just now: it gives its slot back and comes again after `delay_s`."""

    name: ClassVar[str] = "inputs_away"


@dataclass(frozen=True, slots=True, kw_only=True)
class GaveUp(Event):
    """The outcome of the attempt stayed unknown for its whole wait, and it may not be posted again."""

    name: ClassVar[str] = "gave_up"

    def patch(self, job: Job) -> Patch:
        message = f"the provider never said whether it accepted attempt {job.attempt}"
        return _failure(ErrorCode.OUTCOME_UNKNOWN, message, retryable=True) | _closed(job)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadlinePassed(Event):
    """The caller's `deadline_s` is over."""

    name: ClassVar[str] = "deadline_passed"

    def applies(self, job: Job) -> bool:
        return not job.sealed

    def patch(self, job: Job) -> Patch:
        bought = "after it was bought" if job.bought else "before anything was bought"
        return _failure(ErrorCode.DEADLINE_EXCEEDED, f"the job's deadline passed {bought}", retryable=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedOut(Event):
    """`GENERATION_TIMEOUT_S` has passed since the provider accepted: nothing of it is waited for any longer."""

    name: ClassVar[str] = "timed_out"

    def patch(self, job: Job) -> Patch:
        message = "the provider did not end the task in time"
        return _failure(ErrorCode.DEADLINE_EXCEEDED, message, retryable=True) | _closed(job)


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelAsked(Event):
    """The caller wants it no more."""

    name: ClassVar[str] = "cancel_asked"

    def applies(self, job: Job) -> bool:
        return not job.sealed

    def patch(self, job: Job) -> Patch:  # noqa: ARG002 -- as the base says
        return {"finished_at": NOW}


@dataclass(frozen=True, slots=True, kw_only=True)
class Poisoned(Event):
    """A step of it has killed its process again and again, with no other job near it."""

    name: ClassVar[str] = "poisoned"

    def applies(self, job: Job) -> bool:
        return not job.sealed

    def patch(self, job: Job) -> Patch:  # noqa: ARG002 -- as the base says
        return _failure(ErrorCode.POISONED, self.detail, retryable=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class HintDropped(Event):
    """`get_result` does not know the id that a callback without proof named. `delay_s`: the rest of the wait."""

    name: ClassVar[str] = "hint_dropped"

    def patch(self, job: Job) -> Patch:  # noqa: ARG002 -- as the base says
        return {"candidate": None}


# ---- what the provider did with a submission ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _OfAttempt(Event):
    attempt: int

    def applies(self, job: Job) -> bool:
        return 1 <= self.attempt <= job.attempt


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskAccepted(_OfAttempt):
    """The provider has it. A fact in every state, ended ones included; `delay_s` is the time to the first poll."""

    name: ClassVar[str] = "accepted"
    provider_id: str
    cost: float | None = None

    def applies(self, job: Job) -> bool:
        return 1 <= self.attempt <= job.attempt and str(self.attempt) not in job.tasks

    def patch(self, job: Job) -> Patch:
        return adopt(job, self.attempt, self.provider_id, self.cost)


@dataclass(frozen=True, slots=True, kw_only=True)
class _OfOpenAttempt(_OfAttempt):
    """Of an attempt that may still be accepted. One that has a task on record was: who says otherwise is a gateway, not
    the provider, and what is known to be bought stays bought.
    """

    def applies(self, job: Job) -> bool:
        return self.attempt in job.open and str(self.attempt) not in job.tasks

    def patch(self, job: Job) -> Patch:
        return {"open": without(job.open, self.attempt)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused(_OfOpenAttempt):
    """Surely not accepted. `burns`: it counts against the job's attempts."""

    name: ClassVar[str] = "refused"
    burns: bool = True

    def patch(self, job: Job) -> Patch:
        return {"open": without(job.open, self.attempt), "refusals": job.refusals + self.burns}


@dataclass(frozen=True, slots=True, kw_only=True)
class Exhausted(_OfOpenAttempt):
    """Surely not accepted, and it was the last attempt."""

    name: ClassVar[str] = "exhausted"

    def patch(self, job: Job) -> Patch:
        message = f"not accepted after {job.refusals + 1} attempts: {self.detail}"
        failure = _failure(ErrorCode.PROVIDER_ERROR, message, retryable=True)
        return failure | {"open": without(job.open, self.attempt), "refusals": job.refusals + 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class Throttled(_OfOpenAttempt):
    """429: one too many outstanding. Burns nothing; the working cap shrinks."""

    name: ClassVar[str] = "throttled"


@dataclass(frozen=True, slots=True, kw_only=True)
class Held(_OfOpenAttempt):
    """401, 402, 403 or a redirect: the account is wrong, not the job. Burns nothing; submissions pause."""

    name: ClassVar[str] = "held"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected(_OfOpenAttempt):
    """The request itself is wrong."""

    name: ClassVar[str] = "rejected"

    def patch(self, job: Job) -> Patch:
        failure = _failure(ErrorCode.PROVIDER_REJECTED, self.detail, retryable=False)
        return failure | {"open": without(job.open, self.attempt)}


@dataclass(frozen=True, slots=True, kw_only=True)
class OutcomeUnknown(_OfOpenAttempt):
    """The bytes left and no answer says what became of them."""

    name: ClassVar[str] = "outcome_unknown"

    def patch(self, job: Job) -> Patch:  # noqa: ARG002 -- as the base says
        return {}


# ---- what the provider says of a task ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Polled(Event):
    """Not ended yet. `delay_s`: the gap to the next poll."""

    name: ClassVar[str] = "polled"

    def patch(self, job: Job) -> Patch:
        return {"polls": job.polls + 1, "polled_at": NOW, "candidate": None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready(_OfAttempt):
    """The image waits at a URL that expires. The first attempt that is ready is the one collected."""

    name: ClassVar[str] = "ready"
    provider_id: str
    url: str
    expires_at: int | None = None
    seed: int | None = None
    cost: float | None = None
    found_by: FoundBy = FoundBy.WEBHOOK

    def patch(self, job: Job) -> Patch:
        return adopt(job, self.attempt, self.provider_id, self.cost) | {
            "open": without(job.open, self.attempt),
            "ready_at": NOW,
            "provider_id": self.provider_id,
            "found_by": self.found_by,
            "result_url": self.url,
            "result_expires_at": self.expires_at,
            "result_seed": self.seed,
            "candidate": None,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Moderated(_OfAttempt):
    """The provider will not show what it made, or not make it."""

    name: ClassVar[str] = "moderated"

    def patch(self, job: Job) -> Patch:
        message = self.detail or "moderated by the provider"
        return _failure(ErrorCode.MODERATED, message, retryable=False) | {"open": without(job.open, self.attempt)}


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFailed(_OfAttempt):
    """The provider ended the task badly. Another attempt that is still open may yet end well, and is waited for: then
    that this one failed says nothing new.
    """

    name: ClassVar[str] = "task_failed"

    def applies(self, job: Job) -> bool:
        return 1 <= self.attempt <= job.attempt and (not job.open or self.attempt in job.open)

    def patch(self, job: Job) -> Patch:
        message = self.detail or "the provider failed to make the image"
        return _failure(ErrorCode.PROVIDER_ERROR, message, retryable=True) | {"open": without(job.open, self.attempt)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Hinted(Event):
    """A callback without right proof: nothing in it is believed, but a look at `get_result` is worth it.

    While an outcome is not known that look is for the task that it names (`candidate`), and for the attempt whose
    address it came to; else it is the job's next poll.
    At most `MOST` hints of one attempt bring a poll forward, so that a replay cannot make us poll for ever.
    """

    name: ClassVar[str] = "hinted"
    MOST: ClassVar[int] = 5
    attempt: int = 0
    candidate: str | None = None

    def applies(self, job: Job) -> bool:
        if job.status is Status.SUBMITTING and (self.candidate is None or str(self.attempt) in job.tasks):
            return False
        return job.hints < self.MOST

    def patch(self, job: Job) -> Patch:
        patch: Patch = {"hints": job.hints + 1}
        if job.status is Status.SUBMITTING:
            patch |= {"candidate": self.candidate, "candidate_of": self.attempt}
        return patch


@dataclass(frozen=True, slots=True, kw_only=True)
class Disproved(Event):
    """A callback with a *wrong* proof: nothing in it is used, and the next poll comes forward, once."""

    name: ClassVar[str] = "disproved"

    def applies(self, job: Job) -> bool:
        return bool(job.tasks) and job.hints == 0

    def patch(self, job: Job) -> Patch:
        return {"hints": job.hints + 1}


# ---- what became of the image ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class PullFailed(Event):
    """It could not be pulled or stored this time. `counts`: against the limit of broken pulls.

    `serves`: the URL gives the image, and it is we or the store who cannot take it; False: it does not. None: unknown.
    """

    name: ClassVar[str] = "pull_failed"
    counts: bool = True
    serves: bool | None = None

    def applies(self, job: Job) -> bool:
        return not job.sealed

    def patch(self, job: Job) -> Patch:
        patch: Patch = {"pulls": job.pulls + self.counts}
        return patch if self.serves is None else patch | ({"asked_at": None} if self.serves else _asked(job))


@dataclass(frozen=True, slots=True, kw_only=True)
class Spooled(Event):
    """The bucket cannot be reached: the bytes wait, fsynced, in this spool. Put again after `delay_s`, from there."""

    name: ClassVar[str] = "spooled"
    spool: str

    def applies(self, job: Job) -> bool:
        return not job.sealed

    def patch(self, job: Job) -> Patch:  # noqa: ARG002 -- as the base says
        return {"spool": self.spool, "asked_at": None}


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreFailed(Event):
    """The bucket could not be reached for the sidecar. Due again after `delay_s`."""

    name: ClassVar[str] = "store_failed"

    def applies(self, job: Job) -> bool:
        return not job.sidecar and (job.ended or job.sealed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Refreshed(Event):
    """The provider was asked again and gave a fresh URL: the bytes that a spool had are not counted on any more."""

    name: ClassVar[str] = "refreshed"
    url: str
    expires_at: int | None = None

    def applies(self, job: Job) -> bool:
        return not job.sealed

    def patch(self, job: Job) -> Patch:
        return {"result_url": self.url, "result_expires_at": self.expires_at, "spool": None} | _asked(job)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost(Event):
    """There is no image to be had any more: why, says `code`."""

    name: ClassVar[str] = "lost"
    code: ErrorCode

    def applies(self, job: Job) -> bool:
        return not job.sealed

    def patch(self, job: Job) -> Patch:  # noqa: ARG002 -- as the base says
        return _failure(self.code, self.detail, retryable=self.code is not ErrorCode.STORAGE_CONFLICT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sealed(Event):
    """The image is in the bucket; its facts go on record. From here the job can only succeed."""

    name: ClassVar[str] = "sealed"
    image: Image

    def applies(self, job: Job) -> bool:
        return not job.sealed

    def patch(self, job: Job) -> Patch:  # noqa: ARG002 -- as the base says
        return {"image": self.image, "finished_at": NOW, "result_url": None, "spool": None}


@dataclass(frozen=True, slots=True, kw_only=True)
class SidecarWritten(Event):
    """The bucket has the lasting record of the ended job."""

    name: ClassVar[str] = "sidecar_written"

    def applies(self, job: Job) -> bool:
        return not job.sidecar and (job.ended or job.sealed)

    def patch(self, job: Job) -> Patch:  # noqa: ARG002 -- as the base says
        return {"sidecar": True, "scrub": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class StillOpen(Event):
    """An ended job's task is not known to be done; asked again after `delay_s`."""

    name: ClassVar[str] = "still_open"

    def applies(self, job: Job) -> bool:
        return bool(job.open) and job.sidecar


def adopt(job: Job, attempt: int, provider_id: str, cost: float | None) -> Patch:
    """The provider's task of an attempt goes on record; the attempt is open unless it had ended before."""
    n = str(attempt)
    patch: Patch = {}
    if n not in job.tasks:
        patch["tasks"] = {**job.tasks, n: provider_id}
        patch["open"] = tuple(sorted({*job.open, attempt}))
        patch["submitted_at"] = NOW if job.submitted_at is None else job.submitted_at
    if job.provider_id is None:
        patch["provider_id"] = provider_id
    if cost is not None and n not in job.costs:
        patch["costs"] = {**job.costs, n: cost}
    return patch


def _closed(job: Job) -> Patch:
    """No attempt is waited for any longer, whether or not the provider ever said that it had accepted it."""
    return {"open": (), "untold": job.untold or any(str(n) not in job.tasks for n in job.open)}


def _asked(job: Job) -> Patch:
    """A URL that gives the image is asked for, from now on or since an earlier look."""
    return {} if job.asked_at else {"asked_at": NOW}


def without(attempts: tuple[int, ...], attempt: int) -> tuple[int, ...]:
    return tuple(n for n in attempts if n != attempt)


def _failure(code: ErrorCode, message: str, *, retryable: bool) -> Patch:
    return {"error": JobError(code, message, retryable), "finished_at": NOW, "result_url": None}
