"""The job store: what is true of each job, in Redis, moved only by the guarded writes of the script (`lua/`).

Killed at any point: a write has happened whole or not at all. A caller that did not hear the answer calls again with
the same job id (`create`) or event id (`apply`) and is told `already`. Nothing here is tried again by itself, and every
method raises `RedisError` when Redis cannot be reached in time.
"""

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from service.domain.errors import ErrorCode, JobError
from service.domain.events import NOW, SidecarWritten
from service.domain.job import Job, Queue, Status
from service.domain.lifecycle import KEEP, Change
from service.storage import record
from service.storage.batches import Batches
from service.storage.connection import AsyncRedis, ResponseError
from service.storage.inspection import Inspection
from service.storage.newborn import newborn, queue_of
from service.storage.notices import QUEUE as NOTIFY
from service.storage.notices import Notices, wanted
from service.storage.quarantine import Quarantine
from service.storage.rebuilding import Rebuilding
from service.storage.script import SCRIPT, SHA
from service.storage.series import Series
from service.storage.terms import (
    OVERDUE_S,
    Bell,
    Callbacks,
    Claim,
    Entry,
    Figures,
    Idempotency,
    Limits,
    Outcome,
    Unconfirmed,
    Written,
    storage_s,
)

PREFIX: Final = "dr1:"  # counted up if the keys ever change their meaning


READY_KEPT_MS: Final = 60_000  # of a key that is only there to be written
# What is on record now, by this call or by one before it, whose caller may not have heard that replicas have it.
_WRITTEN: Final = frozenset({"created", "applied", "already", "replayed", "retried", "enrolled"})


