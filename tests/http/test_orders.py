"""How large an order may be, judged before anything else about it."""

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.api.orders import Orders
from service.api.problems import ProblemError
from service.domain.addresses import HostList
from service.domain.rules import Rules

MAX_BYTES = 2_000
NOWHERE = HostList.parse("", any_public=True)
ORDERS = Orders(Rules(frozenset({"flux-own"}), NOWHERE, (), MAX_BYTES, max_input_bytes=10_000))
ORDER = {"model": "flux-dev", "prompt": "a fox"}
TINY = Orders(Rules(frozenset(), NOWHERE, (), max_body_bytes=4, max_input_bytes=8))


def status_of(orders: Orders, body: object) -> int:
    """200 for an order."""
    try:
        orders.understand(body, len(json.dumps(body)), "alice")
    except ProblemError as error:
        return error.status
    return 200


@pytest.mark.parametrize(
    ("more", "status"),
    [
        ({}, 200),
        ({"prompt": "y" * MAX_BYTES}, 413),
        ({"prompt": "y" * MAX_BYTES, "width": 1}, 413),
        ({"prompt": "\ud800" * MAX_BYTES}, 413),
        ({"width": 1}, 422),
        ({"image_prompt": base64.b64encode(bytes(5_000)).decode()}, 200),
        ({"image_prompt": base64.b64encode(bytes(12_000)).decode()}, 413),
        ({"image_prompt": "not base64 " * MAX_BYTES}, 422),
        ({"image_prompt": "https://x.example/" + "y" * MAX_BYTES}, 413),
        ({"model": "flux-own", "image_prompt": "not base64 " * MAX_BYTES}, 413),
    ],
)
def test_size_comes_before_shape(more: dict[str, Any], status: int) -> None:
    assert status_of(ORDERS, ORDER | more) == status


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.sampled_from(["model", "image_prompt"]), inner),
    max_leaves=20,
)


@given(JSON)
def test_every_json_value_has_a_verdict(body: object) -> None:
    assert status_of(TINY, body) in {413, 422}
    assert status_of(ORDERS, body) in {413, 422}
