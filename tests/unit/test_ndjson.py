"""Lines out of pieces: however the bytes are cut, the lines are the same, and none is longer than it may be."""

from collections.abc import AsyncIterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.domain.batch import LINES_MOST
from service.ndjson import Splitter, pour

MAX_BYTES = 8
TEXTS = st.lists(st.binary(max_size=12).map(lambda text: text.replace(b"\n", b"")), max_size=20)


def split(pieces: list[bytes]) -> list[bytes]:
    splitter = Splitter(MAX_BYTES)
    return [line for piece in pieces for line in splitter.feed(piece)] + [*splitter.end()]


@given(TEXTS, st.lists(st.integers(0, 300), max_size=10))
def test_where_the_bytes_are_cut_does_not_matter(texts: list[bytes], cuts: list[int]) -> None:
    body = b"\n".join(texts)
    places = sorted({0, len(body), *(min(cut, len(body)) for cut in cuts)})
    pieces = [body[start:end] for start, end in pairwise(places)]
    wanted = [text[: MAX_BYTES + 1] for text in texts]
    while wanted and empty(wanted[-1]):
        wanted.pop()
    assert split(pieces) == [b"" if empty(line) else line for line in wanted]


def empty(line: bytes) -> bool:
    return len(line) <= MAX_BYTES and not line.strip()


class Counter:
    """A sink that counts."""

    def __init__(self) -> None:
        self.size = 0
        self.breaths = 0

    async def add(self, raw: bytes) -> None:
        self.size += 1

    async def breathe(self) -> None:
        self.breaths += 1


@pytest.mark.anyio
async def test_one_line_more_than_a_batch_may_have_is_enough() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        while True:
            yield b"{}\n" * 1_000

    sink = Counter()
    await pour(pieces(), sink, MAX_BYTES)
    assert sink.size == LINES_MOST + 1


@pytest.mark.anyio
async def test_a_sink_hears_of_bytes_that_are_no_line_yet() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(5):
            yield b"xx"

    sink = Counter()
    await pour(pieces(), sink, MAX_BYTES)
    assert (sink.breaths, sink.size) == (5, 1)