class Store:
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
        self._redis = redis
        self._prefix = prefix
        self._actor = actor
        self._uid = uid
        self.spool = spool
        self.quarantine = Quarantine(self._run)
        self.series = Series(self._run)
        self.notices = Notices(self._run)
        self.rebuilding = Rebuilding(self._run, limits.caps)
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

        `takes_over`: the job that this one retries; its provider tasks and its slot become the new job's.
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
        }
        reply = await self._run("create", arguments, fields, confirm=True)
        bells = (*_own_bell(job), *_submits(reply[2])) if reply[0] == "created" else ()
        return Written(Outcome(reply[0]), int(reply[1]), reply[3] if len(reply) > 3 else job.id, bells)

    async def apply(self, change: Change, event_id: str, *, confirm: bool = False) -> Written:
        """Move a job, if its version still stands. `confirm`: wait for the replicas (before something is bought).

        Raises record.CorruptRecord: what lies there now is not what was written.
        """
        job = change.job
        stamps = [name for name, value in change.patch.items() if value is NOW]
        notify = wanted(job.callback_url, job.hook) if change.event == SidecarWritten.name else None
        fields = {name: value for name, value in change.patch.items() if value is not NOW}
        arguments = {
            "id": job.id,
            "version": str(job.version),
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
        arguments = {"id": job.id, "version": str(job.version), "caller": job.caller, "busy_ms": _ms(busy_s)}
        return Outcome((await self._run("bury", arguments))[0])

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
        """What is due and unclaimed, soonest first, at most `room[queue]` each; the same again after `again_s`."""
        arguments = {"room": dict(room), "again_ms": _ms(again_s), "most": most}
        reply = await self._run("ripen", arguments)
        ripe = reply[3]
        return (*_submits(reply[2]), *(Bell(queue, id_) for queue, id_ in zip(ripe[::2], ripe[1::2], strict=True)))

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
        """Work outside the records (`stage`: inputs of a job being created; `erase`: a deleted job's objects)."""
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

    # ---- reads ---------------------------------------------------------------------------------------------------

    async def get(self, job_id: str) -> Job | None:
        """The job, or None. Raises record.CorruptRecord, record.NewerRecord."""
        flat = await self._flat(job_id)
        return self._parsed(flat, job_id) if flat else None

    def _parsed(self, flat: Mapping[str, str], job_id: str) -> Job:
        return record.read(flat, job_id)

    async def _flat(self, job_id: str) -> dict[str, str]:
        flat = await self._redis.hgetall(self._key("job", job_id))
        return {_text(name): _text(value) for name, value in flat.items()}

    async def buried_by(self, job_id: str) -> str | None:
        """The caller who deleted the job, as long as its tombstone stands."""
        caller = await self._redis.get(self._key("tomb", job_id))
        return None if caller is None else _text(caller)

    async def page(
        self,
        *,
        caller: str | None,
        status: Status | None = None,
        batch_id: str | None = None,
        before: str | None = None,
        limit: int = 50,
    ) -> list[Job]:
        """Newest first; fewer than `limit`: there are no more. `caller` None: of all. `before`: the last id so far."""
        name = f"jobs#{batch_id}" if batch_id else f"jobs@{caller}" if caller else "jobs"
        name += f":{status}" if status else ""
        jobs: list[Job] = []
        while len(jobs) < limit:
            ids = await self._ids(name, before, limit)
            found = await self._jobs(ids)
            if caller is not None and any(job.caller != caller for job in found):
                return []  # another's batch
            jobs += found
            if len(ids) < limit:
                break
            before = ids[-1]
        return jobs[:limit]

    async def _ids(self, name: str, before: str | None, limit: int) -> list[str]:
        after: Any = f"({before}" if before else "+"
        ids: Any = await self._redis.zrange(self._prefix + name, after, "-", desc=True, bylex=True, offset=0, num=limit)
        return [_text(id_) for id_ in ids]

    async def batch_ids(self, caller: str | None, before: str | None, limit: int) -> list[str]:
        """Ids of batches, newest first; `caller` None: of all."""
        return await self._ids(f"batches@{caller}" if caller else "batches", before, limit)

    async def members(self, batch_id: str, after: str | None, limit: int, status: Status | None = None) -> list[str]:
        """Ids of a batch's jobs in the order of its lines."""
        start: Any = f"({after}" if after else "-"
        name = f"{self._prefix}jobs#{batch_id}" + (f":{status}" if status else "")
        ids: Any = await self._redis.zrange(name, start, "+", bylex=True, offset=0, num=limit)
        return [_text(id_) for id_ in ids]

    async def several(self, ids: Sequence[str]) -> list[Job]:
        """The records of these jobs, as far as there are any that can be read."""
        return await self._jobs(ids)

    async def _jobs(self, ids: Sequence[str]) -> list[Job]:
        """Those that can be read: a page does not fail for one corrupt record."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for id_ in ids:
                pipe.hgetall(self._key("job", id_))
            rows = await pipe.execute() if ids else []
        return [job for row in rows if row and (job := _readable(row)) is not None]

    async def log(self, job_id: str) -> list[Entry]:
        """The job's own events, oldest first."""
        rows = [json.loads(row) for row in await self._redis.lrange(self._key("log", job_id), 0, -1)]
        return [Entry(row.pop("eid"), row) for row in rows]

    async def due_at(self, job_id: str) -> int | None:
        """When the job is looked at next, ms of Redis's clock; None: nothing of it is left to do."""
        at: Any = await self._redis.zscore(self._prefix + "due", f"job:{job_id}")
        return None if at is None else int(at)

    async def last_event(self) -> str:
        """The newest id of the events stream (`0-0` if none)."""
        newest: Any = await self._redis.xrevrange(self._prefix + "events", count=1)
        return _text(newest[0][0]) if newest else "0-0"

    async def first_event(self) -> str | None:
        """The oldest id that the stream still has."""
        oldest: Any = await self._redis.xrange(self._prefix + "events", count=1)
        return _text(oldest[0][0]) if oldest else None

    async def events_dropped(self) -> bool:
        """Whether the stream has ever had more than it has now."""
        try:
            told: Any = await self._redis.xinfo_stream(self._prefix + "events")
        except ResponseError:  # no such key
            return False
        return int(told["entries-added"]) > int(told["length"])

    async def events(self, after: str, *, block_s: float = 0, most: int = 500) -> list[Entry]:
        """Transitions after an id; waits up to `block_s` for the first (0: does not wait)."""
        block = int(block_s * 1000) or None
        streams: Any = await self._redis.xread({self._prefix + "events": after}, count=most, block=block)
        rows = streams[0][1] if streams else []
        return [Entry(_text(eid), {_text(k): _text(v) for k, v in data.items()}) for eid, data in rows]

    async def durations(self, model: str) -> list[float]:
        """The last few hundred times from acceptance to ready, seconds, newest first."""
        return [int(ms) / 1000 for ms in await self._redis.lrange(self._key("took", model), 0, -1)]

    async def callbacks(self) -> Callbacks:
        """What became of the callbacks of the last 200 images."""
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.lrange(self._prefix + "found", 0, -1)
            pipe.zcard(self._prefix + "awaited")
            pipe.time()
            pipe.zrange(self._prefix + "awaited", 0, -1, withscores=True)
            found, awaited, (seconds, _), rows = await pipe.execute()
        overdue = sum(1 for _, since in rows if seconds - since / 1000 > OVERDUE_S)
        return Callbacks.told([_text(word) for word in found], awaited, overdue)

    async def figures(self) -> Figures:
        async with self._redis.pipeline(transaction=False) as pipe:
            for status in Status:
                pipe.zcard(f"{self._prefix}jobs:{status}")
            pipe.zcard(self._prefix + "slots")
            pipe.zcard(self._prefix + "due")
            pipe.zrange(self._prefix + "due", 0, 0, withscores=True)
            pipe.hgetall(self._prefix + "gate")
            pipe.time()
            *counts, slots, due, oldest, gate, (seconds, micros) = await pipe.execute()
        now_s = seconds + micros / 1e6
        age = max(0.0, now_s - oldest[0][1] / 1000) if oldest else 0.0
        told = {_text(k): _text(v) for k, v in gate.items()}
        return Figures(dict(zip(Status, counts, strict=True)), slots, due, age, told, storage_s(told, now_s))

    async def writable(self) -> None:
        """Raises RedisError unless a write is taken (a replica or a full disk says no)."""
        await self._redis.set(self._prefix + "ready", "1", px=READY_KEPT_MS)

    async def now_ms(self) -> int:
        """Redis's own time: the one that decides."""
        seconds, micros = await self._redis.time()
        return int(seconds) * 1000 + int(micros) // 1000

    async def scan_ids(self) -> AsyncIterator[str]:
        """Every job id on record, in no order."""
        async for key in self._redis.scan_iter(match=self._key("job", "*"), count=500):
            yield _text(key).removeprefix(self._key("job", ""))

    # ---- the script ----------------------------------------------------------------------------------------------

    async def _run(
        self,
        verb: str,
        arguments: Mapping[str, Any],
        fields: Mapping[str, Any] | None = None,
        *,
        confirm: bool = False,
        words: Sequence[str] = (),
    ) -> list[Any]:
        """`words` follow the fields, as they are."""
        told = {name: value for name, value in arguments.items() if value is not None}
        told |= {"cfg": self._config, "by": self._actor} | ({"who": self._uid} if self._uid else {})
        argv = [verb, record.compact(told), *record.write(fields or {}), *words]
        try:
            reply = await self._evaluate("EVALSHA", SHA, argv, confirm=confirm)
        except ResponseError as error:
            if not str(error).startswith("NOSCRIPT") and "NOSCRIPT" not in type(error).__name__.upper():
                raise
            reply = await self._evaluate("EVAL", SCRIPT, argv, confirm=confirm)
        return reply

    async def _evaluate(self, command: str, script: str, argv: Sequence[str], *, confirm: bool) -> list[Any]:
        words = (command, script, 1, self._prefix, *(word.encode("utf-8", "surrogateescape") for word in argv))
        if not confirm or self.limits.replicas == 0:
            return _decoded(await self._redis.execute_command(*words))  # type: ignore[no-untyped-call, no-any-return]
        # WAIT speaks of its own connection's writes, and replicas take all writes in their order: one right before it
        # makes it speak of what another connection wrote, too, where the script finds the job on record.
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.execute_command(*words)
            pipe.set(self._prefix + "ready", "1", px=READY_KEPT_MS)
            pipe.execute_command("WAIT", self.limits.replicas, int(self.limits.replicas_timeout_s * 1000))
            raw, _, confirmed = await pipe.execute()
        reply: list[Any] = _decoded(raw)
        if confirmed < self.limits.replicas and reply[0] in _WRITTEN:
            known = reply[3] if len(reply) > 3 else None
            raise Unconfirmed(f"{confirmed} of {self.limits.replicas} replicas confirmed the write", known)
        return reply

    def _key(self, kind: str, id_: str) -> str:
        return f"{self._prefix}{kind}:{id_}"


def _own_bell(job: Job) -> tuple[Bell, ...]:
    """A new job that waits for a slot is rung by admission; one that begins further on is looked at at once."""
    return () if job.status is Status.QUEUED else (Bell(queue_of(job), job.id),)


def _submits(ids: Sequence[str]) -> tuple[Bell, ...]:
    return tuple(Bell(Queue.SUBMIT, id_) for id_ in ids)


def _readable(row: Mapping[bytes, bytes]) -> Job | None:
    try:
        return record.read({_text(name): _text(value) for name, value in row.items()})
    except (record.CorruptRecord, record.NewerRecord):
        return None


def _pairs(flat: Sequence[str]) -> dict[str, str]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _ms(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1000)


def _text(raw: bytes | str) -> str:
    return raw.decode("utf-8", "surrogateescape") if isinstance(raw, bytes) else raw


def _decoded(reply: Any) -> Any:
    if isinstance(reply, list):
        return [_decoded(word) for word in reply]
    return _text(reply) if isinstance(reply, bytes) else reply
