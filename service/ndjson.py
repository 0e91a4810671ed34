"""NDJSON on its way in: lines out of pieces of bytes, with no more than one line in memory."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Iterator
from contextlib import aclosing
from typing import Final, Protocol

from service.domain.batch import LINES_MOST

FAIR_LINES: Final = 50  # so many are checked in about 5 ms; then others have their turn


class Sink(Protocol):
    """Whoever takes the lines. `size`: how many have come."""

    @property
    def size(self) -> int: ...

    async def add(self, raw: bytes) -> None: ...

    async def breathe(self) -> None:
        """Bytes came that are no line yet."""


class Splitter:
    """Each line without its end. One of more than `max_bytes` comes cut, a byte longer than that.

    An empty line counts as a line, unless nothing but empty ones follow.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._rest = bytearray()
        self._empty = 0

    def feed(self, piece: bytes) -> Iterator[bytes]:
        """The lines that this piece completes."""
        head, *others = piece.split(b"\n")
        self._keep(head)
        for other in others:
            yield from self._line()
            self._keep(other)

    def end(self) -> Iterator[bytes]:
        """The last line, where no newline ends it."""
        yield from self._line()

    def _keep(self, part: bytes) -> None:
        self._rest += part[: self._max_bytes + 1 - len(self._rest)]

    def _line(self) -> Iterator[bytes]:
        line = bytes(self._rest)
        self._rest.clear()
        if len(line) <= self._max_bytes and not line.strip():
            self._empty = min(self._empty + 1, LINES_MOST + 1)  # with more there are too many lines anyway
            return
        for _ in range(self._empty):
            yield b""
        self._empty = 0
        yield line


async def lines(pieces: AsyncIterable[bytes], max_bytes: int) -> AsyncGenerator[bytes | None]:
    """What a Splitter makes of the pieces; None after each piece, when there may have been no line in it.

    However many lines a piece holds, the event loop is not held up by them.
    """
    splitter, count = Splitter(max_bytes), 0
    async for piece in pieces:
        for line in splitter.feed(piece):
            yield line
            count += 1
            if count % FAIR_LINES == 0:
                await asyncio.sleep(0)
        yield None
    for line in splitter.end():
        yield line


async def pour(pieces: AsyncIterable[bytes], sink: Sink, max_line_bytes: int) -> None:
    """Every line goes into the sink, up to one more than a batch may have. Raises what the two raise."""
    async with aclosing(lines(pieces, max_line_bytes)) as found:
        async for line in found:
            await (sink.breathe() if line is None else sink.add(line))
            if sink.size > LINES_MOST:
                return
