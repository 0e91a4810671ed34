"""HTTP/1.1 as a stranger writes it: bytes on a socket, with nothing that a client library would refuse to send."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

ANSWER_WITHIN_S: Final = 20.0
CHUNK_BYTES: Final = 1_000


@dataclass(frozen=True, slots=True)
class Answer:
    """`status` 0: the connection was closed without an answer."""

    status: int
    head: bytes
    body: bytes

    def header(self, name: str) -> str | None:
        lines = (line.partition(b":") for line in self.head.split(b"\r\n")[1:])
        found = [value.strip().decode("latin-1") for key, _, value in lines if key.lower() == name.encode()]
        return found[0] if found else None

    def without(self, *names: str) -> tuple[bytes, bytes]:
        """Its head less these headers, and its body: what two answers are compared by."""
        gone = tuple(f"{name}:".encode() for name in names)
        kept = [line for line in self.head.split(b"\r\n") if not line.lower().startswith(gone)]
        return b"\r\n".join(kept), self.body


NOTHING: Final = Answer(0, b"", b"")


class Wire:
    """One connection, opened again where the server has closed it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.hang_up()

    async def ask(self, request: bytes) -> Answer:
        """Sent whole, then answered. A server that closes while we still write has answered, or refuses to."""
        async with asyncio.timeout(ANSWER_WITHIN_S):
            reader, writer = self._streams or await self._open()
            try:
                writer.write(request)
                answer = await _answer(reader)
            except (ConnectionError, asyncio.IncompleteReadError):
                self.hang_up()
                return NOTHING
        if answer.header("connection") == "close":
            self.hang_up()
        return answer

    async def send(self, part: bytes) -> None:
        """Some bytes, and no wait for an answer."""
        _, writer = self._streams or await self._open()
        writer.write(part)
        await writer.drain()

    def hang_up(self) -> None:
        """By a reset, as a client that dies does."""
        if self._streams:
            self._streams[1].transport.abort()
            self._streams = None

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        return self._streams


def request(
    method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None, *, chunked: bool = False
) -> bytes:
    size = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(body)}"
    lines = [f"{method} {path} HTTP/1.1", "Host: x", size, *(f"{k}: {v}" for k, v in (headers or {}).items())]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + (_chunks(body) if chunked else body)


def _chunks(body: bytes) -> bytes:
    pieces = [body[start : start + CHUNK_BYTES] for start in range(0, len(body), CHUNK_BYTES)]
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


async def _answer(reader: asyncio.StreamReader) -> Answer:
    head = await reader.readuntil(b"\r\n\r\n")
    status = int(head.split(b" ", 2)[1])
    answer = Answer(status, head[:-4], b"")
    length = int(answer.header("content-length") or 0)
    return Answer(status, head[:-4], await reader.readexactly(length))
