"""Free TCP ports on loopback."""

import random
import socket
from typing import Final

LOOPBACK: Final = "127.0.0.1"
# Below 32768, where Linux begins to hand out the ports of outgoing connections: one of those could take a port
# between our look and the server's bind.
LOW, HIGH = 20_000, 32_767
TRIES_MAX: Final = 1_000


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


def free_port(*, offset: int = 0) -> int:
    """A port that nobody listens on, and neither on `port + offset`. It is looked at, not held."""
    dice = random.SystemRandom()  # seeded tests and forked workers must not draw the same ports
    for _ in range(TRIES_MAX):
        port = dice.randint(LOW, HIGH - offset)
        if is_free(port) and (not offset or is_free(port + offset)):
            return port
    raise OSError(f"no free port between {LOW} and {HIGH}")


def free_ports(count: int) -> list[int]:
    """So many different free ports."""
    ports: set[int] = set()
    while len(ports) < count:
        ports.add(free_port())
    return list(ports)
