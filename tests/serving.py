"""The HTTP process's own server on a real socket."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import httpx
import uvicorn
from boto3.session import Session  # type: ignore[import-untyped]  # boto3 has no py.typed

from service.api.app import Web, build
from service.clock import SystemClock
from service.domain.events import Event
from service.domain.job import Job
from service.server import Server, configured
from service.settings import Settings, load
from service.storage.bucket import Bucket
from service.storage.desk import Desk
from service.storage.objects import BucketConfig

START_WITHIN_S: Final = 20.0
ASK_WITHIN_S: Final = 20.0
KEY: Final = "k1:MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="
PEOPLE: Final = {"alice": "alice-" + "a" * 32, "bob": "bob-" + "b" * 32, "admin": "admin-" + "c" * 32}
NOWHERE: Final = BucketConfig("nowhere", "http://127.0.0.1:9", connect_timeout_s=0.5, deadline_s=2.0)


class Started(Server):
    """Says when it listens."""

    def __init__(self, config: uvicorn.Config, web: Web) -> None:
        super().__init__(config, web)
        self.listens = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listens.set()


class Serving:
    """`url` of a server that runs in a thread; `stop` does what SIGTERM does."""

    def __init__(self, settings: Settings, bucket: Bucket) -> None:
        self.web = build(settings, SystemClock(), bucket)
        self.server = Started(configured(settings, self.web), self.web)
        self.listener = socket.socket()
        self.listener.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.thread = threading.Thread(target=self.server.run, args=([self.listener],))

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(START_WITHIN_S)
        assert not self.thread.is_alive()


def settings_of(url: str, **more: str) -> Settings:
    given = {
        "REDIS_URL": url,
        "REDIS_CHECKS": "warn",  # the tests' Valkey keeps nothing on disk
        "S3_BUCKET": "nowhere",
        "FLUX_API_KEY": "key-of-nobody",
        "API_TOKENS": ",".join(f"{name}:{token}" for name, token in PEOPLE.items()),
        "WEBHOOK_KEYS": KEY,
        "NOTIFY_SECRETS": "alice:whsec_" + "QUJD" * 10,
        "LOG_LEVEL": "error",
    }
    return load(given | more, role="http")


@contextmanager
def serving(url: str, bucket: Bucket | None = None, **more: str) -> Iterator[Serving]:
    """Without a bucket: one that cannot be reached."""
    nowhere = bucket or Bucket(NOWHERE, Session("key", "secret", region_name="us-east-1"))
    running = Serving(settings_of(url, **more), nowhere)
    running.thread.start()
    try:
        assert running.server.listens.wait(START_WITHIN_S)
        yield running
    finally:
        running.stop()


def person(name: str, url: str) -> httpx.AsyncClient:
    headers = {"Authorization": f"Bearer {PEOPLE[name]}"}
    return httpx.AsyncClient(base_url=url, headers=headers, timeout=ASK_WITHIN_S, trust_env=False)


async def move(desk: Desk, job_id: str, *events: Event) -> Job:
    """Tell the job all this; each must change it."""
    for event in events:
        told = await desk.tell(job_id, event)
        assert told.changed, event
    await desk.drain()
    job = await desk.store.get(job_id)
    assert job
    return job
