"""The retry of a job is a new job: where it begins follows from what the old one has bought.

It takes over what the provider may still give and buys only where nothing was bought, or where the caller says so.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from service.domain.errors import ErrorCode, JobError
from service.domain.job import Job, Status

# The provider has ended these without an image and, as far as is known, without a price.
UNBOUGHT: Final = frozenset({ErrorCode.PROVIDER_REJECTED, ErrorCode.MODERATED, ErrorCode.PROVIDER_ERROR})
RETRYABLE: Final = frozenset({Status.FAILED, Status.CANCELLED})

_LOST: Final = {
    ErrorCode.RESULT_EXPIRED: "what was bought can no longer be fetched; rerun=true buys again",
    ErrorCode.OUTCOME_UNKNOWN: "the provider never said whether it took the task; rerun=true risks a second purchase",
}


def successor(old: Job, job_id: str, *, rerun: bool = False) -> Job | None:
    """The job that retries `old`, or None: it is not to be retried. `rerun`: buy again what no longer serves.

    It begins `queued` (to be submitted), `generating` (the provider is asked for the old job's task) or `failed`
    (nothing serves, nothing is bought). The caller's deadline does not pass on.
    """
    if old.status not in RETRYABLE or old.sealed:
        return None
    fresh = Job(
        id=job_id,
        caller=old.caller,
        model=old.model,
        request=old.request,
        priority=old.priority,
        metadata=old.metadata,
        callback_url=old.callback_url,
        hook=old.hook,
        custom_id=old.custom_id,
        retry_of=old.id,
    )
    code = old.error.code if old.error else None
    running = any(str(attempt) in old.tasks for attempt in old.open)
    if code is ErrorCode.RESULT_EXPIRED:
        return fresh if rerun else _lost(fresh, code)
    if old.tasks and (running or code not in UNBOUGHT):
        return _asking(fresh, old)
    # Giving up closes the attempts, so that the record shows no purchase: the code alone tells that there may be one.
    nothing_bought = code in UNBOUGHT or (not old.bought and code is not ErrorCode.OUTCOME_UNKNOWN)
    if rerun or (nothing_bought and not _unsure(old)):
        return fresh
    return _lost(fresh, ErrorCode.OUTCOME_UNKNOWN)


def _unsure(old: Job) -> bool:
    """Whether an attempt may have been bought of which no task is known: however another one has ended."""
    first_unknown = old.possible_duplicate and len(old.tasks) < 2
    return first_unknown or old.untold or _unheard(old)


def _unheard(job: Job) -> bool:
    """Whether a POST of it may still be accepted."""
    return any(str(attempt) not in job.tasks for attempt in job.open)


def enlightened(old: Job, ancestors: Sequence[Job]) -> Job:
    """`old`, which began lost, with the tasks that the jobs before it (nearest first) have come to know since.

    What none of them knows stays as unsure as it was: it is neither bought again nor forgotten.
    """
    tasks: dict[str, str] = {}
    costs: dict[str, float] = {}
    still_open: set[int] = set()
    for each in ancestors:
        more = {n: task for n, task in each.tasks.items() if n not in tasks}
        tasks |= more
        costs |= {n: cost for n, cost in each.costs.items() if n in more}
        still_open |= {attempt for attempt in each.open if str(attempt) in more}
    if not tasks:
        return old
    nearest = next(each for each in ancestors if each.tasks)
    return replace(
        old,
        attempt=max(map(int, tasks)),
        tasks=tasks,
        costs=costs,
        open=tuple(sorted(still_open)),
        possible_duplicate=any(each.possible_duplicate for each in ancestors),
        untold=any(each.untold or _unheard(each) for each in ancestors),
        intent_at=nearest.intent_at,
        submitted_at=nearest.submitted_at,
    )


def _asking(fresh: Job, old: Job) -> Job:
    """Its first poll finds the image again, or what has become of the task. A POST whose outcome is not known yet stays
    the old job's: this one would not know what to ask for.
    """
    return replace(
        fresh,
        status=Status.GENERATING,
        attempt=old.attempt,
        tasks=old.tasks,
        costs=old.costs,
        open=tuple(attempt for attempt in old.open if str(attempt) in old.tasks),
        intent_at=old.intent_at,
        submitted_at=old.submitted_at,
        possible_duplicate=old.possible_duplicate,
        untold=old.untold or _unheard(old),
        provider_id=old.task,
    )


def _lost(fresh: Job, code: ErrorCode) -> Job:
    return replace(fresh, status=Status.FAILED, reason="lost", error=JobError(code, _LOST[code], retryable=True))
