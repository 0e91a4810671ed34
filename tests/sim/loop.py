"""An event loop whose time is a number: when nothing can run now, it is at once as late as the next timer says.

One thread, no sockets, no executor: whoever asks for one is told so by an exception, and so is everybody of an error in
a callback. What asyncio's own loop does for sockets, threads and debuggers at every turn is left out: it is a third of
a simulation's time.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context, copy_context
from heapq import heappop, heappush
from threading import get_ident
from typing import Any, Final, NoReturn, TypeVar, TypeVarTuple

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

LONGEST_S: Final = 30 * 86_400.0  # no history takes a month


class StuckError(Exception):
    """Nothing is left that could ever happen, and what was waited for has not."""


class _Entry(asyncio.TimerHandle):
    """What is to be called, and in which context; asyncio's own knows how it came to be, too."""

    __slots__ = ()

    def __init__(self, when_s: float, callback: Callable[..., object], args: Any, context: Context | None) -> None:
        self._when = when_s
        self._callback: Callable[..., object] | None = callback
        self._args = args
        self._context = context or copy_context()
        self._cancelled = False

    def cancel(self) -> None:
        self._cancelled = True
        self._callback, self._args = None, ()


class VirtualLoop(asyncio.BaseEventLoop):
    """`time()` begins at 0 and is in seconds. What is due at the same time happens in the order it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self._stopping = False
        self._now: deque[_Entry] = deque()
        self._timers: list[tuple[float, int, _Entry]] = []
        self._asked = 0
        self._home = get_ident()

    def time(self) -> float:
        return self.now_s

    def get_debug(self) -> bool:
        return False

    def call_soon(self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None) -> _Entry:
        entry = _Entry(self.now_s, callback, args, context)
        self._now.append(entry)
        return entry

    def call_later(
        self, delay: float, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> _Entry:
        return self.call_at(self.now_s + delay, callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> _Entry:
        entry = _Entry(when, callback, args, context)
        self._asked += 1
        heappush(self._timers, (when, self._asked, entry))
        return entry

    def _run_once(self) -> None:
        """Turns until somebody stops the loop: all that can run now, then what the time brings."""
        soon, timers = self._now, self._timers
        while not self._stopping:
            while timers and (timers[0][0] <= self.now_s or timers[0][2]._cancelled):
                entry = heappop(timers)[2]
                if not entry._cancelled:
                    soon.append(entry)
            if not soon:
                self._jump()
            for _ in range(len(soon)):
                entry = soon.popleft()
                if entry._callback is not None:
                    entry._context.run(entry._callback, *entry._args)

    def _jump(self) -> None:
        if not self._timers or self.now_s > LONGEST_S:
            raise StuckError(f"at {self.now_s:.0f} s")
        self.now_s = self._timers[0][0]

    def run_in_executor(self, *_: object) -> NoReturn:
        raise AssertionError("a thread was asked for: a simulation has one")

    def call_soon_threadsafe(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> _Entry:
        """Also asked for by what clears away a generator that nobody holds any more."""
        assert get_ident() == self._home, "something came from another thread: a simulation has one"
        return self.call_soon(callback, *args, context=context)


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
