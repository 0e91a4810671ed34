"""`python -m service` as a process of its own, over a Valkey that keeps what it acknowledges, and what it says."""

import base64
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final

import psutil

from deploy.local.child import await_ready, bare_env, halt
from deploy.local.ports import free_port
from deploy.local.program import http_ok
from service.clock import SystemClock
from service.parsers import WebhookKey
from service.storage.bell import Bells
from service.storage.connection import connect, connect_sync
from service.storage.desk import Desk
from service.storage.store import Store
from service.tokens import CallbackKeys
from service.wiring import limits
from tests.serving import KEY, PEOPLE, settings_of

ROOT: Final = Path(__file__).parents[2]
START_WITHIN_S: Final = 20.0
KEYS: Final = CallbackKeys((WebhookKey("k1", base64.b64decode(KEY.partition(":")[2])),))


class HttpProcess:
    """Listens on `port`; whatever it says is in `log`."""

    def __init__(self, port: int, process: "subprocess.Popen[bytes]", log: Path) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.process = psutil.Process(process.pid)
        self._log = log

    @property
    def rss_bytes(self) -> int:
        return int(self.process.memory_info().rss)

    def lines(self) -> list[str]:
        """All that it wrote to standard error and output."""
        return self._log.read_text(errors="replace").splitlines()

    def links_to(self, port: int) -> int:
        """How many TCP connections it has to that port."""
        unconnected = (psutil.CONN_LISTEN, psutil.CONN_CLOSE)
        links = (link for link in self.process.net_connections("tcp") if link.status not in unconnected)
        return sum(link.raddr[1] == port for link in links)


@contextmanager
def serving_process(folder: Path, redis_url: str, **more: str) -> Iterator[HttpProcess]:
    """No bucket and no provider: what is tried here needs neither."""
    port, log = free_port(), folder / "http.log"
    given = {
        "PORT": str(port),
        "REDIS_URL": redis_url,
        "S3_BUCKET": "nowhere",
        "S3_ENDPOINT_URL": "http://127.0.0.1:9",
        "FLUX_API_KEY": "key-of-nobody",
        "API_TOKENS": ",".join(f"{name}:{token}" for name, token in PEOPLE.items()),
        "WEBHOOK_KEYS": KEY,
        "SERVE": "all",
        "LOG_LEVEL": "error",
    }
    with log.open("ab") as output:
        environ = bare_env(folder) | given | more
        argv = [sys.executable, "-m", "service"]
        process = subprocess.Popen(argv, cwd=ROOT, env=environ, stdout=output, stderr=output)
    try:
        await_ready(process, lambda: http_ok(f"http://127.0.0.1:{port}/healthz")(0), log, START_WITHIN_S)
        yield HttpProcess(port, process, log)
    finally:
        halt(process)


@asynccontextmanager
async def desk_at(redis_url: str, **more: str) -> AsyncIterator[Desk]:
    """What a worker would move jobs with."""
    redis, sync = connect(redis_url, timeout_s=5.0), connect_sync(redis_url, timeout_s=5.0)
    try:
        yield Desk(Store(redis, limits(settings_of(redis_url, **more))), Bells(redis, sync), SystemClock())
    finally:
        await redis.aclose()
        sync.close()


def bearer(name: str) -> Mapping[str, str]:
    return {"Authorization": f"Bearer {PEOPLE[name]}"}
