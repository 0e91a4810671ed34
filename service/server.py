"""The HTTP process.

SIGTERM or Ctrl-C: no new connections, waiters answer and streams end at once, what runs gets CLOSE_WITHIN_S; exit 0.
Settings (or a Redis, or a bucket) that cannot be: a message on standard error, exit 2. The port is taken: exit 3.
"""

import asyncio
import signal
import socket
import sys
from typing import Final

import uvicorn

from service import allocator, logs
from service.api.app import Web, build
from service.api.protocol import DeadlineProtocol
from service.clock import SystemClock
from service.settings import BadSettings, Settings, of_process

CLOSE_WITHIN_S: Final = 5
KEEP_ALIVE_S: Final = 75  # longer than the 60 s for which proxies keep their side open
LISTEN_BACKLOG: Final = 2048


class Server(uvicorn.Server):
    """uvicorn, which tells the streams that it closes before it waits for them."""

    def __init__(self, config: uvicorn.Config, web: Web) -> None:
        super().__init__(config)
        self._web = web

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._web.begin_closing()
        await super().shutdown(sockets)


def configured(settings: Settings, web: Web) -> uvicorn.Config:
    return uvicorn.Config(
        web.app,
        host=settings.host,
        port=settings.port,
        http=DeadlineProtocol,
        loop="uvloop",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=LISTEN_BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=CLOSE_WITHIN_S,
    )


def serve() -> int:
    try:
        settings = of_process("http")
        logs.configure(settings.log_level)
        allocator.return_large_blocks()
        web = build(settings, SystemClock())
        asyncio.run(web.fitness.see_at_start())
    except BadSettings as mistakes:
        sys.stderr.write(f"{mistakes}\n")
        return 2
    serving = Server(configured(settings, web), web)
    # uvicorn raises the signal once more when it has closed; then it lands here, and the exit code stays 0.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, serving.handle_exit)
    serving.run()
    return 0
