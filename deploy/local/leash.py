"""The runner's children, none of which may outlive it."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from . import child

GUARDIAN: Final = [sys.executable, "-I", "-S", str(Path(__file__).with_name("guardian.py"))]
GUARDIAN_ENDS_WITHIN_S: Final = 5.0


class Leash:
    """Spawns children that are killed when this process ends, by whatever means (deploy/local/guardian.py).

    `held` are descriptors that stay open until the last child is dead: a lock, so that nobody starts beside them.
    """

    def __init__(self, held: Sequence[int] = ()) -> None:
        self._children: dict[int, subprocess.Popen[bytes]] = {}
        self._door = threading.Lock()
        self._closed = False
        self._held = tuple(held)
        self._guardian, self._pipe = self._watch()

    def spawn(self, argv: list[str], log: Path, env: Mapping[str, str]) -> "subprocess.Popen[bytes]":
        """As `child.spawn`, in a process group of its own. StartError once the leash is closed."""
        with self._door:
            if self._closed:
                raise child.StartError(f"{log.stem} is not started: all is being stopped")
            if self._guardian.poll() is not None:
                self._replace()
            with log.open("ab") as output:
                process = subprocess.Popen(
                    [*GUARDIAN, "join", str(self._pipe), *argv],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=env,
                    pass_fds=(self._pipe,),
                    start_new_session=True,
                )
            self._children[process.pid] = process
            return process

    def wait(self, pid: int) -> int:
        """Its return code, once it has ended; what it had left behind is killed. KeyError: waited for before."""
        code = self._children[pid].wait()
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
        with self._door:
            if self._children.pop(pid, None):
                self._tell(-pid)
        return code

    def shut(self) -> None:
        """From now on nothing is spawned."""
        with self._door:
            self._closed = True

    def close(self) -> None:
        """Afterwards no child is left, nor the guardian."""
        self.shut()
        for process in list(self._children.values()):
            process.kill()
            self.wait(process.pid)
        os.close(self._pipe)
        self._guardian.wait(GUARDIAN_ENDS_WITHIN_S)

    def _watch(self) -> tuple["subprocess.Popen[bytes]", int]:
        lines, pipe = os.pipe()
        guardian = subprocess.Popen([*GUARDIAN, "watch"], stdin=lines, start_new_session=True, pass_fds=self._held)
        os.close(lines)
        return guardian, pipe

    def _replace(self) -> None:
        """Somebody killed the guardian: another one learns of the children that there are."""
        os.close(self._pipe)
        self._guardian, self._pipe = self._watch()
        for pid in self._children:
            self._tell(pid)

    def _tell(self, pid: int) -> None:
        with suppress(BrokenPipeError):  # the next spawn replaces a dead guardian
            os.write(self._pipe, f"{pid}\n".encode())
