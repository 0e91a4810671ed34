"""Batches as tests make them, and somebody who does for them what a worker would."""

import json
import time
from collections.abc import Callable
from typing import Any, Final

from service.domain import events, layout
from service.domain.job import Job
from service.domain.view import view
from service.storage.bucket import Bucket
from service.storage.desk import Desk
from service.storage.store import PREFIX
from tests.serving import move
from workers.batches import Binder

WITHIN_S: Final = 15.0
NDJSON: Final = {"Content-Type": "application/x-ndjson"}
ORDER: Final = {"model": "flux-dev", "prompt": "a red fox in the snow"}


def rows(*orders: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(order).encode() + b"\n" for order in orders)


def named(count: int) -> bytes:
    """So many good lines, each with a name of its own."""
    return rows(*(ORDER | {"custom_id": f"c{number}"} for number in range(count)))


async def keys(desk: Desk) -> set[str]:
    """What Redis holds, but for what every process leaves there."""
    found: Any = await desk.store._redis.keys(f"{PREFIX}*")
    return {key.decode().removeprefix(PREFIX) for key in found} - {"events", "ready", "procs"}


async def keys_once(desk: Desk, good: Callable[[set[str]], bool]) -> set[str]:
    """What Redis holds as soon as it is good."""
    until_s = time.monotonic() + WITHIN_S
    while not good(found := await keys(desk)):
        assert time.monotonic() < until_s, found
    return found


class Worker:
    """Does what is due for a batch, and lets its jobs end."""

    def __init__(self, desk: Desk, bucket: Bucket, binder: Binder) -> None:
        self.desk = desk
        self.bucket = bucket
        self._binder = binder

    async def look(self, batch_id: str) -> None:
        await self.desk.store._redis.zadd(f"{PREFIX}due", {f"batch:{batch_id}": 0}, xx=True)
        await self._binder.run(batch_id)
        await self.desk.drain()

    async def jobs(self, batch_id: str) -> list[Job]:
        """Its lines are jobs by now."""
        await self.look(batch_id)
        return await self.desk.store.several(await self.desk.store.members(batch_id, None, 1000))

    async def end(self, job: Job, *happened: events.Event) -> None:
        """What happened, then its sidecar; of a job that has ended already the sidecar alone."""
        ended = await move(self.desk, job.id, *happened)
        key, told = layout.sidecar_key(job.id), json.dumps(view(ended)).encode()
        await self.bucket.put_bytes(key, told, content_type="application/json", metadata={"job-id": job.id})
        await move(self.desk, job.id, events.SidecarWritten())

    async def fail_all(self, batch_id: str) -> None:
        """Every job of the batch fails, and then the batch is over."""
        for job in await self.jobs(batch_id):
            await self.end(job, events.DeadlinePassed())
        await self.look(batch_id)
