"""Before a process takes work: are Redis and the bucket fit for it? What is not, stops the start."""

import logging

from service.settings import BadSettings, Settings
from service.storage import safety
from service.storage.bucket import Bucket
from service.storage.connection import RedisError
from service.storage.objects import BucketError

log = logging.getLogger(__name__)


async def preflight(settings: Settings, bucket: Bucket | None) -> None:
    """Raises BadSettings with all objections; RedisError, BucketError when one of them cannot be asked.

    With `REDIS_CHECKS=warn` what is wrong with Redis is logged instead. A process that needs no bucket has None.
    """
    if settings.budgets:
        log.warning("BUDGETS is set, but not in force in this release")
    redis = await safety.objections(settings.redis_url.reveal())
    if settings.redis_checks == "warn":
        for objection in redis:
            log.warning("unsafe Redis: %s", objection)
        redis = []
    missing = (await bucket.probe()).missing if bucket and settings.s3_conditional_writes else ()
    if mistakes := [*redis, *missing]:
        raise BadSettings(mistakes)


class Fitness:
    """`preflight`, until it was passed once."""

    def __init__(self, settings: Settings, bucket: Bucket | None) -> None:
        self._settings = settings
        self._bucket = bucket
        self._seen = False

    async def see(self) -> None:
        """Raises as `preflight` does."""
        if not self._seen:
            await preflight(self._settings, self._bucket)
            self._seen = True

    async def see_at_start(self) -> None:
        """What cannot be asked now is asked again when somebody looks whether we are ready. Raises BadSettings."""
        try:
            await self.see()
        except (RedisError, BucketError) as error:
            log.warning("not yet known to be fit: %s", type(error).__name__)
