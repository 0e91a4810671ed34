"""An event loop whose time is a number: when nothing can run now, it is at once as late as the next timer says.

One thread, no sockets, no executor: whoever asks for one is told so by an exception.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final, NoReturn, TypeVar

T = TypeVar("T")

LONGEST_S: Final = 30 * 86_400.0  # no history takes a month


class StuckError(Exception):
    """Nothing is left that could ever happen, and what was waited for has not."""


class _Jump:
    """Stands where asyncio has its selector: to wait for `timeout` is to be that much later."""

    def __init__(self, loop: "VirtualLoop") -> None:
        self._loop = loop

    def select(self, timeout: float | None) -> list[object]:
        if timeout is None or self._loop.time() > LONGEST_S:
            raise StuckError(f"at {self._loop.time():.0f} s")
        self._loop.now_s += timeout
        return []


class VirtualLoop(asyncio.BaseEventLoop):
    """`time()` begins at 0 and is in seconds."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self._selector = _Jump(self)

    def time(self) -> float:
        return self.now_s

    def run_in_executor(self, *_: object) -> NoReturn:
        raise AssertionError("a thread was asked for: a simulation has one")

    def _process_events(self, event_list: list[object]) -> None:
        """There are none."""

    def _write_to_self(self) -> NoReturn:
        raise AssertionError("something came from another thread: a simulation has one")


def run(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """What `main()` returns, in no time. Tasks that it leaves behind are cancelled."""
    loop = VirtualLoop()
    try:
        asyncio.set_event_loop(loop)
        return loop.run_until_complete(main())
    finally:
        _end(loop)
        asyncio.set_event_loop(None)
        loop.close()


def _end(loop: VirtualLoop) -> None:
    left = asyncio.all_tasks(loop)
    for task in left:
        task.cancel()
    loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
