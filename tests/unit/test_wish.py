"""What a request in OpenAI's words asks for in ours, and which two ask the same."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.api.wish import HARMLESS, IMAGES_MOST, Wish, WrongError, numbered, understand
from service.domain.catalogue import Order
from service.domain.parameters import SEED_MAX


@pytest.mark.parametrize(
    ("told", "body"),
    [
        ({}, {"model": "flux-pro-1.1"}),
        ({"size": "auto", "n": None, "seed": None}, {"model": "flux-pro-1.1"}),
        ({"size": "1024x768"}, {"model": "flux-pro-1.1", "width": 1024, "height": 768}),
        ({"model": "flux-kontext-pro", "size": "1024x768"}, {"model": "flux-kontext-pro", "aspect_ratio": "4:3"}),
        ({"model": "dall-e-3", "size": "256x256"}, {"model": "dall-e-3", "width": 256, "height": 256}),
        ({"quality": "hd", "style": "vivid", "stream": False, "background": "auto"}, {"model": "flux-pro-1.1"}),
        ({"steps": 20, "output_format": "webp"}, {"model": "flux-pro-1.1", "steps": 20, "output_format": "webp"}),
        (
            {"user": "u-1", "metadata": {"shop": 7}},
            {"model": "flux-pro-1.1", "metadata": {"shop": 7, "user": "u-1"}},
        ),
    ],
)
def test_openais_words_become_ours(told: dict[str, Any], body: dict[str, Any]) -> None:
    assert understand(told | {"prompt": "a heron"}).body == body | {"prompt": "a heron"}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ([], "body"),
        ({"n": 0}, "n"),
        ({"n": 11}, "n"),
        ({"n": True}, "n"),
        ({"n": "2"}, "n"),
        ({"size": "large"}, "size"),
        ({"size": "0x0"}, "size"),
        ({"size": "1024x"}, "size"),
        ({"size": ["1024x768"]}, "size"),
        ({"size": "²x²"}, "size"),
        ({"response_format": "png"}, "response_format"),
        ({"response_format": {}}, "response_format"),
        ({"stream": True}, "stream"),
        ({"background": "transparent"}, "background"),
        ({"quality": {"a": 1}}, "quality"),
        ({"user": {"name": "u"}}, "user"),
    ],
)
def test_what_cannot_be_meant_names_its_field(body: object, param: str) -> None:
    with pytest.raises(WrongError) as caught:
        understand(body)
    assert caught.value.param == param


def test_only_what_asks_the_same_has_the_same_digest() -> None:
    plain = understand({"prompt": "a heron"})
    assert understand({"n": 1, "model": "flux-pro-1.1", "prompt": "a heron", "quality": "auto"}).digest == plain.digest
    others: list[dict[str, Any]] = [
        {"n": 2},
        {"prompt": "a cat"},
        {"seed": 1},
        {"response_format": "b64_json"},
        {"user": "u"},
    ]
    digests = {understand({"prompt": "a heron"} | other).digest for other in others}
    assert len(digests | {plain.digest}) == len(others) + 1


def test_a_field_of_ours_is_called_as_the_client_called_it() -> None:
    assert understand({"size": "17x17"}).param("width") == "size"
    assert understand({"width": 17}).param("width") == "width"
    assert understand({"size": "17x17"}).param("prompt") == "prompt"


def test_several_images_of_one_seed_have_seeds_that_follow_each_other() -> None:
    order = Order("flux-dev", {"prompt": "a heron", "seed": SEED_MAX})
    assert [numbered(order, n).request["seed"] for n in range(3)] == [SEED_MAX, 0, 1]
    free = Order("flux-dev", {"prompt": "a heron"})
    assert numbered(free, 1) == free


KEYS = st.sampled_from(["n", "size", "model", "user", "metadata", "response_format", "prompt", *HARMLESS]) | st.text()
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@given(JSON | st.dictionaries(KEYS, JSON))
def test_every_body_is_a_wish_or_names_its_mistake(body: object) -> None:
    known = ("body", *(body if isinstance(body, dict) else ()))
    wish, mistake = understood(body)
    assert (wish is None) != (mistake is None)
    assert mistake is None or mistake in known
    assert wish is None or ("n" not in wish.body and 1 <= wish.count <= IMAGES_MOST)


def understood(body: object) -> tuple[Wish | None, str | None]:
    try:
        return understand(body), None
    except WrongError as error:
        return None, error.param
