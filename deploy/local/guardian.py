"""What outlives the runner: a process that kills the children once the runner is gone, however it went.

A script with two uses, run by path and without site packages (14 ms):

    guardian.py watch           reads lines from stdin: a pid joins, `-pid` has ended and leaves. At the end of the
                                pipe, which is the end of the runner, it kills the process group of each that is left.
    guardian.py join FD argv…   writes its own pid to the pipe FD, then becomes the child. The pipe stays open until
                                that is done, so no child can be missed, whenever the runner dies.

A group also holds what a child has started. prctl's PR_SET_PDEATHSIG would not reach that, is tied to the thread that
forks, and exists on Linux alone.
"""

import os
import signal
import sys
import time
from collections.abc import Iterable
from typing import Final

GONE_WITHIN_S: Final = 2.0
LOOK_EVERY_S: Final = 0.01


def main(arguments: list[str]) -> None:
    if arguments == ["watch"]:
        watch(sys.stdin)
    else:
        join(int(arguments[1]), arguments[2:])


def watch(lines: Iterable[str]) -> None:
    """Returns once every child left is dead: whoever waits for a lock that this process holds may then start anew."""
    groups: set[int] = set()
    for pid in map(int, lines):
        (groups.add if pid > 0 else groups.discard)(abs(pid))
    end = time.monotonic() + GONE_WITHIN_S
    while [group for group in groups if _kill(group)] and time.monotonic() < end:
        time.sleep(LOOK_EVERY_S)


def join(pipe: int, argv: list[str]) -> None:
    os.write(pipe, f"{os.getpid()}\n".encode())
    os.close(pipe)
    os.execve(argv[0], argv, os.environ)  # noqa: S606  the runner's own arguments, no shell


def _kill(group: int) -> bool:
    """Whether somebody was there."""
    try:
        os.killpg(group, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):  # macOS says EPERM of a group of zombies
        return False
    return True


if __name__ == "__main__":
    main(sys.argv[1:])
