"""Room for large bodies. One may be held several times over at once (raw, parsed, decoded): few are taken together."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from starlette.requests import Request

from service.api.guard import declared_bytes
from service.api.problems import ProblemError

LARGE_AT_ONCE: Final = 4
ROOM_WITHIN_S: Final = 5.0
FULL_RETRY_AFTER_S: Final = 5


class Room:
    """One per kind of body. Large: over `small_bytes` by `Content-Length`, or chunked, which may become as large."""

    def __init__(self, small_bytes: int, within_s: float = ROOM_WITHIN_S, places: int = LARGE_AT_ONCE) -> None:
        self._small_bytes = small_bytes
        self._within_s = within_s
        self._places = asyncio.Semaphore(places)

    @asynccontextmanager
    async def place(self, request: Request) -> AsyncIterator[None]:
        """Enter before the body is read, leave once it has been let go. Raises ProblemError 503 after `within_s`.

        Until then its bytes stay with the sender: the server reads 64 KiB ahead and no further.
        """
        if not self._is_large(request):
            yield
            return
        await self._enter()
        try:
            yield
        finally:
            self._places.release()

    async def _enter(self) -> None:
        try:
            async with asyncio.timeout(self._within_s):
                await self._places.acquire()
        except TimeoutError:
            after = {"Retry-After": str(FULL_RETRY_AFTER_S)}
            raise ProblemError(503, "unavailable", "Too many large bodies arrive just now.", headers=after) from None

    def _is_large(self, request: Request) -> bool:
        return "transfer-encoding" in request.headers or declared_bytes(request.scope) > self._small_bytes
