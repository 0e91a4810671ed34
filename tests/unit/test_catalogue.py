"""What may be ordered: the ranges of every model, the service's own fields, and no raise for any JSON value."""

import base64
import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.domain import catalogue
from service.domain.catalogue import MODELS, Order, check
from service.domain.errors import ErrorCode, FieldError, JobError
from service.domain.inputs import InputBytes, InputUrl, split_input
from service.domain.job import Priority
from service.domain.models import FLUX_2_PIXELS_MAX
from service.domain.parameters import PROMPT_CHARS_MAX
from service.domain.parsing import DEPTH_MAX, NOT_JSON, loads

PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n....").decode()


def a_job(model: object = "flux-pro-1.1", /, **fields: Any) -> dict[str, Any]:
    return {"model": model, "prompt": "a lighthouse at dusk", **fields}


def accepted(body: object, **options: Any) -> Order:
    order = check(body, **options)
    assert isinstance(order, Order), order
    return order


def refused(body: object, **options: Any) -> dict[str, str]:
    errors = check(body, **options)
    assert isinstance(errors, list)
    assert errors
    return {error.pointer: error.detail for error in errors}


@pytest.mark.parametrize("model", MODELS)
def test_every_model_takes_a_prompt_alone_and_gets_no_defaults(model: str) -> None:
    order = accepted(a_job(model))
    assert order.model == model
    assert order.request == {"prompt": "a lighthouse at dusk"}


@pytest.mark.parametrize("model", MODELS)
def test_every_default_in_the_table_is_allowed_by_the_table(model: str) -> None:
    defaults = {name: default for name, (_, default) in MODELS[model].parameters.items() if name != "prompt"}
    assert accepted(a_job(model, **defaults)).request.keys() == defaults.keys() | {"prompt"}


@pytest.mark.parametrize("model", MODELS)
def test_every_model_needs_a_prompt_of_bounded_length(model: str) -> None:
    assert refused({"model": model}) == {"/prompt": "Field required"}
    assert refused(a_job(model, prompt="")).keys() == {"/prompt"}
    assert refused(a_job(model, prompt="é" * (PROMPT_CHARS_MAX + 1))).keys() == {"/prompt"}
    accepted(a_job(model, prompt="é" * PROMPT_CHARS_MAX))


# model, parameter, the values on the edge that pass, those just outside
RANGES: list[tuple[str, str, list[Any], list[Any]]] = [
    ("flux-dev", "width", [256, 1024, 1440], [224, 257, 1472, 1024.0, "1024", True, None]),
    ("flux-dev", "steps", [1, 50], [0, 51, 28.5]),
    ("flux-dev", "guidance", [1.5, 2, 5], [1.4, 5.1, True, math.nan, math.inf]),
    ("flux-dev", "output_format", ["jpeg", "png", "webp"], ["gif", "PNG", None]),
    ("flux-dev", "prompt_upsampling", [True, False], [0, 1, "true", None]),
    ("flux-dev", "seed", [0, 42, 2**64 - 1, None], [-1, 2**64, 1.0, True]),
    ("flux-pro", "interval", [1, 4], [0, 5]),
    ("flux-pro", "output_format", ["jpeg", "png"], ["webp"]),
    ("flux-pro-1.1", "safety_tolerance", [0, 6], [-1, 7]),
    ("flux-pro-1.1", "steps", [], [28]),
    (
        "flux-pro-1.1-ultra",
        "aspect_ratio",
        ["21:9", "16:9", "9:21", "7:3"],
        ["22:9", "9:22", "1:0", "16x9", "٣:٤", None],
    ),
    ("flux-pro-1.1-ultra", "image_prompt_strength", [0, 0.1, 1], [-0.1, 1.1]),
    ("flux-pro-1.1-ultra", "width", [], [1024]),
    ("flux-kontext-pro", "aspect_ratio", ["1:1", None], ["0:1", "1:1\n", ""]),
    ("flux-kontext-pro", "width", [], [1024]),
    ("flux-kontext-max", "input_image_4", [PNG, "https://a.example/x.png", None], ["", "not base64!", 7]),
    ("flux-kontext-max", "input_image_5", [], [PNG]),
    ("flux-2-pro", "width", [0, 64, 2048], [16, 48, 72, -16, 10**30]),
    ("flux-2-pro", "safety_tolerance", [0, 5], [6]),
    ("flux-2-pro", "prompt_upsampling", [], [True]),
    ("flux-2-flex", "guidance", [1.5, 10], [1.4, 10.1]),
    ("flux-2-flex", "prompt_upsampling", [True, False], [1]),
    ("flux-2-max", "input_image_8", [PNG], ["?"]),
    ("flux-2-klein-4b", "input_image_5", [], [PNG]),
]


