"""The whole system on embedded parts, in one folder: what `make run` starts, and what tests start on folders of theirs.

with Stack(folder, workers=2, rehearsal=["--latency-s", "0.1"], overrides={"LEASE_S": "2"}) as stack:
    stack.kill("redis")          # it is back after a second, by itself
    httpx.get(f"{stack.url}/readyz")
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from subprocess import SubprocessError
from types import TracebackType
from typing import Final, Protocol, Self

from service.settings import Settings, load

from .child import StartError
from .environment import Addresses, chosen, compose, generated, is_rehearsal
from .files import keep
from .leash import Leash
from .lock import Lock
from .ports import free_port, is_free
from .program import Program, http_ok, serves_a_queue
from .seaweed import Seaweed
from .valkey import Valkey

RESTART_AFTER_S: Final = 1.0
START_DEADLINE_S: Final = 30.0
BACK_DEADLINE_S: Final = 30.0
# Ten seconds in all. Each part may be killed at any moment, so what is not done by then is cut off.
STOP_S: Final = {"http": 4.0, "workers": 3.0}
STOP_OTHERS_S: Final = 0.9


class Server(Protocol):
    """What Valkey, Seaweed and Program have in common."""

    log: Path

    @property
    def pid(self) -> int: ...
    def start(self, deadline_s: float = ...) -> None: ...
    def stop(self, deadline_s: float = ...) -> None: ...
