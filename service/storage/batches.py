"""Batches on record: staged line by line, sealed in one write, then unfolded into jobs by due work.

    open → stage, stage, … → enroll        (a crash before that leaves what `discard` clears away)
    attend → unfold, unfold, … → rest → count_up → mark

Killed at any point: until `enroll` there is no batch, and the upload's lease runs out; from then on it is due.
"""

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Final, Protocol

from service.domain.batch import Batch, BatchStatus
from service.domain.job import Job, Status
from service.storage import record
from service.storage.newborn import newborn
from service.storage.notices import QUEUE, wanted
from service.storage.terms import Bell

UPLOAD_LEASE_S: Final = 15.0


class Run(Protocol):
    """A verb of the script, with its arguments and what follows them."""

    def __call__(
        self, verb: str, arguments: Mapping[str, Any], *, confirm: bool = False, words: Sequence[str] = ()
    ) -> Awaitable[list[Any]]: ...


class Began(StrEnum):
    """What became of the wish to upload a batch."""

    OPENED = "opened"
    KNOWN = "known"  # the key is on record: `batch_id` (or a job's id) and `hash` tell of which request
    BUSY = "busy"  # the same key is being uploaded


@dataclass(frozen=True, slots=True)
class Beginning:
    began: Began
    known_id: str = ""
    hash: str = ""
    busy_s: float = 0.0


class Enrolled(StrEnum):
    """What became of the seal."""

    ENROLLED = "enrolled"
    ALREADY = "already"
    FULL = "full"
    GONE = "gone"  # the upload's lease had run out
    RETRIED = "retried"  # the batch has a retry already


@dataclass(frozen=True, slots=True)
class Line:
    """A line of an upload: its job, as it will be made. `staged`: it has images in the bucket."""

    job: Job
    deadline_s: float | None = None
    staged: bool = False