@pytest.mark.parametrize(("model", "name", "good", "bad"), RANGES)
def test_a_parameter_keeps_to_its_range(model: str, name: str, good: list[Any], bad: list[Any]) -> None:
    for value in good:
        accepted(a_job(model, **{name: value}))
    for value in bad:
        assert refused(a_job(model, **{name: value})).keys() == {f"/{name}"}, value


def test_flux_2_makes_at_most_four_megapixels_and_zero_is_auto() -> None:
    assert FLUX_2_PIXELS_MAX == 2048 * 2048
    accepted(a_job("flux-2-pro", width=2048, height=2048))
    accepted(a_job("flux-2-pro", width=0, height=4096))
    assert refused(a_job("flux-2-pro", width=2048, height=2064)).keys() == {"/width"}


def test_every_mistake_is_named_at_once() -> None:
    wrong = a_job(
        width=1, steps=3, metadata=[], callback_url="ftp://x", image_prompt="no image!", webhook_url="https://x"
    )
    assert refused(wrong).keys() == {f"/{name}" for name in wrong if name not in {"model", "prompt"}}


def test_a_pointer_escapes_as_rfc_6901_says() -> None:
    assert refused(a_job(**{"a/b~c": 1})).keys() == {"/a~1b~0c"}


def test_mistakes_and_pointers_are_bounded() -> None:
    errors = check(a_job(**{f"{n}" + "x" * 300: n for n in range(1_000)}))
    assert isinstance(errors, list)
    assert len(errors) == catalogue.ERRORS_MAX
    assert max(len(error.pointer) for error in errors) <= 200


def test_an_error_never_repeats_a_value() -> None:
    said = refused(a_job(width="hunter2", output_format="hunter2", aspect="hunter2", image_prompt="hunter2 !"))
    assert "hunter2" not in str(said)


def test_the_callback_address_and_secret_are_ours() -> None:
    for name in ("webhook_url", "webhook_secret"):
        assert "set by the service" in refused(a_job(**{name: None}))[f"/{name}"]
        assert refused(a_job("new-1", **{name: "x"}), extra_models=frozenset({"new-1"})).keys() == {f"/{name}"}


def test_the_services_own_fields_are_taken_apart_from_the_models() -> None:
    own = {
        "priority": "high",
        "callback_url": "https://a.example/cb?x=1",
        "metadata": {"a": [1]},
        "deadline_s": 604_800,
    }
    order = accepted(a_job(seed=7, **own))
    assert order.request == {"prompt": "a lighthouse at dusk", "seed": 7}
    assert (order.priority, order.callback_url) == (Priority.HIGH, "https://a.example/cb?x=1")
    assert (order.metadata, order.deadline_s, order.custom_id) == ({"a": [1]}, 604_800, None)
    assert accepted(a_job()).priority is Priority.NORMAL


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("priority", "urgent"),
        ("priority", None),
        ("deadline_s", 0),
        ("deadline_s", 604_801),
        ("deadline_s", True),
        ("callback_url", "https://user:pass@a.example/"),
        ("callback_url", "https://"),
        ("callback_url", "https://a.example/" + "x" * 2_083),
        ("metadata", "text"),
        ("metadata", {"a": "x" * 16_384}),
        ("metadata", {"a": "é" * 8_192}),
    ],
)
def test_the_services_own_fields_are_checked(name: str, value: object) -> None:
    assert refused(a_job(**{name: value})).keys() == {f"/{name}"}
    assert refused(a_job("new-1", **{name: value}), extra_models=frozenset({"new-1"})).keys() == {f"/{name}"}


def test_metadata_may_be_exactly_16_kib() -> None:
    accepted(a_job(metadata={"a": "x" * (16_384 - len('{"a":""}'))}))


def test_only_batch_lines_carry_a_custom_id() -> None:
    assert refused(a_job(custom_id="7")).keys() == {"/custom_id"}
    assert accepted(a_job(custom_id="7"), allow_custom_id=True).custom_id == "7"
    assert refused(a_job(custom_id="x" * 256), allow_custom_id=True).keys() == {"/custom_id"}


