"""The heartbeat of a process: for as long as it works, and not a moment in the way of its end."""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from service.storage.connection import RedisError
from service.storage.quarantine import Quarantine
from workers.pulse import beating

pytestmark = pytest.mark.anyio

WITHIN_S = 20.0
LONG_S = 10_000.0


class Line:
    """What was said to Redis. The first beat stays open until it is cancelled, and then loses that, as redis-py may."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.beats = asyncio.Event()

    async def run(self, verb: str, arguments: Mapping[str, Any]) -> list[Any]:
        self.said.append(verb)
        if verb == "beat":
            self.beats.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                raise RedisError("the cancellation is lost") from None
        return []


async def test_a_process_ends_although_redis_lost_the_cancellation_of_its_beat() -> None:
    line, others = Line(), asyncio.all_tasks()
    async with asyncio.timeout(WITHIN_S):
        async with beating(Quarantine(line.run), LONG_S):
            await line.beats.wait()
    assert line.said == ["beat", "leave"]
    assert asyncio.all_tasks() == others
