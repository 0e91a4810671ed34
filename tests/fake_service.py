"""A server on a real socket that answers as it is told: for what the service itself does not do on demand."""

import json
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Reply:
    """`cut_bytes`: the connection ends after so many bytes of the body."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    cut_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


class FakeService:
    """`script["GET /path"]`: the replies in their order, the last again and again. `asked` is what came."""

    def __init__(self) -> None:
        self.script: defaultdict[str, list[Reply]] = defaultdict(list)
        self.asked: list[Asked] = []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def answer(self, asked: Asked) -> Reply:
        self.asked.append(asked)
        replies = self.script[f"{asked.method} {asked.path.partition('?')[0]}"]
        if not replies:
            return told({"code": "not_found", "detail": "No such thing."}, 404)
        return replies[0] if len(replies) == 1 else replies.pop(0)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def serve(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
                headers = {name.lower(): value for name, value in self.headers.items()}
                reply = fake.answer(Asked(self.command, self.path, headers, body))
                self.send_response(reply.status)
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(reply.body)))
                self.end_headers()
                self.wfile.write(reply.body[: reply.cut_bytes])
                self.close_connection = reply.cut_bytes is not None

            do_GET = do_POST = do_DELETE = serve  # noqa: N815 -- the names that http.server looks for

            def log_message(self, *_: object) -> None:
                """A test says what it has to say itself."""

        return Handler


def told(body: Json, status: int = 200, **headers: str) -> Reply:
    return Reply(status, json.dumps(body).encode(), headers)


@contextmanager
def fake_service() -> Iterator[FakeService]:
    fake = FakeService()
    thread = threading.Thread(target=fake.server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield fake
    finally:
        fake.server.shutdown()
        fake.server.server_close()
        thread.join()
