"""The addresses of names that strangers chose, asked for in threads of their own.

The loop's resolver threads are few (uvloop has four), the provider's name needs one for every POST, and a question to
the system cannot be called off: whoever stops waiting for a slow name leaves its thread behind. So here a name has one
thread, however many wait for it and however often, and all names of a resolver together have `most` of them.
"""

import asyncio
import contextlib
import socket
from collections.abc import Callable, Sequence
from threading import Thread
from typing import Final

LOOKUPS_MOST: Final = 16  # names asked for at once

LookUp = Callable[[str, int], Sequence[str]]


def look_up(host: str, port: int) -> list[str]:
    """Ask the system for the addresses of a host, best first; blocks. OSError when it has none."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


class Resolver:
    """Belongs to one loop. Its threads are daemons: none holds up the end of the process."""

    def __init__(self, look_up: LookUp = look_up, *, most: int = LOOKUPS_MOST) -> None:
        self._look_up = look_up
        self._places = asyncio.Semaphore(most)
        self._lookups: dict[str, asyncio.Future[Sequence[str]]] = {}

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        """Whatever `look_up` returns or raises. Cancelled, the place stays taken until the thread has ended."""
        await self._places.acquire()
        if lookup := self._lookups.get(host):
            self._places.release()
        else:
            lookup = self._begin(host, port)
        return await asyncio.shield(lookup)

    def _begin(self, host: str, port: int) -> asyncio.Future[Sequence[str]]:
        loop = asyncio.get_running_loop()
        lookup = self._lookups[host] = loop.create_future()
        try:
            Thread(target=self._ask, args=(loop, host, port), name="resolver", daemon=True).start()
        except RuntimeError as error:
            self._end(host, OSError(f"no thread: {error}"))
        return lookup

    def _ask(self, loop: asyncio.AbstractEventLoop, host: str, port: int) -> None:
        outcome: Sequence[str] | Exception
        try:
            outcome = self._look_up(host, port)
        except Exception as error:  # noqa: BLE001 it is raised where the answer is awaited
            outcome = error
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(self._end, host, outcome)

    def _end(self, host: str, outcome: Sequence[str] | Exception) -> None:
        lookup = self._lookups.pop(host)
        self._places.release()
        if isinstance(outcome, Exception):
            lookup.set_exception(outcome)
            lookup.exception()  # nobody may wait any more, and asyncio would log that as an error
        else:
            lookup.set_result(outcome)
