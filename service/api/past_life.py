"""A job's life so far, as its log tells it, and what it waits for now.

    {"events": [{"at", "status", "from", "reason", "by", "detail"}, …],
     "next": {"at", "what", "paused", "suspect": {"crashes"} | null} | null}

`reason` is the name of an event (`service.domain.events`), or `created`, or `corrupt`; `by` is the process that wrote
it. The newest 200 are kept, as long as the record is; of a job told from the bucket alone there are none.
`next.at` is when it is looked at again at the latest: a callback, a free slot or its own step may come before.
A `suspect` was in flight when a worker process died, so it runs apart; `crashes` counts those of it alone.
"""

from collections.abc import Mapping
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from service.api.auth import owned, promptly
from service.api.past import Past
from service.domain.instants import rfc3339
from service.domain.job import Job, Status
from service.domain.redaction import clean
from service.storage.store import Store
from service.storage.terms import Entry

WHAT: Final[Mapping[Status, str]] = {
    Status.QUEUED: "submit",
    Status.SUBMITTING: "outcome",
    Status.GENERATING: "poll",
    Status.COLLECTING: "collect",
}
STEPS: Final = ("submit", "outcome", "poll", "collect", "sidecar", "settle")


class PastLife:
    def __init__(self, store: Store, past: Past) -> None:
        self._store = store
        self._past = past

    async def show(self, request: Request, caller: str) -> Response:
        job_id = request.path_params["job_id"]
        job = await promptly(self._store.get(job_id))
        if job is None:
            await self._past.look(job_id, caller)
            return JSONResponse({"events": [], "next": None})
        owned(job, caller)
        entries = await promptly(self._store.log(job_id))
        return JSONResponse({"events": [_moment(entry) for entry in entries], "next": await self._next(job)})

    async def _next(self, job: Job) -> dict[str, Any] | None:
        due_at = await promptly(self._store.due_at(job.id))
        if due_at is None:
            return None
        paused = sorted((await promptly(self._store.figures())).closed) if job.status is Status.QUEUED else []
        crashes = await promptly(self._store.suspicion(job.id))
        suspect = None if crashes is None else {"crashes": crashes}
        return {"at": rfc3339(due_at), "what": step(job), "paused": paused, "suspect": suspect}


def step(job: Job) -> str:
    """What a job that is due is looked at for: one of STEPS."""
    return WHAT.get(job.status, "settle" if job.sidecar else "sidecar")


def _moment(entry: Entry) -> dict[str, Any]:
    data = entry.data
    return {
        "at": rfc3339(int(data["at"])),
        "status": data["status"],
        "from": data.get("from"),
        "reason": data.get("reason"),
        "by": data.get("by"),
        "detail": clean(data["detail"]) if "detail" in data else None,
    }
