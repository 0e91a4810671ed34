"""What strangers may send before a route sees it, over real sockets to a real process (F59-F61)."""

import asyncio
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

ROOT = Path(__file__).parents[2]
ANSWER_WITHIN_S = 30.0
SMALL_BYTES = 100_000  # what guarded.py takes at /small

pytestmark = pytest.mark.processes


@dataclass(frozen=True)
class Server:
    port: int
    process: psutil.Process
    log: Path

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), ANSWER_WITHIN_S)

    def ask(self, sent: bytes) -> "Answer":
        """What comes back until the server closes; asks it to close after the answer."""
        with self.connect() as link:
            link.sendall(sent)
            return Answer.read(link)

    def get(self, path: str, *headers: str) -> "Answer":
        lines = [f"GET {path} HTTP/1.1", "Host: x", "Connection: close", *headers, "", ""]
        return self.ask("\r\n".join(lines).encode())


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @classmethod
    def read(cls, link: socket.socket) -> "Answer":
        raw = b""
        while piece := link.recv(65_536):
            raw += piece
        return cls.parse(raw)

    @classmethod
    def parse(cls, raw: bytes) -> "Answer":
        if not raw:
            return cls(0, {}, b"")
        head, _, body = raw.partition(b"\r\n\r\n")
        status, *lines = head.decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines)
        return cls(int(status.split()[1]), headers, body)

    def problem(self) -> dict[str, Any]:
        assert self.headers["content-type"] == "application/problem+json"
        found: dict[str, Any] = json.loads(self.body)
        assert (found["type"], found["status"]) == ("about:blank", self.status)
        return found


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("guard") / "log"
    command = [sys.executable, "-m", "tests.http.guarded"]
    with log.open("wb") as stderr:
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=stderr)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line, log.read_text()
        yield Server(int(line), psutil.Process(process.pid), log)
    finally:
        process.terminate()
        process.wait(ANSWER_WITHIN_S)
        process.stdout.close()


def head(path: str, *headers: str) -> bytes:
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: x", *headers, "", ""]).encode()


def test_a_body_announced_too_large_is_refused_before_it_is_sent(server: Server) -> None:
    answer = server.ask(head("/small", f"Content-Length: {SMALL_BYTES + 1}"))
    assert answer.status == 413
    assert answer.headers["connection"] == "close"
    assert answer.problem()["code"] == "body_too_large"


def test_a_chunked_body_is_counted(server: Server) -> None:
    def chunked(size_bytes: int) -> bytes:
        return b"%x\r\n%s\r\n0\r\n\r\n" % (size_bytes, b"x" * size_bytes)

    chunks = head("/small", "Transfer-Encoding: chunked", "Connection: close")
    assert server.ask(chunks + chunked(SMALL_BYTES)).status == 200
    answer = server.ask(chunks + chunked(SMALL_BYTES + 1))
    assert (answer.status, answer.problem()["code"]) == (413, "body_too_large")


