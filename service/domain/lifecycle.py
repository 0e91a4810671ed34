"""The table: what each event does to a job in each state. Nothing else in the code compares states to decide.

    queued → submitting → generating → collecting → succeeded | failed | cancelled

`decide` is pure. It answers a `Change` for the store's one guarded write, or None for an event that has no row here
or says nothing new: such an event is ignored, and counted. Two rules hold beside the table, for every row:

- the slot (the provider's in-flight allowance) is held exactly while an attempt is open;
- whatever has work left is due at some time: an ended job until its sidecar is written and no attempt is open.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum, StrEnum
from typing import Any, Final

from service.domain import events as e
from service.domain.job import ENDED, Job, Queue, Status

S = Status


class Due(Enum):
    """When the job must be looked at next."""

    NOW = "now"
    LATER = "later"  # after the event's `delay_s`
    KEEP = "keep"  # as it was: the lease of the step that runs, or the wait that goes on
    REST = "rest"  # ended: at once while the sidecar is missing, later while an attempt is open, else never


@dataclass(frozen=True, slots=True)
class Row:
    """One arrow. `ring`: the bell goes out with the write, not only when the job comes due.

    `while_open`: where the job stays instead, as long as another attempt of it may yet end well.
    """

    to: Status
    due: Due
    ring: bool = False
    while_open: Status | None = None


class Signal(StrEnum):
    """What an event says of the account at the provider: the gate before all submissions listens to it."""

    OK = "ok"  # it takes work: an open gate, and a working cap that grows back
    THROTTLED = "throttled"  # one too many: the working cap shrinks
    HELD = "held"  # key, credits or address are wrong: one submission in 30 s tries whether it is mended
    REFUSED = "refused"  # not reachable: after some in a row the gate closes, too


SIGNALS: Final[Mapping[type[e.Event], Signal]] = {
    e.TaskAccepted: Signal.OK,
    e.Rejected: Signal.OK,
    e.Throttled: Signal.THROTTLED,
    e.Held: Signal.HELD,
    e.Refused: Signal.REFUSED,
    e.Exhausted: Signal.REFUSED,
}


class KeepDue(Enum):
    """The due time stays as it is: a lease that runs, or a wait that goes on."""

    KEEP = "keep"


KEEP: Final = KeepDue.KEEP


@dataclass(frozen=True, slots=True)
class Change:
    """What the guarded write puts on record, if the version still stands."""

    job: Job
    event: str
    detail: str
    to: Status
    patch: Mapping[str, Any]
    due_s: float | KeepDue | None  # from now, by Redis's clock; None: nothing is left to do
    holds_slot: bool
    queue: Queue
    ring: bool
    ripe: bool  # an image is not in the bucket yet: it waits at a URL that expires, or in `spool`
    spool: str | None
    deadline_counts: bool  # the caller's deadline may still end it
    signal: Signal | None
    signal_s: float  # with it: how long submissions pause (429's Retry-After)
    provider_id: str | None  # a provider task that this job now owns; refused if another job does


Table = Mapping[tuple[Status, type[e.Event]], Row]

_CLOSE: Final = Row(S.FAILED, Due.REST, ring=True)
_CLOSE_UNLESS_OPEN: Final = replace(_CLOSE, while_open=S.GENERATING)
_REQUEUE: Final = Row(S.QUEUED, Due.LATER, while_open=S.GENERATING)

TABLE: Final[Table] = {
    (S.QUEUED, e.Intended): Row(S.SUBMITTING, Due.LATER),
    (S.QUEUED, e.InputsAway): Row(S.QUEUED, Due.LATER),
    (S.QUEUED, e.Lost): _CLOSE,
    (S.QUEUED, e.DeadlinePassed): _CLOSE,
    (S.QUEUED, e.CancelAsked): Row(S.CANCELLED, Due.REST, ring=True),
    # An attempt that was given up as unknown speaks after all, while a further one waits for its turn.
    (S.QUEUED, e.TaskAccepted): Row(S.GENERATING, Due.LATER),
    (S.QUEUED, e.Ready): Row(S.COLLECTING, Due.NOW, ring=True),
    (S.QUEUED, e.Moderated): _CLOSE,
    (S.QUEUED, e.Poisoned): _CLOSE,
    (S.SUBMITTING, e.TaskAccepted): Row(S.GENERATING, Due.LATER),
    (S.SUBMITTING, e.Refused): _REQUEUE,
    (S.SUBMITTING, e.Throttled): _REQUEUE,
    (S.SUBMITTING, e.Held): _REQUEUE,
    (S.SUBMITTING, e.Exhausted): _CLOSE,
    (S.SUBMITTING, e.Rejected): _CLOSE,
    (S.SUBMITTING, e.Moderated): _CLOSE,
    (S.SUBMITTING, e.TaskFailed): replace(_CLOSE, while_open=S.SUBMITTING),
    (S.SUBMITTING, e.OutcomeUnknown): Row(S.SUBMITTING, Due.KEEP),
    (S.SUBMITTING, e.Intended): Row(S.SUBMITTING, Due.LATER),
    (S.SUBMITTING, e.GaveUp): _CLOSE,
    (S.SUBMITTING, e.Ready): Row(S.COLLECTING, Due.NOW, ring=True),
    (S.SUBMITTING, e.Hinted): Row(S.SUBMITTING, Due.NOW, ring=True),
    (S.SUBMITTING, e.HintDropped): Row(S.SUBMITTING, Due.LATER),
    (S.SUBMITTING, e.DeadlinePassed): _CLOSE,
    (S.SUBMITTING, e.Poisoned): _CLOSE,
    (S.SUBMITTING, e.CancelAsked): Row(S.CANCELLED, Due.REST, ring=True),
    (S.GENERATING, e.TaskAccepted): Row(S.GENERATING, Due.KEEP),
    (S.GENERATING, e.Refused): _REQUEUE,
    (S.GENERATING, e.Throttled): _REQUEUE,
    (S.GENERATING, e.Held): _REQUEUE,
    (S.GENERATING, e.Exhausted): _CLOSE_UNLESS_OPEN,
    (S.GENERATING, e.Rejected): _CLOSE_UNLESS_OPEN,
    (S.GENERATING, e.Polled): Row(S.GENERATING, Due.LATER),
    (S.GENERATING, e.Hinted): Row(S.GENERATING, Due.NOW, ring=True),
    (S.GENERATING, e.Disproved): Row(S.GENERATING, Due.NOW, ring=True),
    (S.GENERATING, e.Ready): Row(S.COLLECTING, Due.NOW, ring=True),
    (S.GENERATING, e.Moderated): _CLOSE,
    (S.GENERATING, e.TaskFailed): _CLOSE_UNLESS_OPEN,
    (S.GENERATING, e.TimedOut): _CLOSE,
    (S.GENERATING, e.Lost): _CLOSE,
    (S.GENERATING, e.DeadlinePassed): _CLOSE,
    (S.GENERATING, e.Poisoned): _CLOSE,
    (S.GENERATING, e.CancelAsked): Row(S.CANCELLED, Due.REST, ring=True),
    (S.COLLECTING, e.PullFailed): Row(S.COLLECTING, Due.LATER),
    (S.COLLECTING, e.Spooled): Row(S.COLLECTING, Due.LATER),
    (S.COLLECTING, e.StoreFailed): Row(S.COLLECTING, Due.LATER),
    (S.COLLECTING, e.Refreshed): Row(S.COLLECTING, Due.LATER),
    (S.COLLECTING, e.Sealed): Row(S.COLLECTING, Due.KEEP),
    (S.COLLECTING, e.SidecarWritten): Row(S.SUCCEEDED, Due.REST),
    (S.COLLECTING, e.Lost): _CLOSE,
    (S.COLLECTING, e.Poisoned): _CLOSE,
    # The step that pulls may still put: the object is scrubbed after its lease, so the due time stays.
    (S.COLLECTING, e.CancelAsked): Row(S.CANCELLED, Due.KEEP),
    (S.COLLECTING, e.DeadlinePassed): Row(S.FAILED, Due.KEEP),
    **{(ended, e.SidecarWritten): Row(ended, Due.REST) for ended in (S.FAILED, S.CANCELLED)},
    **{(ended, e.StoreFailed): Row(ended, Due.LATER) for ended in (S.FAILED, S.CANCELLED)},
    **{(ended, e.StillOpen): Row(ended, Due.LATER) for ended in sorted(ENDED)},
}

# What is learnt of an attempt once the job's own way is decided: its purchase and its slot, nothing else.
_SETTLED_BY: Final = (e.TaskAccepted, e.Refused, e.Throttled, e.Held, e.Exhausted, e.Rejected, e.Ready, e.Moderated,
                      e.TaskFailed, e.TimedOut)  # fmt: skip
SETTLING: Final[Table] = {
    (state, event): Row(state, Due.KEEP if state is S.COLLECTING else Due.REST)
    for state in (S.COLLECTING, *sorted(ENDED))
    for event in _SETTLED_BY
}
_PURCHASE: Final = frozenset({"open", "untold", "tasks", "costs", "submitted_at"})
_OUTCOME: Final = frozenset({"error", "finished_at", "result_url"})

SETTLE_GAP_S: Final = 15.0  # between looks at an ended job's task that is not known to be done


def decide(job: Job, event: e.Event) -> Change | None:
    """What the event does to this job, or None where it changes nothing."""
    key = (job.status, type(event))
    row = TABLE.get(key) or SETTLING.get(key)
    if row is None or not event.applies(job):
        return None
    patch = event.patch(job)
    if key in SETTLING:
        patch = {name: value for name, value in patch.items() if name in _PURCHASE and value != getattr(job, name)}
        if not patch:
            return None
    still_open = bool(patch.get("open", job.open))
    if row.while_open is not None and still_open:
        row = Row(row.while_open, Due.KEEP)
        patch = {name: value for name, value in patch.items() if name not in _OUTCOME}
    if job.status is S.COLLECTING and row.to in (S.FAILED, S.CANCELLED):
        patch["scrub"] = True
    due_s = _due_s(job, event, row, patch)
    return Change(
        job=job,
        event=event.name,
        detail=event.detail,
        to=row.to,
        patch=patch,
        due_s=due_s,
        holds_slot=still_open,
        queue=_queue(row.to, patch.get("candidate", job.candidate)),
        ring=row.ring and due_s == 0,
        ripe=row.to is S.COLLECTING and patch.get("image", job.image) is None,
        spool=patch.get("spool", job.spool),
        deadline_counts=row.to not in ENDED and patch.get("image", job.image) is None,
        signal=SIGNALS.get(type(event)),
        signal_s=event.delay_s,
        provider_id=_owned(job, patch),
    )


def _due_s(job: Job, event: e.Event, row: Row, patch: e.Patch) -> float | KeepDue | None:
    match row.due:
        case Due.KEEP:
            return KEEP
        case Due.NOW:
            return 0
        case Due.LATER:
            return event.delay_s
        case Due.REST if not patch.get("sidecar", job.sidecar):
            # A step that pulls may still put until its lease ends, and a step that closes is at it: leave the time.
            return KEEP if job.ended or job.status is S.COLLECTING else 0
        case Due.REST:
            return (event.delay_s or SETTLE_GAP_S) if patch.get("open", job.open) else None


def _queue(to: Status, candidate: str | None) -> Queue:
    """Who looks at it next: what is not accepted is the submitter's, unless a hint must be looked up."""
    unsent = to is S.QUEUED or (to is S.SUBMITTING and candidate is None)
    return Queue.SUBMIT if unsent else Queue.COLLECT


def _owned(job: Job, patch: e.Patch) -> str | None:
    fresh = set(patch.get("tasks", {}).values()) - set(job.tasks.values())
    return next(iter(fresh), None)
