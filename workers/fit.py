"""Are Redis and the bucket fit for the work? Without Redis nothing begins; the bucket may be asked later.

A worker that starts while the bucket is away must work nevertheless: what is ready then is pulled and spooled, or its
URL dies. Nothing can be put meanwhile, and what was wrong with the bucket ends the process when it can be told.
"""

import asyncio
import logging
from typing import Final

from service.preflight import preflight
from service.settings import Settings
from service.storage.bucket import Bucket
from service.storage.connection import RedisError
from service.storage.objects import BucketError

ASK_AGAIN_S: Final = 1.0

log = logging.getLogger(__name__)


class Fit:
    """`stop()` ends `run`, which ends by itself once all has been seen to be well."""

    def __init__(self, loaded: Settings, bucket: Bucket) -> None:
        self._loaded = loaded
        self._bucket = bucket
        self._stopping = asyncio.Event()
        self._known = False

    def stop(self) -> None:
        self._stopping.set()

    async def begin(self) -> None:
        """Return once Redis has been seen to be fit, and the bucket too unless it is away. Raises BadSettings."""
        while not await self._seen(None):
            await self._pause()
        self._known = await self._seen(self._bucket)

    async def run(self) -> None:
        """Raises BadSettings."""
        while not self._known and not self._stopping.is_set():
            await self._pause()
            self._known = await self._seen(self._bucket)

    async def _seen(self, bucket: Bucket | None) -> bool:
        try:
            await preflight(self._loaded, bucket)
        except (RedisError, BucketError) as error:
            log.warning("not known to be fit: %s", type(error).__name__)
            return False
        return True

    async def _pause(self) -> None:
        try:
            await asyncio.wait_for(self._stopping.wait(), ASK_AGAIN_S)
        except TimeoutError:
            return
