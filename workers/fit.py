"""Are Redis and the bucket fit for the work? Without Redis nothing begins; the bucket may be asked later.

A worker that starts while the bucket is away must work nevertheless: what is ready then is pulled and spooled, or its
URL dies. Nothing can be put meanwhile, and what was wrong with the bucket ends the process when it can be told.

Once both are known, the newest in the one is held against the newest in the other: a Redis that came back from a cut
file, or an old replica that took over, is said so in the log. All of what is wrong with it tells `service fsck`.
"""

import asyncio
import logging
from typing import Final

from service.fsck import unheard_of
from service.preflight import preflight
from service.settings import Settings
from service.storage.bucket import Bucket
from service.storage.connection import RedisError
from service.storage.objects import BucketError
from service.storage.store import Store

ASK_AGAIN_S: Final = 1.0

log = logging.getLogger(__name__)


class Fit:
    """`stop()` ends `run`, which ends by itself once all has been seen to be well."""

    def __init__(self, loaded: Settings, bucket: Bucket, store: Store) -> None:
        self._loaded = loaded
        self._store = store
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
        if not self._stopping.is_set():
            await self._compare()

    async def _compare(self) -> None:
        try:
            lost = await unheard_of(self._store, self._bucket)
        except (RedisError, BucketError) as error:
            log.warning("Redis and the bucket were not compared: %s", type(error).__name__)
            return
        if lost:
            log.error("Redis has forgotten its newest: %d ended jobs are in the bucket alone. Run fsck", len(lost))

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
