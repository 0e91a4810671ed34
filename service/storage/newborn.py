"""What the script is told of a job that begins: arguments of its write, and the fields of its record."""

from collections.abc import Collection
from typing import Any

from service.domain.job import Job, Queue, Status
from service.storage import record


def queue_of(job: Job) -> Queue:
    """Whose step is the job's first."""
    return Queue.SUBMIT if job.status is Status.QUEUED else Queue.COLLECT


def newborn(job: Job, capped: Collection[str], deadline_s: float | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """`capped`: models with an in-flight cap of their own; `deadline_s` counts from acceptance."""
    group = job.model if job.model in capped else ""
    arguments = {
        "id": job.id,
        "caller": job.caller,
        "batch": job.batch_id or "",
        "group": group,
        "priority": job.priority,
        "event": "created",
        "to": job.status,
        "stamps": [name for name in ("created_at", "finished_at") if name == "created_at" or job.ended],
        "deadline_ms": None if deadline_s is None else round(deadline_s * 1000),
        "deadline_counts": not job.ended,
        "tasks": list(job.tasks.values()),
        "holds_slot": bool(job.open),
        "expires_at": job.result_expires_at or 0 if job.status is Status.COLLECTING else None,
    }
    return arguments, record.fresh(job) | {"group": group, "queue": queue_of(job)}
