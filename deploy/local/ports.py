"""Free TCP ports on loopback."""

import os
import random
import socket
import sys
from collections import deque
from pathlib import Path
from typing import Final

from .files import keep, write

LOOPBACK: Final = "127.0.0.1"
# Below 32768, where Linux begins to hand out the ports of outgoing connections: one of those could take a port
# between our look and the server's bind.
RANGE: Final = range(20_000, 32_768)
TRIES_MAX: Final = 1_000
HELD_MOST: Final = 100  # sockets of one process
_held: Final[deque[int]] = deque()  # descriptors


def is_free(port: int) -> bool:
    """Whether a server could listen here now; connections of the last one that linger (TIME_WAIT) do not count."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
            probe.listen(1)
        except OSError:
            return False
    return True


def free_port(*, offset: int = 0, among: range = RANGE) -> int:
    """A port that nobody listens on, and neither on `port + offset`; on Linux no other caller is given them for now.

    The server that is started on it must set SO_REUSEADDR, as servers do.
    """
    dice = random.SystemRandom()  # seeded tests and forked workers must not draw the same ports
    for _ in range(TRIES_MAX):
        port = dice.choice(among[: len(among) - offset])
        if is_free(port) and _hold(port) and (not offset or (is_free(port + offset) and _hold(port + offset))):
            return port
    raise OSError(f"no free port between {among[0]} and {among[-1]}")


def _hold(port: int) -> bool:
    """Whether the port is ours now. Bound without SO_REUSEADDR, so that one of two callers gets it, and then with it.

    On Linux a server may bind beside a socket that does not listen, if both say so (socket(7)); elsewhere it may not.
    """
    holder = socket.socket()
    try:
        holder.bind((LOOPBACK, port))
    except OSError:
        holder.close()
        return False
    if sys.platform != "linux":
        holder.close()
        return True
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    _held.append(holder.detach())  # until the process ends
    if len(_held) > HELD_MOST:
        os.close(_held.popleft())
    return True


def kept_port(file: Path) -> int:
    """The port of last time, which the file says, if it is free; else another, which it says from now on."""
    port = int(keep(file, lambda: str(free_port())))
    if not is_free(port):
        port = free_port()
        write(file, str(port))
    return port


def free_ports(count: int) -> list[int]:
    """So many different free ports."""
    ports: set[int] = set()
    while len(ports) < count:
        ports.add(free_port())
    return list(ports)
