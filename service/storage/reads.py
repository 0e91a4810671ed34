"""What is on record, as it lies in Redis: single reads, without the script, each of one moment and none of two.

Every method raises `RedisError` when Redis cannot be reached in time. `lua/head.lua` tells the keys.
"""

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from service.domain.job import Job, Status
from service.storage import record
from service.storage.connection import AsyncRedis, ResponseError, text
from service.storage.terms import OVERDUE_S, Callbacks, Entry, Figures, Remains, Suspicion, storage_s


class Reads:
    """`prefix` is that of all our keys."""

    def __init__(self, redis: AsyncRedis, prefix: str) -> None:
        self._redis = redis
        self._prefix = prefix

    async def get(self, job_id: str) -> Job | None:
        """The job, or None. Raises record.CorruptRecord, record.NewerRecord."""
        flat = await self._flat(job_id)
        return self._parsed(flat, job_id) if flat else None

    def _parsed(self, flat: Mapping[str, str], job_id: str) -> Job:
        return record.read(flat, job_id)

    async def _flat(self, job_id: str) -> dict[str, str]:
        flat = await self._redis.hgetall(self._key("job", job_id))
        return {text(name): text(value) for name, value in flat.items()}

    async def buried_by(self, job_id: str) -> str | None:
        """The caller who deleted the job, as long as its tombstone stands."""
        caller = await self._redis.get(self._key("tomb", job_id))
        return None if caller is None else text(caller)

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
        return [text(id_) for id_ in ids]

    async def batch_ids(self, caller: str | None, before: str | None, limit: int) -> list[str]:
        """Ids of batches, newest first; `caller` None: of all."""
        return await self._ids(f"batches@{caller}" if caller else "batches", before, limit)

    async def members(self, batch_id: str, after: str | None, limit: int, status: Status | None = None) -> list[str]:
        """Ids of a batch's jobs in the order of its lines."""
        start: Any = f"({after}" if after else "-"
        name = f"{self._prefix}jobs#{batch_id}" + (f":{status}" if status else "")
        ids: Any = await self._redis.zrange(name, start, "+", bylex=True, offset=0, num=limit)
        return [text(id_) for id_ in ids]

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

    async def remains(self, job_id: str) -> Remains | None:
        """What a deleted job may still have running at the provider; None: nothing."""
        found = await self._redis.hgetall(self._key("remains", job_id))
        return Remains.read({text(name): text(value) for name, value in found.items()}) if found else None

    async def suspicion(self, job_id: str) -> int | None:
        """How often the job, a suspect, has crashed when it ran alone; None: it is no suspect."""
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.hexists(self._prefix + "suspects", job_id)
            pipe.hget(self._prefix + "crashes", job_id)
            suspect, crashes = await pipe.execute()
        return int(crashes or 0) if suspect else None

    async def last_event(self) -> str:
        """The newest id of the events stream (`0-0` if none)."""
        newest: Any = await self._redis.xrevrange(self._prefix + "events", count=1)
        return text(newest[0][0]) if newest else "0-0"

    async def first_event(self) -> str | None:
        """The oldest id that the stream still has."""
        oldest: Any = await self._redis.xrange(self._prefix + "events", count=1)
        return text(oldest[0][0]) if oldest else None

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
        return [Entry(text(eid), {text(k): text(v) for k, v in data.items()}) for eid, data in rows]

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
        return Callbacks.told([text(word) for word in found], awaited, overdue)

    async def figures(self) -> Figures:
        async with self._redis.pipeline(transaction=False) as pipe:
            for status in Status:
                pipe.zcard(f"{self._prefix}jobs:{status}")
            pipe.zcard(self._prefix + "slots")
            pipe.zcard(self._prefix + "due")
            pipe.zrange(self._prefix + "due", 0, 0, withscores=True)
            pipe.hgetall(self._prefix + "gate")
            pipe.hlen(self._prefix + "suspects")
            pipe.zcard(self._prefix + "groups")
            pipe.hvals(self._prefix + "crashes")
            pipe.time()
            *counts, slots, due, oldest, gate, suspects, groups, crashes, (seconds, micros) = await pipe.execute()
        now_s = seconds + micros / 1e6
        age = max(0.0, now_s - oldest[0][1] / 1000) if oldest else 0.0
        told = {text(k): text(v) for k, v in gate.items()}
        suspicion = Suspicion(suspects, groups, max(map(int, crashes), default=0))
        held_s = storage_s(told, now_s)
        return Figures(dict(zip(Status, counts, strict=True)), slots, due, age, told, held_s, suspicion)

    async def now_ms(self) -> int:
        """Redis's own time: the one that decides."""
        seconds, micros = await self._redis.time()
        return int(seconds) * 1000 + int(micros) // 1000

    async def scan_ids(self) -> AsyncIterator[str]:
        """Every job id on record, in no order."""
        async for key in self._redis.scan_iter(match=self._key("job", "*"), count=500):
            yield text(key).removeprefix(self._key("job", ""))

    def _key(self, kind: str, id_: str) -> str:
        return f"{self._prefix}{kind}:{id_}"


def _readable(row: Mapping[bytes, bytes]) -> Job | None:
    try:
        return record.read({text(name): text(value) for name, value in row.items()})
    except (record.CorruptRecord, record.NewerRecord):
        return None
