"""Waiting for a Redis that is away: steps are repeated until it answers, or until the worker stops.

Python 3.11's `asyncio.wait_for`, by which redis-py sends, may lose a cancellation that comes while the bytes leave: the
call just returns. `insist` notices and raises; `cut` cancels until it is heard.
"""

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable
from collections.abc import Set as AbstractSet
from typing import Any, Final, ParamSpec, TypeVar

from service.storage.connection import RedisError

PAUSE_S_MIN: Final = 0.05
PAUSE_S_MAX: Final = 2.0  # between two looks whether Redis is back
CANCEL_S: Final = 1.0  # for a cancelled task to end, before it is cancelled again

P = ParamSpec("P")
T = TypeVar("T")
log = logging.getLogger(__name__)


class Patience:
    """Shared by the steps of one worker, `name`: an outage is logged once when it begins and once when it is over."""

    def __init__(self, name: str) -> None:
        self.stopping = asyncio.Event()
        self._name = name
        self._away = False

    async def insist(self, step: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """What `step` returns once Redis answers. From `stopping` on a step has one try more, and None means given up.

        A step may be done twice, if its answer was lost: it must bear that.
        """
        pause_s = PAUSE_S_MIN
        while True:
            last = self.stopping.is_set()
            try:
                result = await step(*args, **kwargs)
            except RedisError as error:
                self._note(error)
            else:
                self._note(None)
                heed()
                return result
            if last:
                return None
            await self.stops_within(pause_s * random.uniform(0.5, 1))  # noqa: S311 jitter
            pause_s = min(2 * pause_s, PAUSE_S_MAX)

    async def stops_within(self, seconds: float) -> bool:
        """Sleep, and wake early when the worker stops."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.stopping.wait()
        return self.stopping.is_set()

    def _note(self, error: RedisError | None) -> None:
        if error and not self._away:
            log.warning("%s: Redis is away (%s)", self._name, type(error).__name__)
        if self._away and not error:
            log.warning("%s: Redis is back", self._name)
        self._away = error is not None


def heed() -> None:
    """Raise the cancellation that the running task was sent and did not get."""
    task = asyncio.current_task()
    if task and task.cancelling():
        raise asyncio.CancelledError


async def cut(tasks: AbstractSet[asyncio.Future[Any]]) -> None:
    """Cancel `tasks` until all have ended."""
    while tasks:
        for task in tasks:
            task.cancel()
        _, tasks = await asyncio.wait(tasks, timeout=CANCEL_S)
