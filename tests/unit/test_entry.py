"""The judge of RQ entries has a verdict for whatever Redis may hold."""

import json
import zlib
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.entry import CALLBACKS, DATA_BYTES_MAX, UNWANTED, judge

LISTED: Final = ("workers.tasks.submit", "workers.tasks.collect")
CALL: Final = json.dumps(["workers.tasks.submit", None, ["job_1"], {}]).encode()

json_values = st.recursive(
    st.none() | st.booleans() | st.text() | st.integers(), lambda inner: st.lists(inner, max_size=5)
)
fields = st.sampled_from([b"data", b"meta", *CALLBACKS, *UNWANTED]) | st.binary(max_size=8)
blobs = st.binary() | st.binary().map(zlib.compress) | json_values.map(json.dumps).map(str.encode).map(zlib.compress)


@given(st.dictionaries(fields, blobs))
def test_every_hash_has_a_verdict(raw: dict[bytes, bytes]) -> None:
    verdict = judge(raw, LISTED)
    assert verdict.wrong or verdict.name in LISTED


@given(json_values | st.tuples(st.sampled_from(LISTED), json_values, json_values, json_values))
def test_only_a_call_of_a_listed_function_without_an_instance_may_run(call: object) -> None:
    if not judge({b"data": json.dumps(call).encode()}, LISTED).wrong:
        assert isinstance(call, tuple)
        name, instance, args, _ = call
        assert (name in LISTED, instance, type(args)) == (True, None, list)


@pytest.mark.parametrize("data", [CALL, zlib.compress(CALL), zlib.compress(CALL, 9)])
def test_a_listed_call_may_run_plain_or_packed(data: bytes) -> None:
    verdict = judge({b"data": data, b"success_callback_name": b"", b"webhooks": b""}, LISTED)
    assert (verdict.name, verdict.data, verdict.wrong) == (LISTED[0], CALL, "")


@pytest.mark.parametrize("size", range(1, len(zlib.compress(CALL))))
def test_packed_data_cut_anywhere_is_refused(size: int) -> None:
    assert judge({b"data": zlib.compress(CALL)[:size]}, LISTED).wrong


def test_a_listed_callback_may_stay() -> None:
    assert not judge({b"data": CALL, b"failure_callback_name": b"workers.tasks.collect"}, LISTED).wrong
    assert judge({b"data": CALL, b"failure_callback_name": b"os.abort"}, LISTED).wrong == "its callback is not listed"


def test_a_bomb_is_not_inflated_beyond_the_largest_batch() -> None:
    assert judge({b"data": zlib.compress(bytes(DATA_BYTES_MAX + 1))}, LISTED).wrong == "its data is too large or cut"
