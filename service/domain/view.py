"""The job as callers, consumers of the bucket and notifications see it (the contract's job)."""

from typing import Any

from service.domain.instants import rfc3339
from service.domain.job import Job, Status


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
        "provider_id": job.provider_id,
        "attempts": job.attempt,
        "possible_duplicate": job.possible_duplicate,
        "found_by": job.found_by,
        "cost": round(sum(job.costs.values()), 6) if job.costs else None,
        "image": job.image.to_dict() if job.image else None,
        "error": job.error.to_dict() if job.error else None,
    }


def _instant(at_ms: int | None) -> str | None:
    return None if at_ms is None else rfc3339(at_ms)
