"""A server of the embedded stack as a child process: how it is spawned, awaited and ended."""

import os
import subprocess
import time
from collections.abc import Callable, Mapping
from importlib.metadata import distribution
from pathlib import Path
from typing import Final

# (argv, log file, environment) → the server's own process. A runner passes its own to know its children.
Spawn = Callable[[list[str], Path, Mapping[str, str]], "subprocess.Popen[bytes]"]

STOP_DEADLINE_S: Final = 10.0
LOOK_EVERY_S: Final = 0.02
LOG_TAIL_BYTES: Final = 2_000


class StartError(RuntimeError):
    """The server ended, or did not answer in time; the message carries the end of its log."""


def spawn(argv: list[str], log: Path, env: Mapping[str, str]) -> "subprocess.Popen[bytes]":
    """Start a child that logs there. A Ctrl-C at the terminal does not reach it: who starts it stops it."""
    with log.open("ab") as output:
        return subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=env, start_new_session=True
        )


def binary(package: str, name: str) -> str:
    """A server's own binary in an installed package: no wrapper, so that the child's pid is the server's."""
    files = distribution(package).files or []
    return next(str(Path(str(file.locate())).resolve()) for file in files if file.name == name)


def bare_env(home: Path) -> dict[str, str]:
    """PATH and HOME alone: servers read settings and credentials out of the variables and the home they are given."""
    return {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(home)}


def await_ready(process: "subprocess.Popen[bytes]", answers: Callable[[], bool], log: Path, deadline_s: float) -> None:
    """Return once `answers()`; StartError if the process ends first or the deadline passes."""
    end = time.monotonic() + deadline_s
    while not answers():
        if process.poll() is not None:
            raise StartError(f"{log.stem} ended with {process.returncode}: {_tail(log)}")
        if time.monotonic() > end:
            raise StartError(f"{log.stem} did not answer within {deadline_s} s: {_tail(log)}")
        time.sleep(LOOK_EVERY_S)


def halt(process: "subprocess.Popen[bytes]", deadline_s: float = STOP_DEADLINE_S) -> None:
    """SIGTERM, then SIGKILL once the deadline has passed. Afterwards the process is gone and reaped."""
    process.terminate()
    try:
        process.wait(deadline_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(deadline_s)


def _tail(log: Path) -> str:
    return log.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace").strip() if log.exists() else "(no log)"
