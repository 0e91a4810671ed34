"""When to try again: the one place where waits between tries are decided. Clients, redis-py and boto3 never retry."""

import random
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Backoff:
    """Full jitter: a wait between `floor_s` and `base_s` · 2ⁿ, at most `cap_s`; all of them are equally likely.

    The jitter is whole on purpose: jobs that failed together must not come back together, nor at the floor.
    """

    base_s: float
    cap_s: float
    floor_s: float = 0.2

    def wait_s(self, tries: int, dice: random.Random) -> float:
        """The wait before try number `tries` + 1, tries counted from 0."""
        top = min(self.cap_s, self.base_s * 2 ** min(tries, 20))
        return dice.uniform(self.floor_s, max(self.floor_s, top))


@dataclass(frozen=True, slots=True)
class Steps:
    """Waits that are set out one by one; after the last it stays at that. Each is off by ± `jitter`, a share of it."""

    waits_s: tuple[float, ...]
    jitter: float

    def wait_s(self, tries: int, dice: random.Random) -> float:
        """The wait before try number `tries` + 1, tries counted from 0."""
        wait_s = self.waits_s[min(tries, len(self.waits_s) - 1)]
        return wait_s * dice.uniform(1 - self.jitter, 1 + self.jitter)


SUBMISSIONS_MOST: Final = 4  # surely refused ones, of one job, while others get through
# The first wait lasts for several rounds of the sweep, which is what they come back in: with 2 s most came in one.
SUBMIT: Final = Backoff(base_s=4.0, cap_s=60.0, floor_s=0.5)
PULLS_MOST: Final = 3  # broken images, of one job
PULL: Final = Backoff(base_s=1.0, cap_s=15.0)  # a URL lives ten minutes: no wait may eat much of that
STORE: Final = Backoff(base_s=1.0, cap_s=15.0)
SPOOLED: Final = Backoff(base_s=3.0, cap_s=3.0, floor_s=0.5)  # safe on disk, and done soon after an outage
THROTTLED_S: Final = 2.0  # a 429 that does not say how long
REDIS_PATIENCE_S: Final = 120.0  # how long a step keeps a fact in hand while Redis is away
# A receiver that is being deployed, restarted, repaired, on holiday: some fifteen tries in 72 h.
NOTIFY: Final = Steps((5, 30, 120, 600, 1800, 3600, 7200, 14400, 28800, 43200), jitter=0.2)
NOTIFY_ASKED_S_MOST: Final = 12 * 3600.0  # a receiver's Retry-After that asks for more is cut to this
NOTIFY_LATER: Final = Backoff(base_s=4.0, cap_s=4.0, floor_s=1.0)  # the bucket is away, or its host has enough to do