def test_an_unknown_model_is_refused_with_the_known_ones() -> None:
    detail = refused(a_job("flux-3"))["/model"]
    assert all(model in detail for model in MODELS)
    assert refused({"prompt": "x"}).keys() == {"/model"}
    odd: list[object] = [None, 7, [], {}, "", "../get_result", "flux-dev\ud800"]
    for model in odd:
        assert "/model" in refused(a_job(model))


def test_the_parameters_of_an_extra_model_pass_unchecked() -> None:
    body = a_job("flux-3", width=7, anything={"deep": [1]}, input_image="not base64!")
    order = accepted(body, extra_models=frozenset({"flux-3"}))
    assert order.request == {name: value for name, value in body.items() if name != "model"}
    assert refused(a_job("flux-3", prompt=7), extra_models=frozenset({"flux-3"})).keys() == {"/prompt"}


def test_an_extra_models_name_that_is_no_path_segment_is_refused() -> None:
    assert refused(a_job("../x"), extra_models=frozenset({"../x"})).keys() == {"/model"}


def test_input_bytes_are_kept_out_of_the_request() -> None:
    body = a_job("flux-2-pro", input_image=PNG, input_image_2="https://a.example/x.png?sig=1")
    order = accepted(body)
    assert order.inputs == {"input_image": base64.b64decode(PNG)}
    assert order.request == {"prompt": body["prompt"], "input_image_2": "https://a.example/x.png?sig=1"}
    extra = accepted(body | {"model": "flux-3"}, extra_models=frozenset({"flux-3"}))
    assert (extra.inputs, extra.request) == (order.inputs, order.request)


def test_an_order_shows_neither_prompt_nor_image_nor_address_when_printed() -> None:
    printed = repr(accepted(a_job(image_prompt=PNG, callback_url="https://a.example/cb", metadata={"k": "v"})))
    assert not any(text in printed for text in ("lighthouse", "PNG", "a.example", "'k'"))


@pytest.mark.parametrize(
    ("value", "verdict"),
    [
        ("https://a.example/x.png", InputUrl("https://a.example/x.png")),
        ("http://a.example", InputUrl("http://a.example")),
        ("https://", None),
        ("https://a b/", None),
        ("https://a.example/" + "x" * 8_192, None),
        ("ftp://a.example/x", None),
        ("YQ==", InputBytes(b"a")),
        ("data:image/png;base64,YQ==", InputBytes(b"a")),
        ("data:image/svg+xml;base64,YQ==", InputBytes(b"a")),
        ("data:text/html;base64,YQ==", None),
        ("data:image/png;base64,", None),
        ("YQ=", None),
        ("YQ==YQ==", None),
        ("Y Q=", None),
        ("YQ\n==", None),
        ("é", None),
        ("\ud800", None),
        ("", None),
    ],
)
def test_an_input_image_is_a_url_or_strict_base64(value: str, verdict: InputUrl | InputBytes | None) -> None:
    assert split_input(value) == verdict


def test_half_a_surrogate_pair_is_refused_and_its_field_named() -> None:
    assert refused(a_job(prompt="a\ud800")).keys() == {"/prompt"}
    assert refused(a_job(metadata={"a": [{"b": "\udfff"}]})).keys() == {"/metadata/a/0/b"}
    assert refused(a_job(metadata={"\ud800": 1})).keys() == {"/metadata"}
    assert refused(a_job(**{"\ud800": 1})).keys() == {""}


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth - 1):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("name", "value"),
    [("steps", 10**5_000), ("guidance", 10**400), ("seed", -(10**5_000)), ("metadata", {"n": 10**5_000}),
     ("metadata", {"x": math.nan}), ("deadline_s", math.inf), ("metadata", {"deep": nested(10_000)})],
    ids=range(7),  # pytest cannot print these values
)  # fmt: skip
def test_numbers_and_depths_that_no_store_holds_are_refused(name: str, value: object) -> None:
    assert all(place.startswith(f"/{name}") for place in refused(a_job("flux-dev", **{name: value})))


