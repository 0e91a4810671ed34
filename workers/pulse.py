"""The heartbeat of a worker process. One whose beat has stopped is dead, and what it had in flight is suspect."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final

from service.storage.connection import RedisError
from service.storage.quarantine import Quarantine
from workers.patience import cut

BEATS: Final = 4  # in the time after which a process counts as lost


@asynccontextmanager
async def beating(quarantine: Quarantine, lost_s: float) -> AsyncIterator[None]:
    """Beats for as long as the block runs, and takes its leave: who stops by himself makes nobody suspect."""
    heart = asyncio.create_task(_beat(quarantine, lost_s / BEATS))
    try:
        yield
    finally:
        await cut({heart})  # redis-py may lose a cancellation, and then the process would never end
        with suppress(RedisError):
            await quarantine.leave()


async def _beat(quarantine: Quarantine, gap_s: float) -> None:
    while True:
        with suppress(RedisError):
            await quarantine.beat()
        await asyncio.sleep(gap_s)
