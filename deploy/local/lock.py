"""One runner per data folder."""

import fcntl
import os
import time
from pathlib import Path
from typing import Final

DYING_S: Final = 5.0  # how long the children of a killed runner may hold its lock
LOOK_EVERY_S: Final = 0.02


class Occupied(RuntimeError):
    """Another runner works on this folder; the message says which."""


class Lock:
    """A file locked for as long as its descriptor is open anywhere: here, or in the guardian of our children.

    It says who holds it: pid and address, a line each. The kernel frees it when the holder dies.
    """

    def __init__(self, file: Path) -> None:
        """Raises Occupied: at once if the holder lives, else when its children did not end either."""
        self._file = file
        self.descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
        end = time.monotonic() + DYING_S
        while not self._taken():
            pid, address = self._holder()
            if _lives(pid) or time.monotonic() > end:
                os.close(self.descriptor)
                raise Occupied(f"already running: process {pid} at {address}, on the data in {file.parent}")
            time.sleep(LOOK_EVERY_S)
        self.tell("(starting)")

    def tell(self, address: str) -> None:
        os.truncate(self.descriptor, 0)
        os.pwrite(self.descriptor, f"{os.getpid()}\n{address}\n".encode(), 0)

    def release(self) -> None:
        os.close(self.descriptor)

    def _taken(self) -> bool:
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _holder(self) -> tuple[int, str]:
        """(0, …) while the holder is just writing."""
        pid, address, *_ = [*self._file.read_text().splitlines(), "", ""]
        return int(pid or 0), address


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is another user's
        return True
    return pid > 0
