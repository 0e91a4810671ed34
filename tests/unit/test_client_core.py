"""The client's own judgement: what strangers' bytes mean, and how long to pause."""

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.client.core import Answer, Lost, Patience, again
from service.client.errors import ServiceError
from service.client.streams import LINE_BYTES_MAX, Events, Lines, Manifest

PATIENCE = Patience(clock=lambda: 0.0, dice=lambda: 1.0)
STREAM = (
    b": heartbeat\n\n"
    b'id: 1-0\r\nevent: job.queued\r\ndata: {"id": "job_1", "status": "queued"}\r\n\r\n'
    b"id: 2-0\nevent: reset\ndata: {}\n\n"
    b'id: 3-0\nevent: job.failed\ndata: {"id": "job_1",\ndata: "status": "failed"}\n\n'
    b"event: job.late\n\n"
)
values = st.recursive(st.none() | st.booleans() | st.text() | st.integers(), lambda v: st.lists(v, max_size=4))


problems = st.dictionaries(st.sampled_from(["code", "detail", "errors", "more_lines"]), values)


@given(st.binary() | problems.map(json.dumps).map(str.encode))
def test_every_refusal_can_be_told(body: bytes) -> None:
    error = ServiceError.of(422, body)
    assert error.code
    assert all(isinstance(each, dict) for each in error.errors)


@given(st.lists(st.integers(0, len(STREAM))))
def test_a_stream_means_the_same_however_it_is_cut_into_pieces(cuts: list[int]) -> None:
    reading = Events("job_1", PATIENCE, None)
    edges = [0, *sorted(cuts), len(STREAM)]
    told = [event for a, b in itertools.pairwise(edges) for event in reading.feed(STREAM[a:b])]
    assert [(event.id, event.type) for event in told] == [
        ("1-0", "job.queued"),
        ("2-0", "reset"),
        ("3-0", "job.failed"),
    ]
    assert reading.over
    assert reading.headers()["Last-Event-ID"] == "3-0"


@given(st.lists(st.binary(max_size=60) | st.sampled_from([b"data: []\n\n", b"data: \xff\n\n", b"id\n", b"data\n\n"])))
def test_no_bytes_of_a_stream_can_raise(pieces: list[bytes]) -> None:
    readings: list[Any] = [Events(None, PATIENCE, None), Manifest("batch_1", PATIENCE)]
    for reading in readings:
        for piece in pieces:
            reading.feed(piece)


def test_a_line_without_end_is_refused() -> None:
    lines = Lines()
    lines.feed(b"x" * LINE_BYTES_MAX)
    with pytest.raises(ServiceError, match="does not end"):
        lines.feed(b"x")


@pytest.mark.parametrize(
    ("header", "gap_s"), [("7", 7.5), ("0", 0.5), ("", 0.5), ("soon", 0.5), ("٣", 0.5), ("9" * 400, 0.5), ("-5", 0.5)]
)
def test_a_pause_is_never_shorter_than_the_service_asks_for(header: str, gap_s: float) -> None:
    assert PATIENCE.gap_s(1, Answer(503, {"retry-after": header}, b"")) == gap_s


def test_gaps_grow_to_a_bound_and_are_jittered_in_full() -> None:
    assert [PATIENCE.gap_s(tries, Lost("cut")) for tries in (1, 2, 3, 4, 5, 6, 999)] == [0.5, 1, 2, 4, 8, 8, 8]
    assert Patience(dice=lambda: 0.0).gap_s(5, Lost("cut")) == 0.0


@pytest.mark.parametrize(
    ("status", "code", "asked"),
    [(200, "", False), (409, "in_progress", True), (409, "idempotency_conflict", False), (422, "", False),
     (429, "", True), (500, "", False), (502, "", True), (503, "", True), (504, "", True)],
)  # fmt: skip
def test_only_what_speaks_of_now_is_asked_again(status: int, code: str, asked: bool) -> None:
    assert again(Answer(status, {}, json.dumps({"code": code}).encode())) is asked
