"""What lies in Redis, looked at piece by piece, each in one run of the script, so at one moment. Writes nothing."""

from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from service.domain.job import Job
from service.storage import record
from service.storage.connection import AsyncRedis, text

PIECE: Final = 100  # records, or entries, looked at in one run of the script: about 10 ms
SETS: Final = ("due", "ended", "ripe", "awaited", "slots", "spooled:", "wait:", "jobs", "batches", "notices")
_NO_RECORD: Final = frozenset({"gone", "buried", "aside"})


class Run(Protocol):
    """A verb of the script, with its arguments and what follows them."""

    def __call__(
        self, verb: str, arguments: Mapping[str, Any], *, words: Sequence[str] = ()
    ) -> Awaitable[list[Any]]: ...


@dataclass(frozen=True, slots=True)
class Seen:
    """A job as it lies there. `job` is None without a record (`absent`: gone, buried or aside, which is: condemned),
    or with one that cannot be read (`faults`: unreadable), or that a newer release wrote.
    """

    id: str
    job: Job | None
    absent: str = ""
    faults: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SeenBatch:
    """A batch as it lies there; `there`: it has a record."""

    id: str
    faults: tuple[str, ...]
    there: bool
    marked: bool


class Inspection:
    """`prefix` is that of all our keys. Every method raises RedisError."""

    def __init__(self, redis: AsyncRedis, run: Run, prefix: str) -> None:
        self._redis = redis
        self._run = run
        self._prefix = prefix

    async def names(self) -> AsyncIterator[tuple[str, list[str]]]:
        """All that there is, by kind: `job`, `batch`, `task` and `notice` with some of their ids, `set` with names of
        sets.
        """
        found: dict[str, list[str]] = {"job": [], "batch": [], "task": [], "notice": [], "set": []}
        async for raw in self._redis.scan_iter(match=f"{self._prefix}*", count=1000):
            name = text(raw).removeprefix(self._prefix)
            kind, _, id_ = name.partition(":")
            if kind in found and id_:
                found[kind].append(id_)
            elif name.startswith(SETS):
                found["set"].append(name)
            for kind, piece in found.items():
                if len(piece) >= PIECE:
                    yield kind, piece.copy()
                    piece.clear()
        for kind, piece in found.items():
            if piece:
                yield kind, piece

    async def members(self, name: str) -> AsyncIterator[list[str]]:
        """Of a sorted set; nothing if it is none (any more)."""
        if text(await self._redis.type(self._prefix + name)) != "zset":
            return
        piece: list[str] = []
        async for member, _ in self._redis.zscan_iter(self._prefix + name, count=PIECE):
            piece.append(text(member))
            if len(piece) >= PIECE:
                yield piece
                piece = []
        if piece:
            yield piece

    async def jobs(self, ids: Sequence[str]) -> list[Seen]:
        return [_seen(*row) for row in (await self._run("inspect", {}, words=ids))[3]]

    async def batches(self, ids: Sequence[str]) -> list[SeenBatch]:
        rows = (await self._run("inspect_batches", {}, words=ids))[3]
        return [SeenBatch(id_, tuple(faults), status != "gone", bool(marked)) for id_, faults, status, marked in rows]

    async def strays(self, name: str, members: Sequence[str]) -> list[str]:
        """Those that speak of a job or a batch without a record."""
        return list((await self._run("strays", {"set": name}, words=members))[3])

    async def unowned(self, tasks: Sequence[str]) -> list[str]:
        """Provider tasks that belong to jobs without a record."""
        return list((await self._run("unowned", {}, words=tasks))[3])

    async def notices(self, ids: Sequence[str]) -> list[tuple[str, str]]:
        """Those with which something is wrong: (whose, what)."""
        words = (await self._run("inspect_notices", {}, words=ids))[3]
        return list(zip(words[::2], words[1::2], strict=True))

    async def misfolded(self) -> int:
        """By how many the count of lines that are not jobs yet is wrong."""
        return int((await self._run("misfolded", {}))[3])


def _seen(job_id: str, flat: Sequence[str], words: Sequence[str]) -> Seen:
    if not flat:
        return Seen(job_id, None, absent=next(iter(_NO_RECORD & set(words))))
    try:
        job = record.read(dict(zip(flat[::2], flat[1::2], strict=True)), job_id)
    except record.CorruptRecord:
        return Seen(job_id, None, faults=("unreadable",))
    except record.NewerRecord:
        return Seen(job_id, None)
    return Seen(job_id, job, faults=tuple(dict.fromkeys(words)))
