"""What `/readyz` looks at, each by its name."""

from functools import partial

from service.api.health import Check
from service.preflight import Fitness
from service.settings import Settings
from service.storage.bucket import Bucket
from service.storage.store import Store
from service.storage.terms import LOST_SHARE_MOST


def checks(settings: Settings, store: Store, fitness: Fitness, bucket: Bucket) -> dict[str, Check]:
    """The bucket is looked at by those who serve callers; the receiver of callbacks can do without it."""
    named: dict[str, Check] = {
        "redis": store.writable,
        "configuration": partial(_configuration, settings, fitness),
        "storage": partial(_storage, store),
    }
    if settings.public_base_url is not None:
        named["callbacks"] = partial(_callbacks, store)
    return named | ({"bucket": bucket.check} if "api" in settings.serve else {})


async def _configuration(settings: Settings, fitness: Fitness) -> str | None:
    """What passed at start is not looked at again; what could not be asked then is. What was waved through is said."""
    await fitness.see()
    return None if settings.s3_conditional_writes else "S3_CONDITIONAL_WRITES=off: HEAD before PUT"


async def _storage(store: Store) -> str | None:
    """Never a reason to be unready: what comes in is safe in Redis, and waits; but nothing is bought meanwhile."""
    paused = (await store.figures()).storage_s > 0
    return "submissions pause: images cannot be stored or pulled in time" if paused else None


async def _callbacks(store: Store) -> str | None:
    """Never a reason to be unready, since polls find every image; but somebody should look why they do not come."""
    lost = (await store.callbacks()).lost_share
    return None if lost <= LOST_SHARE_MOST else f"{lost:.0%} of the last callbacks never came; polling makes up for it"
