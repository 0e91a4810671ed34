"""One listening process: binds first, so that image URLs can name the port, and says so once it serves."""

import asyncio
import socket
from collections.abc import Callable

import uvicorn
from starlette.applications import Starlette

from deploy.rehearsal.wire import Protocol

GRACE_S = 1
BACKLOG = 2048


class Server(uvicorn.Server):
    """A uvicorn that tells when it listens, and sets `closing` before it waits for open answers."""

    def __init__(self, app: Starlette, closing: asyncio.Event, listening: Callable[[], None]) -> None:
        config = uvicorn.Config(
            app, http=Protocol, access_log=False, log_level="error", timeout_graceful_shutdown=GRACE_S
        )
        super().__init__(config)
        self._closing, self._listening = closing, listening

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._listening()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._closing.set()
        await super().shutdown(sockets)


def bound(host: str, port: int) -> socket.socket:
    """A socket bound to `host` and `port` (0: any free one). Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def address(sock: socket.socket) -> str:
    """`http://host:port` of a bound socket."""
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
