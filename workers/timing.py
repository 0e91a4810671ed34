"""When to look: polls are placed by what has been learnt of each model, and by how well callbacks arrive.

Callbacks healthy: the first poll comes a little after nearly all images are ready, so that most jobs are never polled.
Without callbacks, or with too many lost: from the median on. Gaps then grow with the time waited, ± 20 %.
"""

import random
from dataclasses import dataclass
from typing import Final

from service.clock import Clock
from service.domain import catalogue
from service.storage.connection import RedisError
from service.storage.store import Store
from service.storage.terms import LOST_SHARE_MOST

SAMPLES_LEAST: Final = 5
CACHE_S: Final = 3.0
GAP_LEAST_S: Final = 0.5
GAP_GROWTH: Final = 0.3  # of the time waited so far
UNKNOWN_SPARE_S: Final = 40.0  # a callback is tried again 1, 5 and 30 s after it failed
UNTAUGHT_SPREAD: Final = 2.5  # 99th percentile over the median, until it is learnt


@dataclass(frozen=True, slots=True)
class Learnt:
    median_s: float
    p99_s: float
    lost_share: float
    taught: bool  # from measurements, not from the catalogue


class Timing:
    """Reads what was learnt at most every `CACHE_S` for a model.

    While Redis is away a first poll is placed by what was known before: it is asked for with an answer of the provider
    in hand, and no fact is dropped for a hint. How long an outcome stays unknown guards the purchase: no guess will do.
    """

    def __init__(self, store: Store, clock: Clock, dice: random.Random, *, callbacks: bool, gap_most_s: float) -> None:
        self._store = store
        self._clock = clock
        self._dice = dice
        self._callbacks = callbacks
        self._gap_most_s = gap_most_s
        self._cached: dict[str, tuple[float, Learnt]] = {}

    async def first_poll_s(self, model: str) -> float:
        """From acceptance to the first poll. Answers while Redis is away, too."""
        try:
            learnt = await self.learnt(model)
        except RedisError:
            learnt = self._remembered(model)
        leans = self._callbacks and learnt.lost_share <= LOST_SHARE_MOST
        wait_s = learnt.p99_s * 1.1 + 1 if leans else learnt.median_s
        return self._jittered(min(wait_s, self._gap_most_s))

    def next_poll_s(self, waited_s: float) -> float:
        """From one poll to the next, `waited_s` after acceptance."""
        return self._jittered(min(max(GAP_LEAST_S, waited_s * GAP_GROWTH), self._gap_most_s))

    async def unknown_wait_s(self, model: str, least_s: float) -> float:
        """How long a callback of an attempt could still come: never less than the model's own slowest, and retries.

        Raises RedisError.
        """
        learnt = await self.learnt(model)
        return max(least_s, learnt.p99_s + UNKNOWN_SPARE_S) if learnt.taught else least_s

    async def learnt(self, model: str) -> Learnt:
        at, cached = self._cached.get(model, (-CACHE_S, None))
        if cached is not None and self._clock.monotonic_s() - at < CACHE_S:
            return cached
        samples = sorted(await self._store.durations(model))
        learnt = _learnt(model, samples, (await self._store.callbacks()).lost_share)
        self._cached[model] = (self._clock.monotonic_s(), learnt)
        return learnt

    def _remembered(self, model: str) -> Learnt:
        """What was read last, however long ago; never read: what the catalogue says."""
        _, cached = self._cached.get(model, (0.0, None))
        return cached or _learnt(model, [], lost_share=0.0)

    def _jittered(self, wait_s: float) -> float:
        return wait_s * self._dice.uniform(0.8, 1.2)


def _learnt(model: str, samples: list[float], lost_share: float) -> Learnt:
    """`samples` in their order, s."""
    taught = len(samples) >= SAMPLES_LEAST
    median = _quantile(samples, 0.5) if taught else catalogue.typical_s(model)
    p99 = _quantile(samples, 0.99) if taught else median * UNTAUGHT_SPREAD
    return Learnt(median, p99, lost_share, taught)


def _quantile(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
