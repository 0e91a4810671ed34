"""The job store: what is true of each job, in Redis, moved only by the guarded writes of the script (`lua/`).

Killed at any point: a write has happened whole or not at all. A caller that did not hear the answer calls again with
the same job id (`create`) or event id (`apply`) and is told `already`. Nothing here is tried again by itself, and every
method raises `RedisError` when Redis cannot be reached in time.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from service.domain.errors import ErrorCode, JobError
from service.domain.events import NOW, SidecarWritten
from service.domain.job import Job, Queue, Status
from service.domain.lifecycle import KEEP, Change
from service.storage import record
from service.storage.batches import Batches
from service.storage.connection import AsyncRedis
from service.storage.evaluation import READY, READY_KEPT_MS, Evaluation
from service.storage.inspection import Inspection
from service.storage.newborn import newborn, queue_of
from service.storage.notices import QUEUE as NOTIFY
from service.storage.notices import Notices, wanted
from service.storage.quarantine import Quarantine
from service.storage.reads import Reads
from service.storage.rebuilding import Rebuilding
from service.storage.series import Series
from service.storage.terms import Bell, Claim, Idempotency, Limits, Outcome, Written

PREFIX: Final = "dr1:"  # counted up if the keys ever change their meaning
PAGES_MOST: Final = 10  # of what is due, looked at in one call


class Store(Reads):
    """`actor` names this process in the events; `uid`, if it claims jobs, and shows by beats that it lives; `spool` is
    the directory in which what it has pulled may wait.

    `lua/head.lua` tells the keys.
    """

    def __init__(
        self,
        redis: AsyncRedis,
        limits: Limits,
        *,
        actor: str = "",
        uid: str | None = None,
        spool: str | None = None,
        prefix: str = PREFIX,
    ) -> None:
        super().__init__(redis, prefix)
        self._evaluation = Evaluation(redis, limits, prefix)
        self._actor = actor
        self._uid = uid
        self.spool = spool
        self._onward = 0  # the rank in what is due from which the next look goes on, after the first page
        self.quarantine = Quarantine(self._run)
        self.series = Series(self._run)
        self.notices = Notices(self._run)
        self.rebuilding = Rebuilding(self._run, limits.caps, limits.retention_s)
        self.batches = Batches(self._run, limits.caps, _submits)
        self.inspection = Inspection(redis, self._run, prefix)
        self.limits = limits
        self._config = {
            "cap": limits.max_in_flight,
            "caps": dict(limits.caps),
            "groups": ["", *limits.caps],
            "backlog_max": limits.backlog_max,
            "events_max": limits.events_max,
            "callbacks": limits.callbacks,
            "spool_lost_ms": _ms(limits.spool_lost_s),
            "spool_stopped_ms": _ms(limits.spool_stopped_s),
            "spool_rescue_ms": _ms(limits.spool_rescue_s),
            "idem_ms": limits.idempotency_s * 1000,
            "tomb_ms": limits.retention_s * 1000,
        }

    # ---- guarded writes ------------------------------------------------------------------------------------------

    async def create(
        self,
        job: Job,
        *,
        deadline_s: float | None = None,
        idempotency: Idempotency | None = None,
        takes_over: Job | None = None,
    ) -> Written:
        """Put a new job on record; its `created_at` (and `finished_at`, if it begins ended) are Redis's time.

        `takes_over`: the job that this one retries; its provider tasks, and a slot for them, become the new job's.
        Raises Unconfirmed when the record is there but too few replicas said so.
        """
        if idempotency is not None:
            job = replace(job, idempotency=f"{idempotency.key} {idempotency.body}")
        arguments, fields = newborn(job, self.limits.caps, deadline_s)
        arguments |= {
            "idem": idempotency and idempotency.key,
            "idem_hash": idempotency and idempotency.body,
            "retry_of": takes_over and takes_over.id,
            "old_version": takes_over and str(takes_over.version),
            "left": takes_over and record.compact([each for each in takes_over.open if each not in job.open]),
            "digest": (takes_over and takes_over.digest) or None,
        }
        reply = await self._run("create", arguments, fields, confirm=True)
        bells = (*_own_bell(job), *_submits(reply[2])) if reply[0] == "created" else ()
        return Written(Outcome(reply[0]), int(reply[1]), reply[3] if len(reply) > 3 else job.id, bells)

    async def apply(self, change: Change, event_id: str, *, confirm: bool = False) -> Written:
        """Move a job, if the record still stands as it was read: its version, and its digest, since a primary that took
        over without the newest writes counts the same versions once more, in a history of its own.
        `confirm`: wait for the replicas (before something is bought).

        Raises record.CorruptRecord: what lies there now is not what was written.
        """
        job = change.job
        stamps = [name for name, value in change.patch.items() if value is NOW]
        notify = wanted(job.callback_url, job.hook) if change.event == SidecarWritten.name else None
        fields = {name: value for name, value in change.patch.items() if value is not NOW}
        arguments = {
            "id": job.id,
            "version": str(job.version),
            "digest": job.digest or None,
            "event_id": event_id,
            "event": change.event,
            "detail": change.detail[:200],
            "to": change.to,
            "stamps": stamps,
            "own": change.provider_id,
            "holds_slot": change.holds_slot,
            "signal": change.signal,
            "signal_ms": _ms(change.signal_s),
            "ring": change.ring,
            "keep_due": change.due_s is KEEP,
            "due_ms": None if change.due_s is KEEP else _ms(change.due_s),
            "deadline_counts": change.deadline_counts,
            "expires_at": change.patch.get("result_expires_at", job.result_expires_at) or 0 if change.ripe else None,
            "spooled": change.spool,
            "notify": notify,
        }
        moved = {"status": change.to, "reason": change.event, "queue": change.queue}
        reply = await self._run("apply", arguments, fields | moved, confirm=confirm)
        if reply[0] == "corrupt":
            raise record.CorruptRecord(job.id, "it was changed since it was read")
        applied = reply[0] == "applied"
        own: tuple[Bell, ...] = (Bell(change.queue, job.id),) if change.ring and applied else ()
        own += (Bell(NOTIFY, job.id),) if notify and applied else ()
        return Written(Outcome(reply[0]), int(reply[1]), job.id, (*own, *_submits(reply[2])))

    async def condemn(self, job_id: str) -> Written:
        """End a job whose record cannot be read, with what can; the record is kept aside. STALE: it is sound after all.

        Raises record.NewerRecord, which is not ours to judge.
        """
        flat = await self._flat(job_id)
        if not flat:
            return Written(Outcome.GONE, 0, job_id)
        try:
            record.read(flat, job_id)
        except record.CorruptRecord as error:
            return await self._condemn(flat, error)
        return Written(Outcome.STALE, 0, job_id)

    async def _condemn(self, flat: Mapping[str, str], error: record.CorruptRecord) -> Written:
        log = await self._last_words(error.job_id)
        job = record.salvage(flat, error.job_id)
        job = replace(
            job,
            caller=log.get("caller", job.caller),
            batch_id=log.get("batch_id", job.batch_id),
            status=Status.FAILED,
            reason="corrupt",
            error=JobError(ErrorCode.RECORD_CORRUPT, "the job's record in Redis was damaged", retryable=True),
        )
        arguments = {
            "id": job.id,
            "caller": job.caller,
            "batch": job.batch_id or "",
            "digest": record.checksum(flat),
            "unreadable": flat.get("sum") == record.checksum(flat),
            "event": job.reason,
            "detail": str(error),
            "from": log.get("status"),
            "to": job.status,
            "stamps": ["finished_at"],
        }
        more = {"version": log.get("version", job.version), "created_at": job.created_at}
        reply = await self._run("condemn", arguments, record.fresh(job) | more | {"group": "", "queue": Queue.COLLECT})
        own = (Bell(Queue.COLLECT, job.id),) if reply[0] == "condemned" else ()
        return Written(Outcome(reply[0]), int(reply[1]), job.id, (*own, *_submits(reply[2])))

    async def _last_words(self, job_id: str) -> dict[str, Any]:
        """What the job's own log says of it: written apart from the record, so not damaged with it."""
        rows = await self._redis.lrange(self._key("log", job_id), -1, -1)
        try:
            entry = json.loads(rows[-1])
            return {name: str(entry[name]) for name in ("caller", "batch_id", "status", "version") if name in entry}
        except (ValueError, IndexError, TypeError):
            return {}

    async def bury(self, job: Job, *, busy_s: float) -> Outcome:
        """Delete an ended job's record; its objects are due to be erased, after `busy_s` if a step may still run."""
        stands = {"version": str(job.version), "digest": job.digest or None}
        arguments = {"id": job.id, "caller": job.caller, "busy_ms": _ms(busy_s)} | stands
        return Outcome((await self._run("bury", arguments))[0])

    async def vacate(self, job_id: str) -> tuple[Bell, ...]:
        """What remained of a deleted job is over: its slot is free."""
        return _submits((await self._run("vacate", {"id": job_id}))[2])

    async def entomb(self, job_id: str, caller: str) -> None:
        """`bury` for a job whose record has left Redis. Killed half-way: its objects go, and no tombstone tells."""
        await self.plan("erase", job_id, 0)
        await self._redis.set(self._key("tomb", job_id), caller, px=self.limits.retention_s * 1000)

    # ---- due work ------------------------------------------------------------------------------------------------

    async def claim(
        self, queue: Queue, job_id: str, lease_s: float, *, alone: str | None = None
    ) -> tuple[Claim | None, tuple[Bell, ...]]:
        """A lease on the job, or for `collect` on the one whose URL expires first; None if there is nothing to do.

        A suspect is given only to who names its group in `alone`, and then nothing else is.
        Raises record.CorruptRecord and NewerRecord, each with the id of the job that the lease is on.
        """
        arguments = {"queue": queue, "id": job_id, "lease_ms": _ms(lease_s), "alone": alone}
        reply = await self._run("claim", arguments | {"spool": self.spool})
        bells = _submits(reply[2])
        if reply[0] == "none":
            return None, bells
        _, now, _, claimed, lease_end, gate, flat = reply
        return Claim(self._parsed(_pairs(flat), claimed), int(now), int(lease_end), gate, alone), bells

    async def renew(self, job_id: str, lease_end: int, lease_s: float, *, alone: str | None = None) -> int | None:
        """The new end of the lease, or None: it ran out, or something happened to the job."""
        arguments = {"id": job_id, "lease_end": lease_end, "lease_ms": _ms(lease_s), "alone": alone}
        reply = await self._run("renew", arguments)
        return int(reply[3]) if reply[0] == "renewed" else None

    async def release(self, job_id: str, *, alone: str | None = None) -> None:
        """The step is over, and this process lives. Lost, it is harmless: the job may be suspect for no reason."""
        if self._uid:
            await self._run("release", {"id": job_id, "alone": alone})

    async def ripen(self, room: Mapping[str, int], *, again_s: float, most: int = 1000) -> tuple[Bell, ...]:
        """What is due and unclaimed, soonest first, at most `room[queue]` each; the same again after `again_s`.
        Of `collect` have `close` those jobs that have ended, which can wait better than what is bought.

        Thousands for which there is no room hide nothing behind them: after the `most` that are due first, some pages
        of as many more are looked at, each in a run of its own, and the next call goes on where this one ended.
        """
        left, start, bells = dict(room), 0, list[Bell]()
        for page in range(PAGES_MOST):
            arguments = {"room": left, "again_ms": _ms(again_s), "start": start, "most": most}
            _, _, admitted, ripe, onward = await self._run("ripen", arguments)
            bells += (*_submits(admitted), *(Bell(*each) for each in zip(ripe[::2], ripe[1::2], strict=True)))
            left = {kind: free - ripe[::2].count(kind) for kind, free in left.items()}
            start = int(onward) if page else max(int(onward), self._onward if onward else 0)
            if not start or not any(left.values()):
                break
        self._onward = start
        return tuple(bells)

    async def tend(self) -> None:
        """Show that somebody serves this process's spool."""
        await self._run("tend", {"spool": self.spool})

    async def silence_s(self, spool: str) -> float:
        """For how long nobody has shown that he serves a spool."""
        return float((await self._run("silence", {"of": spool}))[3]) / 1000

    async def behind(self, after_s: float, most: int) -> int:
        """How many images, up to `most`, have waited at their URLs alone for longer than this."""
        return int((await self._run("behind", {"after_ms": _ms(after_s), "most": most}))[3])

    async def hold(self, reason: str, seconds: float) -> None:
        """Submissions pause for so long, beside all other reasons; asked again it goes on, and it ends by itself."""
        await self._run("pause", {"reason": reason, "pause_ms": _ms(seconds)})

    async def plan(self, kind: str, id_: str, due_s: float | None) -> None:
        """Work outside the records (`stage`: inputs of a job being created; `scrub`: an image put after its job's end;
        of a deleted job `erase`: its objects; `late`: what lands under their keys after that; `settle`: its slot).
        """
        await self._run("plan", {"kind": kind, "id": id_, "due_ms": _ms(due_s)})

    async def hear(self, job_id: str) -> float | None:
        """A callback came. Seconds since a poll had found the job's image; None: it was not awaited."""
        reply = await self._run("hear", {"id": job_id})
        return int(reply[3]) / 1000 if reply[0] == "late" else None

    async def miss(self) -> int:
        """Give up on callbacks that are a minute late; how many."""
        return int((await self._run("miss", {}))[3])

    async def expire(self, most: int = 100) -> int:
        """Forget records that ended longer ago than the retention; how many."""
        arguments = {"retention_ms": _ms(self.limits.retention_s), "most": most}
        return int((await self._run("expire", arguments))[3])

    async def writable(self) -> None:
        """Raises RedisError unless a write is taken (a replica or a full disk says no)."""
        await self._redis.set(self._prefix + READY, "1", px=READY_KEPT_MS)

    async def _run(
        self,
        verb: str,
        arguments: Mapping[str, Any],
        fields: Mapping[str, Any] | None = None,
        *,
        confirm: bool = False,
        words: Sequence[str] = (),
    ) -> list[Any]:
        """A verb of the script. `words` follow the fields, as they are."""
        told = {name: value for name, value in arguments.items() if value is not None}
        told |= {"cfg": self._config, "by": self._actor} | ({"who": self._uid} if self._uid else {})
        argv = [verb, record.compact(told), *record.write(fields or {}), *words]
        return await self._evaluation.run(argv, confirm=confirm)


def _own_bell(job: Job) -> tuple[Bell, ...]:
    """A new job that waits for a slot is rung by admission; one that begins further on is looked at at once."""
    return () if job.status is Status.QUEUED else (Bell(queue_of(job), job.id),)


def _submits(ids: Sequence[str]) -> tuple[Bell, ...]:
    return tuple(Bell(Queue.SUBMIT, id_) for id_ in ids)


def _pairs(flat: Sequence[str]) -> dict[str, str]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _ms(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1000)
