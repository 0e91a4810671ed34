"""Work that may take longer than the lease it is done under."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, TypeVar

CANCEL_S: Final = 1.0  # for cancelled work to end, before it is cancelled again: redis-py may lose a cancellation

T = TypeVar("T")


async def meanwhile(work: Coroutine[Any, Any, T], renew: Callable[[], Awaitable[object]], gap_s: float) -> T:
    """What the work comes to; until then, `renew` is called after every `gap_s` seconds.

    Raises what either raises. Nothing of the work goes on then, or when whoever waits for it is cancelled.
    """
    working = asyncio.create_task(work)
    try:
        while not (await asyncio.wait({working}, timeout=gap_s))[0]:
            await renew()
        return working.result()
    finally:
        while not working.done():
            working.cancel()
            await asyncio.wait({working}, timeout=CANCEL_S)
