"""The job as callers, consumers of the bucket and notifications see it (the contract's job)."""

from collections.abc import Mapping
from typing import Any

from service.domain.errors import JobError
from service.domain.instants import epoch_ms, rfc3339
from service.domain.job import ENDED, FoundBy, Image, Job, Priority, Status
from service.domain.successor import UNBOUGHT


def view(job: Job, *, status: Status | None = None) -> dict[str, Any]:
    """`status` overrides the record's: a sidecar is written when the job is sealed, a moment before it succeeded."""
    return {
        "id": job.id,
        "status": status or job.status,
        "model": job.model,
        "request": dict(job.request),
        "priority": job.priority,
        "caller": job.caller,
        "batch_id": job.batch_id,
        "custom_id": job.custom_id,
        "metadata": dict(job.metadata),
        "callback_url": job.callback_url,
        "retry_of": job.retry_of,
        "created_at": _instant(job.created_at),
        "submitted_at": _instant(job.submitted_at),
        "ready_at": _instant(job.ready_at),
        "finished_at": _instant(job.finished_at),
        "provider_id": job.task,
        "attempts": job.attempt,
        "possible_duplicate": job.possible_duplicate,
        "unsettled": not job.sealed and (bool(job.open) or job.untold),
        "found_by": job.found_by,
        "cost": round(sum(job.costs.values()), 6) if job.costs else None,
        "image": job.image.to_dict() if job.image else None,
        "error": job.error.to_dict() if job.error else None,
    }


def unview(told: Mapping[str, Any]) -> Job:
    """The ended job that such a view, or a sidecar, tells of. KeyError, TypeError or ValueError: it tells of none.

    What a view leaves out of the record (polls, times between) is gone; the task is put down as the last attempt's. Of
    an attempt that was unsettled then nobody waits to hear any more: it counts as one that may have been bought.
    """
    status = Status(told["status"])
    if status not in ENDED:
        raise ValueError("the job has not ended")
    attempt = str(told["attempts"])
    task, cost = told["provider_id"], told.get("cost")
    error = JobError.from_dict(told["error"]) if told["error"] else None
    return Job(
        id=str(told["id"]),
        caller=str(told["caller"]),
        model=str(told["model"]),
        request=dict(told["request"]),
        priority=Priority(told["priority"]),
        metadata=dict(told["metadata"]),
        callback_url=told.get("callback_url"),
        batch_id=told["batch_id"],
        custom_id=told["custom_id"],
        retry_of=told["retry_of"],
        status=status,
        reason="rebuilt",
        created_at=epoch_ms(told["created_at"]),
        submitted_at=_epoch(told["submitted_at"]),
        ready_at=_epoch(told["ready_at"]),
        finished_at=_epoch(told["finished_at"]),
        attempt=int(told["attempts"]),
        possible_duplicate=bool(told["possible_duplicate"]),
        untold=bool(told["unsettled"]) if "unsettled" in told else _unsaid(int(attempt), task, error),
        tasks={attempt: str(task)} if task else {},
        costs={attempt: float(cost)} if cost is not None else {},
        provider_id=task,
        found_by=FoundBy(told["found_by"]) if told["found_by"] else None,
        image=Image.from_dict(told["image"]) if told["image"] else None,
        error=error,
        sidecar=True,
    )


def _unsaid(attempts: int, task: str | None, error: JobError | None) -> bool:
    """Whether an old sidecar, which does not say what was unsettled, leaves room for a purchase nobody knows of."""
    return attempts > 0 and not task and (error is None or error.code not in UNBOUGHT)


def _epoch(text: str | None) -> int | None:
    return None if text is None else epoch_ms(text)


def _instant(at_ms: int | None) -> str | None:
    return None if at_ms is None else rfc3339(at_ms)