@pytest.mark.parametrize("framing", ["Content-Length: 300000000", "Transfer-Encoding: chunked"])
@pytest.mark.parametrize("path", ["/count", "/careless"])
def test_a_huge_body_does_not_grow_the_process(server: Server, framing: str, path: str) -> None:
    server.ask(head("/count", "Content-Length: 1000000", "Connection: close") + bytes(1_000_000))  # buffers are there
    before = server.process.memory_info().rss
    peak = 0
    block = b"10000\r\n" + bytes(65_536) + b"\r\n" if "chunked" in framing else bytes(65_536)
    with server.connect() as link:
        link.sendall(head(path, framing))
        try:
            for _ in range(300_000_000 // 65_536):
                link.sendall(block)
                peak = max(peak, server.process.memory_info().rss)
            answer = Answer.read(link)
        except ConnectionError:
            answer = None
    assert peak - before < 4_000_000
    if path == "/count":
        assert answer is not None, "the sender never saw the refusal"
        assert answer.status == 413


def test_a_body_may_be_slow_only_as_long_as_its_deadline(server: Server) -> None:
    with server.connect() as link:
        link.sendall(head("/small", "Content-Length: 10") + b"12345")
        answer = Answer.read(link)
    assert (answer.status, answer.problem()["code"]) == (408, "body_too_slow")
    assert answer.headers["connection"] == "close"


def test_a_head_that_never_ends_is_closed_without_a_word(server: Server) -> None:
    for start in (b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: x\r\n", b"\r\n"):
        assert server.ask(start).status == 0


def test_a_second_head_that_never_ends_is_closed(server: Server) -> None:
    with server.connect() as link:
        link.sendall(b"GET /gone HTTP/1.1\r\nHost: x\r\n\r\nGET /gone HT")
        assert Answer.read(link).status == 409
    with server.connect() as link:
        link.sendall(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\nGET /gone HT")  # the first still runs: it is not cut
        link.settimeout(2.0)
        with pytest.raises(TimeoutError):
            link.recv(1)


def test_empty_lines_do_not_keep_a_connection(server: Server) -> None:
    with server.connect() as link:
        link.sendall(b"GET /gone HTTP/1.1\r\nHost: x\r\n\r\n")
        assert link.recv(65_536)
        assert drip_until_closed(link, b"\r\n")


def drip_until_closed(link: socket.socket, drop: bytes) -> bool:
    """Send a drop five times a second; True once the server has closed."""
    end_s = time.monotonic() + ANSWER_WITHIN_S
    link.settimeout(0.2)
    while time.monotonic() < end_s:
        try:
            link.sendall(drop)
            if not link.recv(65_536):
                return True
        except TimeoutError:
            continue
        except ConnectionError:
            return True
    return False


@pytest.mark.anyio
async def test_dribblers_are_closed_while_the_honest_are_served(server: Server) -> None:
    heads = [dribble(server.port, b"GET / HTTP/1.1\r\nX: ") for _ in range(100)]
    bodies = [dribble(server.port, head("/small", "Content-Length: 50000")) for _ in range(100)]
    tasks = [asyncio.ensure_future(each) for each in heads + bodies]
    served = 0
    while not all(task.done() for task in tasks):
        answer = await asyncio.to_thread(server.get, "/gone")
        assert answer.status == 409
        served += 1
    last = [task.result() for task in tasks]
    assert served > 0
    assert last == [0] * 100 + [408] * 100


async def dribble(port: int, start: bytes) -> int:
    """Send a byte every tenth of a second until the server closes; the status it answered, if any."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    raw = bytearray()
    writer.write(start)
    async with asyncio.timeout(ANSWER_WITHIN_S):
        while not reader.at_eof():
            writer.write(b"x")
            try:
                raw += await asyncio.wait_for(reader.read(65_536), 0.1)
            except TimeoutError:
                continue
            except ConnectionError:
                break
    writer.transport.abort()
    return Answer.parse(bytes(raw)).status


@pytest.mark.parametrize(
    "headers",
    [["X: y"] * 200, ["X: " + "y" * 70_000], [f"X-{n}: " + "y" * 7_000 for n in range(12)]],
    ids=["too many", "one too long", "too long together"],
)
def test_a_head_too_large_is_refused(server: Server, headers: list[str]) -> None:
    answer = server.get("/gone", *headers)
    assert (answer.status, answer.problem()["code"]) == (431, "head_too_large")


def test_a_path_too_long_is_refused(server: Server) -> None:
    assert server.get("/" + "x" * 70_000).status == 431
    assert server.get("/gone?metadata=" + "x" * 50_000).status == 409


def test_a_header_that_never_ends_is_refused_while_it_comes(server: Server) -> None:
    with server.connect() as link:
        link.sendall(b"GET / HTTP/1.1\r\nX: ")
        answer = b""
        for _ in range(10):
            link.sendall(b"y" * 10_000)
            link.settimeout(0.05)
            with suppress(TimeoutError):
                answer = link.recv(65_536)
                break
        link.settimeout(ANSWER_WITHIN_S)
        assert Answer.parse(answer or link.recv(65_536)).status == 431


@pytest.mark.parametrize(
    "sent",
    [
        head("/count", "Content-Length: 5", "Transfer-Encoding: chunked") + b"0\r\n\r\n",
        head("/count", "Content-Length: 5", "Content-Length: 6") + b"12345",
        head("/count", "Content-Length: -5"),
        head("/count", "Content-Length: 99999999999999999999999"),
        head("/count", "Transfer-Encoding: chunked") + b"zz\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\n\r\n",
        b"CONNECT x:1 HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GARBAGE\r\n\r\n",
    ],
)
def test_what_is_no_http_is_answered_400(server: Server, sent: bytes) -> None:
    answer = server.ask(sent)
    assert (answer.status, answer.problem()["code"]) == (400, "bad_request")


def test_pipelined_requests_are_answered_in_order(server: Server) -> None:
    one = head("/small", "Content-Length: 1") + b"1"
    two = head("/small", "Content-Length: 2", "Connection: close") + b"22"
    answer = server.ask(one + two)
    assert answer.body.index(b"1 [") < answer.body.index(b"2 [")


def test_trailers_are_not_headers(server: Server) -> None:
    body = b"1\r\nx\r\n0\r\nAuthorization: Bearer x\r\n\r\n"
    answer = server.ask(head("/count", "Transfer-Encoding: chunked", "Connection: close") + body)
    assert answer.status == 200
    assert b"authorization" not in answer.body


def test_a_client_that_reads_nothing_is_cut_off(server: Server) -> None:
    with server.connect() as link:
        link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        link.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
        assert link.recv(1) == b"H"
        end_s = time.monotonic() + ANSWER_WITHIN_S
        while link.getsockname() in [c.raddr for c in server.process.net_connections("tcp")]:
            assert time.monotonic() < end_s


def test_clients_that_leave_cause_no_error(server: Server) -> None:
    before = server.log.read_text()
    requests = [
        b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n",
        head("/count", "Content-Length: 5000") + b"x",
        b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /wa",
    ]
    for n in range(100):
        with server.connect() as link:
            link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset, not an end
            link.sendall(requests[n % len(requests)])
    assert server.get("/gone").status == 409
    assert server.log.read_text() == before


def test_an_unknown_path_and_a_wrong_method_are_problems(server: Server) -> None:
    assert server.get("/nowhere").problem()["code"] == "not_found"
    answer = server.get("/count")
    assert answer.problem()["code"] == "method_not_allowed"
    assert answer.headers["allow"] == "post"


def test_a_problem_carries_its_fields_and_the_request_id(server: Server) -> None:
    answer = server.get("/gone", "X-Request-ID: r-1._z")
    problem = answer.problem()
    assert problem["title"] == "Conflict"
    assert (problem["request_id"], problem["id"]) == ("r-1._z", "job_1")
    assert problem["errors"] == [{"pointer": "/width", "detail": "\ud800"}]
    assert answer.headers["x-request-id"] == "r-1._z"


@pytest.mark.parametrize("given", ["", "a b", "x" * 65, "<script>", "r\u00e9"])
def test_a_request_id_that_could_harm_is_replaced(server: Server, given: str) -> None:
    answer = server.get("/gone", f"X-Request-ID: {given}")
    assert answer.problem()["request_id"] == answer.headers["x-request-id"] != given
    assert len(answer.headers["x-request-id"]) == 24


def test_redis_away_is_503_and_worth_a_retry(server: Server) -> None:
    answer = server.get("/redis")
    assert (answer.status, answer.problem()["code"], answer.headers["retry-after"]) == (503, "unavailable", "1")
    assert b"canary" not in answer.body
    assert "canary-secret" not in server.log.read_text()


def test_a_bug_is_told_to_the_log_once_and_not_to_the_caller(server: Server) -> None:
    before = len(server.log.read_text())
    answer = server.get("/bug", "X-Request-ID: bug-1")
    assert (answer.status, answer.problem()["code"]) == (500, "internal")
    assert b"canary" not in answer.body
    (line,) = server.log.read_text()[before:].splitlines()
    assert json.loads(line)["error"]["type"] == "LookupError"
    assert json.loads(line)["request_id"] == "bug-1"
