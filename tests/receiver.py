"""A caller's own server, as a notification finds it: on a real socket of loopback."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

WITHIN_S = 30.0


@dataclass(frozen=True)
class Letter:
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Receiver:
    """Answers with `statuses` one after another, with the last of them for ever. `headers` go with each answer."""

    statuses: list[int] = field(default_factory=lambda: [204])
    headers: dict[str, str] = field(default_factory=dict)
    before: Callable[[], None] = lambda: None  # called when a letter has come and before it is answered
    letters: list[Letter] = field(default_factory=list)
    came: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook?token=of-the-caller"

    @property
    def host(self) -> str:
        """As NOTIFY_HOSTS takes it."""
        return f"127.0.0.1:{self.port}"

    def wait(self, count: int = 1) -> None:
        """For so many more letters."""
        for _ in range(count):
            assert self.came.acquire(timeout=WITHIN_S), f"no letter came after {len(self.letters)}"

    def take(self, letter: Letter) -> int:
        self.letters.append(letter)
        self.came.release()
        self.before()
        return self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]


@contextmanager
def receiving(*statuses: int, port: int = 0, **headers: str) -> Iterator[Receiver]:
    receiver = Receiver(list(statuses) or [204], headers)

    class Door(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            status = receiver.take(Letter(self.path, {k.lower(): v for k, v in self.headers.items()}, body))
            try:
                self.send_response(status)
                for name, value in receiver.headers.items():
                    self.send_header(name.replace("_", "-"), value)
                self.send_header("content-length", "0")
                self.end_headers()
            except OSError:  # whoever called is dead by now
                return

        def do_GET(self) -> None:  # a followed redirect would come as one
            self.do_POST()

        def log_message(self, *_: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", port), Door)
    receiver.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield receiver
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
