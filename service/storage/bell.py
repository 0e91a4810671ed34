"""Bells: RQ entries that say "look at this job now", rung by name, so that the service imports no worker.

A bell carries an id and nothing else. One that is lost, doubled or late is harmless: the sweep rings again for whatever
is due, and each task looks at the record before it acts.
"""

import asyncio
from collections.abc import Sequence
from typing import Final, Protocol, cast

import rq
from redis.client import Pipeline
from rq.serializers import JSONSerializer

from service.storage.connection import AsyncRedis, Redis

QUEUES: Final = ("submit", "collect", "notify", "batches")
TASKS: Final = "workers.tasks"  # the function of a queue is named like it

BELL_TIMEOUT_S: Final = 300  # RQ's last word on a task; its own deadlines are shorter
FAILED_KEPT_S: Final = 3600  # how long RQ shows a bell whose task raised
DESCRIPTION: Final = "bell"  # RQ would write the call with its arguments here, and log it


class Ringer(Protocol):
    """What the store's callers need; a simulation may lose, double and delay what is rung."""

    async def ring(self, rings: Sequence[tuple[str, str]]) -> None: ...

    async def waiting(self, queue: str) -> int: ...


class Bells:
    """`connection` carries the bells; `sync` is asked once for the server's version, because RQ wants to know it."""

    def __init__(self, connection: AsyncRedis, sync: Redis) -> None:
        self._redis = connection
        self._queues = {name: rq.Queue(name, connection=sync, serializer=JSONSerializer) for name in QUEUES}
        self._greeted = False

    async def ring(self, rings: Sequence[tuple[str, str]]) -> None:
        """Ring each (queue, id), in this order, in one round trip: all or none of them.

        KeyError: no such queue. RedisError: whether they rang is unknown, and it does not matter (see above).
        """
        if not rings:
            return
        await self._greet()
        async with self._redis.pipeline() as pipe:
            for queue, id_ in rings:
                self._queues[queue].enqueue(
                    f"{TASKS}.{queue}",
                    id_,
                    result_ttl=0,
                    failure_ttl=FAILED_KEPT_S,
                    job_timeout=BELL_TIMEOUT_S,
                    description=DESCRIPTION,
                    pipeline=cast("Pipeline", pipe),  # RQ only buffers commands in it, which both flavours do alike
                )
            await pipe.execute()

    async def waiting(self, queue: str) -> int:
        """How many bells no worker has taken yet."""
        return int(await self._redis.llen(self._queues[queue].key))

    async def _greet(self) -> None:
        """RQ's first enqueue sends INFO and waits for it: in a thread, so that the loop does not."""
        if not self._greeted:
            await asyncio.to_thread(self._ask_version)
            self._greeted = True

    def _ask_version(self) -> None:
        for queue in self._queues.values():
            queue.get_redis_server_version()  # asks once: RQ keeps the answer on the connection
