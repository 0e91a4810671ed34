"""What a test holds of a rehearsal: the provider with its clock, and a mailbox for callbacks, on real sockets."""

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import Queue
from typing import Any

import httpx

from deploy.rehearsal.app import build
from deploy.rehearsal.control import Control
from deploy.rehearsal.journal import Journal
from deploy.rehearsal.server import Server, address, bound

WITHIN_S = 30.0
NO_LATENCY = Control(latency_s=0.0, latency_spread_s=0.0, progress_events=0)
NO_WAIT_S = (0.01, 0.01, 0.01)


@dataclass
class Hands:
    """A clock that a test turns: seconds since 1970."""

    at: float = 1_790_000_000.0

    def __call__(self) -> float:
        return self.at


@dataclass
class Rehearsal:
    """The provider at `url`, and a client of it that knows the key."""

    url: str
    clock: Hands
    base: str = "/flux/v1"
    http: httpx.Client = field(init=False)

    def __post_init__(self) -> None:
        self.http = httpx.Client(
            base_url=self.url, trust_env=False, timeout=WITHIN_S, headers={"Authorization": "Bearer key"}
        )

    def post(self, prompt: str = "a lighthouse", model: str = "flux-pro-1.1", **more: Any) -> httpx.Response:
        sized = {"width": 256, "height": 256} if model.startswith("flux-pro") and "ultra" not in model else {}
        return self.http.post(f"{self.base}/{model}", json={"prompt": prompt} | sized | more)

    def submit(self, prompt: str = "a lighthouse", **more: Any) -> str:
        """The id of a task that was accepted."""
        answer = self.post(prompt, **more)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["id"])

    def poll(self, task: str) -> httpx.Response:
        return self.http.get(f"{self.base}/get_result", params={"id": task})

    def ended(self, prompt: str = "a lighthouse", **more: Any) -> Any:
        """The answer to a poll of a new task that has ended."""
        task = self.submit(prompt, **more)
        self.finish()
        return self.poll(task).json()

    def sample(self, prompt: str = "a lighthouse", **more: Any) -> str:
        """The image URL of a new task."""
        return str(self.ended(prompt, **more)["result"]["sample"])

    def finish(self) -> None:
        self.http.post("/_finish").raise_for_status()

    def turn(self, **knobs: object) -> None:
        answer = self.http.post("/_control", json=knobs)
        assert answer.status_code == 200, answer.text

    def ledger(self, **wanted: str) -> Any:
        return self.http.get("/_ledger", params=wanted).json()


@contextmanager
def playing(clock: Hands, journal: Journal | None = None) -> Iterator[Rehearsal]:
    """A provider in a thread of its own."""
    closing, listening = asyncio.Event(), threading.Event()
    sock = bound("127.0.0.1", 0)
    app = build(NO_LATENCY, address(sock), clock, closing, NO_WAIT_S, journal)
    server = Server(app, closing, listening.set)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
    thread.start()
    assert listening.wait(WITHIN_S)
    provider = Rehearsal(address(sock), clock)
    try:
        yield provider
    finally:
        provider.http.close()
        server.should_exit = True
        thread.join(WITHIN_S)


@dataclass(frozen=True)
class Delivery:
    """A callback as it arrived."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def payload(self) -> Any:
        return json.loads(self.body)


class Mailbox(ThreadingHTTPServer):
    """Takes callbacks. `answers` are given first, one each; afterwards 204."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Taker)
        self.url = f"http://127.0.0.1:{self.server_port}/hook"
        self.arrived: Queue[Delivery] = Queue()
        self.answers: Queue[int] = Queue()

    def next(self) -> Delivery:
        return self.arrived.get(timeout=WITHIN_S)


class _Taker(BaseHTTPRequestHandler):
    server: Mailbox

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        status = 204 if self.server.answers.empty() else self.server.answers.get()
        self.server.arrived.put(Delivery(self.path, {k.lower(): v for k, v in self.headers.items()}, body))
        self.send_response(status)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the base class names it
        pass
