"""A way to the bucket on which some puts hang: all of their bytes are taken, and no answer ever comes.

    with HangingStore(share=0.2) as way:
        way.target = "127.0.0.1:8333"
        … put to way.url …

Which ones is drawn from the key and from how often it has been put, so that it is known before and the same each time.
"""

import http.client
import threading
from collections import Counter
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from zlib import crc32

HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "expect"})
WITHIN_S = 30.0


class HangingStore(ThreadingHTTPServer):
    """`share` of the puts hang while `hanging`. `hung` counts them."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, share: float) -> None:
        super().__init__(("127.0.0.1", 0), _Way)
        self.share, self.target, self.hanging = share, "", False
        self.puts: Counter[str] = Counter()
        self.hung = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def unlucky(self, key: str, number: int = 1) -> bool:
        """Whether put `number` of the key is one that hangs."""
        return crc32(f"{key} {number}".encode()) % 1000 < self.share * 1000

    def hangs(self, path: str) -> bool:
        """A put has come in."""
        key = path.partition("?")[0].split("/", 2)[2]
        with self.lock:
            self.puts[key] += 1
            hangs = self.hanging and self.unlucky(key, self.puts[key])
            self.hung += hangs
        return hangs

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


class _Way(BaseHTTPRequestHandler):
    server: HangingStore
    protocol_version = "HTTP/1.1"
    there: http.client.HTTPConnection | None = None

    def pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        if self.command == "PUT" and self.server.hangs(self.path):
            self.close_connection = True
            with suppress(OSError):
                self.connection.recv(1)  # until whoever waits has had enough
            return
        self.there = self.there or http.client.HTTPConnection(self.server.target, timeout=WITHIN_S)
        try:
            self._answer(*self._asked(self.there, body))
        except (OSError, http.client.HTTPException):
            self.close_connection = True  # the client sees a connection that was cut

    def finish(self) -> None:
        if self.there is not None:
            self.there.close()
        with suppress(OSError):
            super().finish()

    def _asked(self, there: http.client.HTTPConnection, body: bytes) -> tuple[http.client.HTTPResponse, bytes]:
        there.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in HOP:
                there.putheader(name, value)  # `Host` as it came: it is signed
        there.endheaders(body)
        answer = there.getresponse()
        return answer, answer.read()

    def _answer(self, answer: http.client.HTTPResponse, body: bytes) -> None:
        self.send_response_only(answer.status, answer.reason)
        for name, value in answer.getheaders():
            if name.lower() not in HOP | {"content-length"}:
                self.send_header(name, value)
        length = answer.getheader("Content-Length", "0") if self.command == "HEAD" else str(len(body))
        self.send_header("Content-Length", length)
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = pass_on  # noqa: N815 -- names that http.server looks up

    def log_message(self, *_: Any) -> None:
        """A test says what it has to say itself."""
