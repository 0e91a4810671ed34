"""Keeps one part of the stack running: a second after it ended, for whatever reason, it starts again."""

import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from subprocess import SubprocessError
from typing import Final, Protocol

from .child import StartError
from .leash import Leash

RESTART_AFTER_S: Final = 1.0
START_DEADLINE_S: Final = 30.0
JOIN_S: Final = 1.0

Say = Callable[[str], None]


class Server(Protocol):
    """What Valkey, Seaweed and Program have in common. A `start` that fails leaves no process."""

    log: Path

    @property
    def pid(self) -> int: ...
    def start(self, deadline_s: float = ...) -> None: ...
    def stop(self, deadline_s: float = ...) -> None: ...


class Keeper:
    """One thread that waits for one process to end. `server` must spawn by `leash`."""

    def __init__(self, name: str, server: Server, leash: Leash, say: Say) -> None:
        self.name = name
        self._server = server
        self._leash = leash
        self._say = say
        self._stopping = threading.Event()
        self._free = threading.Event()
        self._free.set()
        self._running = threading.Condition()
        self._pid = 0
        self._thread = threading.Thread(target=self._keep, name=f"keeper of {name}", daemon=True)

    @property
    def pid(self) -> int:
        """Of the process that was last ready."""
        return self._pid

    def start(self) -> None:
        """Return once the part does its work. StartError: it does not, and is not running."""
        self._server.start(START_DEADLINE_S)
        self._is_ready()
        self._thread.start()

    def stop(self, deadline_s: float) -> None:
        """Afterwards the part is gone for good; what it did not end within the deadline is cut off."""
        self._stopping.set()
        self._free.set()
        self._server.stop(deadline_s)
        if self._thread.is_alive():
            self._thread.join(JOIN_S)

    def kill(self, *, hold: bool = False) -> int:
        """SIGKILL. Returns the pid that was. With `hold` it stays away until `release`."""
        if hold:
            self._free.clear()
        pid = self._pid
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        return pid

    def release(self) -> None:
        self._free.set()

    def await_next(self, pid: int, deadline_s: float) -> int:
        """The pid of the process that does the work after `pid`. TimeoutError."""
        with self._running:
            if self._running.wait_for(lambda: self._pid != pid, deadline_s):
                return self._pid
        raise TimeoutError(f"{self.name} is not back within {deadline_s} s")

    def _keep(self) -> None:
        while not self._stopping.is_set():
            code = self._leash.wait(self._server.pid)
            if self._stopping.is_set():
                return
            self._say(f"{self.name} ended ({_cause(code)}); it starts again in {RESTART_AFTER_S:g} s")
            while not self._stopping.is_set() and not self._revive():
                pass

    def _revive(self) -> bool:
        """Whether it runs again."""
        self._free.wait()
        if self._stopping.wait(RESTART_AFTER_S):
            return False
        try:
            self._server.start(START_DEADLINE_S)
        except (StartError, OSError, SubprocessError) as error:
            with suppress(KeyError):  # it may have failed before it spawned
                self._leash.wait(self._server.pid)
            if not self._stopping.is_set():
                self._say(f"{self.name} does not start: {error}")
            return False
        self._is_ready()
        self._say(f"{self.name} is back")
        return True

    def _is_ready(self) -> None:
        with self._running:
            self._pid = self._server.pid
            self._running.notify_all()


def _cause(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"