class Batches:
    """`capped`: models with an in-flight cap of their own. Every method raises RedisError."""

    def __init__(self, run: Run, capped: Mapping[str, int], bells: Callable[[Sequence[str]], tuple[Bell, ...]]) -> None:
        self._run = run
        self._capped = capped
        self._bells = bells

    # ---- upload ----------------------------------------------------------------------------------------------------

    async def open(self, batch_id: str, caller: str, key: str | None) -> Beginning:
        """`key`: the digest of the caller's Idempotency-Key."""
        reply = await self._run("open_batch", _upload(batch_id, caller, key))
        match reply[0]:
            case "known":
                return Beginning(Began.KNOWN, known_id=reply[3], hash=reply[4])
            case "busy":
                return Beginning(Began.BUSY, busy_s=int(reply[3]) / 1000)
        return Beginning(Began.OPENED)

    async def stage(self, batch_id: str, caller: str, key: str | None, lines: Sequence[Line]) -> bool:
        """Keep these lines, and the upload's lease; False: it has run out, and what was staged is cleared away."""
        told = _upload(batch_id, caller, key) | {"inputs": [line.job.id for line in lines if line.staged]}
        texts = [self._text(replace(line.job, batch_id=batch_id), line.deadline_s) for line in lines]
        return bool((await self._run("stage", told, words=texts))[0] == "staged")

    async def stage_retries(self, batch_id: str, caller: str, job_ids: Sequence[str]) -> bool:
        """The same for jobs that are to be retried."""
        told = _upload(batch_id, caller, None) | {"inputs": []}
        return bool((await self._run("stage", told, words=job_ids))[0] == "staged")

    async def enroll(self, batch: Batch) -> tuple[Enrolled, str]:
        """From now on there is a batch: the one whose id is returned. Raises Unconfirmed as `Store.create` does."""
        told = _upload(batch.id, batch.caller, batch.key) | {
            "total": batch.total,
            "hash": batch.hash or "-",
            "body": record.compact({"metadata": batch.metadata, "callback_url": batch.callback_url}),
            "retry_of": batch.retry_of,
        }
        reply = await self._run("enroll", told, confirm=True)
        return Enrolled(reply[0]), reply[3] if len(reply) > 3 else batch.id

    async def discard(self, batch_id: str) -> bool:
        """Forget an upload that is not whole; False: first its inputs must go from the bucket, which is due now."""
        return bool((await self._run("discard", {"id": batch_id}))[0] != "clearing")

    async def cleared(self, batch_id: str, job_ids: Sequence[str], lease_s: float) -> None:
        """These jobs of such an upload have no inputs any more; nobody else looks at it for so long."""
        await self._run("cleared", {"id": batch_id, "lease_ms": round(lease_s * 1000)}, words=job_ids)

    async def inputs(self, batch_id: str, most: int) -> list[str]:
        """Jobs of an upload whose images are in the bucket."""
        return list((await self._run("staged_inputs", {"id": batch_id, "most": most}))[3])

    def _text(self, job: Job, deadline_s: float | None) -> str:
        arguments, fields = newborn(job, self._capped, deadline_s)
        told = {name: value for name, value in arguments.items() if value is not None}
        return record.compact({"arguments": told, "fields": list(record.write(fields))})

    # ---- life ------------------------------------------------------------------------------------------------------

    async def get(self, batch_id: str) -> Batch | None:
        """The batch, also while it is staged; None: there is none (any more)."""
        reply = await self._run("look", {"id": batch_id})
        if reply[0] == "none":
            return None
        return _read(_pairs(reply[3]), int(reply[1]), rest=int(reply[4]), closed=int(reply[5]), counts=reply[6])

    async def attend(self, batch_id: str, lease_s: float) -> bool:
        """A lease on a batch that is due; False: there is nothing to do."""
        reply = await self._run("attend", {"id": batch_id, "lease_ms": round(lease_s * 1000)})
        return bool(reply[0] == "attended")

    async def rest(self, batch_id: str, seconds: float | None = None) -> None:
        """It is due when its last job is closed, or after so long."""
        told = {"id": batch_id} | ({} if seconds is None else {"due_ms": round(seconds * 1000)})
        await self._run("rest", told)

    async def unfold(self, batch_id: str, most: int) -> tuple[int, tuple[Bell, ...]]:
        """Make jobs of the next lines; how many lines are left."""
        reply = await self._run("unfold", {"id": batch_id, "most": most})
        return (int(reply[4]) if reply[0] == "unfolded" else 0), self._bells(reply[2])

    async def peek(self, batch_id: str, most: int) -> tuple[int, list[str]]:
        """The number of the next line, and the jobs that it and those behind it retry."""
        reply = await self._run("peek", {"id": batch_id, "most": most})
        return int(reply[3]), list(reply[4])

    async def drop(self, batch_id: str, job_ids: Sequence[str]) -> None:
        """These lines of a batch that retries become no job."""
        await self._run("drop_lines", {"id": batch_id}, words=job_ids)

    async def pass_over(self, batch_id: str, job_ids: Sequence[str]) -> None:
        """These lines of a batch that retries are jobs of it already."""
        await self._run("pass_lines", {"id": batch_id}, words=job_ids)

    async def cancel(self, batch_id: str) -> bool:
        """False: it is over, or there is none."""
        return bool((await self._run("cancel_batch", {"id": batch_id}))[0] == "cancelled")

    async def count_up(self, batch_id: str) -> bool:
        """Whether all its jobs are closed; then its counts and its end stand."""
        return bool((await self._run("count_up", {"id": batch_id}))[0] == "counted")

    async def mark(self, batch_id: str, callback_url: str | None = None) -> tuple[Bell, ...]:
        """Its manifest and its marker are in the bucket: its caller may be told."""
        reply = await self._run("mark", {"id": batch_id, "notify": wanted(callback_url, None)})
        return (Bell(QUEUE, batch_id),) if callback_url and reply[0] == "marked" else ()


def _upload(batch_id: str, caller: str, key: str | None) -> dict[str, Any]:
    told = {"id": batch_id, "caller": caller, "lease_ms": round(UPLOAD_LEASE_S * 1000)}
    return told | ({"idem": key} if key else {})


def _read(flat: Mapping[str, str], now: int, *, rest: int, closed: int, counts: Sequence[int]) -> Batch:
    body = json.loads(flat.get("body", "{}"))
    standing = json.loads(flat["counts"]) if "counts" in flat else dict(zip(Status, map(int, counts), strict=True))
    if "counts" not in flat:
        standing[Status.QUEUED] += rest
    return Batch(
        id=flat["id"],
        caller=flat["caller"],
        status=BatchStatus(flat["status"]),
        now=now,
        total=int(flat.get("total", "0")),
        rest=rest,
        closed=closed,
        counts=standing,
        metadata=body.get("metadata", {}),
        callback_url=body.get("callback_url"),
        retry_of=flat.get("retry_of") or None,
        retried_by=flat.get("retried_by"),
        created_at=int(flat.get("created_at", "0")),
        finished_at=int(flat["finished_at"]) if "finished_at" in flat else None,
        hash=flat.get("hash"),
        key=flat.get("idem") or None,
        marked=flat.get("marked") == "1",
    )


def _pairs(flat: Sequence[str]) -> dict[str, str]:
    return dict(zip(flat[::2], flat[1::2], strict=True))