def test_a_long_name_above_many_children_costs_little() -> None:
    assert refused(a_job(metadata={"n" * 100_000: [math.nan] * 50_000})).popitem()[0].startswith("/metadata/nnn")


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(), max_size=8)  # surrogates included
    | st.sampled_from([*MODELS, PNG, "https://a.example/", "16:9", 10**400, "high"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(), max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)
NAMES = st.sampled_from(
    [*catalogue.schema("flux-2-flex")["properties"], "webhook_url", "custom_id", "image_prompt", "x"]
)


@settings(deadline=None, max_examples=1_000)
@given(
    body=JSON_VALUES
    | st.dictionaries(NAMES, JSON_VALUES)
    | st.dictionaries(NAMES, JSON_VALUES).map(lambda d: a_job() | d)
)
def test_every_json_value_gets_an_order_or_mistakes(body: object) -> None:
    verdict = check(body, extra_models=frozenset({"x"}), allow_custom_id=True)
    if isinstance(verdict, Order):
        json.dumps(verdict.request | verdict.metadata, ensure_ascii=False, allow_nan=False).encode()
        return
    assert verdict
    for error in verdict:
        assert isinstance(error, FieldError)
        assert error.pointer == "" or error.pointer.startswith("/")
        (error.pointer + error.detail).encode()


@settings(deadline=None, max_examples=1_000)
@given(body=st.binary(max_size=200) | JSON_VALUES.map(lambda value: json.dumps(value).encode()))
def test_every_byte_string_gets_a_value_or_not_json(body: bytes) -> None:
    value = loads(body)
    if value is not NOT_JSON:
        json.dumps(value, allow_nan=False)


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (b"null", None),
        (b'\xef\xbb\xbf{"a": 1}', {"a": 1}),
        (b'{"a": 1, "a": 2}', {"a": 2}),
        (b"[" * DEPTH_MAX + b"]" * DEPTH_MAX, nested(DEPTH_MAX)),
        (b"[" * (DEPTH_MAX + 1) + b"]" * (DEPTH_MAX + 1), NOT_JSON),
        (b"[" * 100_000, NOT_JSON),
        (b"[" * 100_000 + b"]" * 100_000, NOT_JSON),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, NOT_JSON),
        (b"[" + b"[]," * 500 + b"[]]", [[]] * 501),
        (b"", NOT_JSON),
        (b"NaN", NOT_JSON),
        (b"-Infinity", NOT_JSON),
        (b"1e999", NOT_JSON),
        (b"9" * 5_000, NOT_JSON),
        (b'"\xff"', NOT_JSON),
        ('{"a": 1}'.encode("utf-16"), NOT_JSON),
        (b'{"a": 1} x', NOT_JSON),
    ],
)
def test_json_is_read_strictly(body: bytes, value: object) -> None:
    assert loads(body) == value


@pytest.mark.parametrize("model", MODELS)
def test_a_schema_stands_alone_and_names_what_is_allowed(model: str) -> None:
    schema = catalogue.schema(model)
    assert "$ref" not in json.dumps(schema)
    assert schema["additionalProperties"] is False
    assert schema["required"] == ["model", "prompt"]
    assert MODELS[model].parameters.keys() < schema["properties"].keys()
    assert schema["properties"].keys().isdisjoint({"custom_id", "webhook_url", "webhook_secret"})
    assert "custom_id" in catalogue.json_schemas(allow_custom_id=True)[model]["properties"]


def test_the_schema_of_an_extra_model_is_open() -> None:
    schema = catalogue.schema("flux-3")
    assert schema["additionalProperties"] is True
    assert schema["properties"]["model"]["const"] == "flux-3"


def test_what_the_scheduler_and_the_budgets_ask_for() -> None:
    assert {model: catalogue.cap(model) for model in MODELS if catalogue.cap(model)} == {"flux-kontext-max": 6}
    assert (catalogue.typical_s("flux-pro-1.1"), catalogue.typical_s("flux-2-max")) == (6, 40)
    assert (catalogue.price_usd("flux-pro-1.1"), catalogue.price_usd("flux-2-klein-4b")) == (0.04, 0.014)
    assert (catalogue.cap("x"), catalogue.typical_s("x"), catalogue.price_usd("x")) == (None, 10.0, None)
    assert catalogue.input_image_fields("flux-pro-1.1") == ("image_prompt",)
    assert catalogue.input_image_fields("flux-kontext-pro")[::3] == ("input_image", "input_image_4")
    assert set(catalogue.input_image_fields("x")) >= {"image_prompt", "input_image", "input_image_8"}


@pytest.mark.parametrize("code", ErrorCode)
def test_a_job_error_survives_its_record(code: ErrorCode) -> None:
    error = JobError(code, "why", retryable=True)
    assert JobError.from_dict(json.loads(json.dumps(error.to_dict()))) == error


@pytest.mark.parametrize("change", [{"code": "novel"}, {"message": None}, {"retryable": "yes"}])
def test_a_corrupt_job_error_is_not_read(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        JobError.from_dict(JobError(ErrorCode.POISONED, "why", retryable=False).to_dict() | change)
