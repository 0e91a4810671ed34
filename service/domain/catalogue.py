"""What may be ordered: a caller's JSON becomes an Order, or a list of everything that is wrong with it.

The rows are in `models`; here they become pydantic models, a check that is total for every JSON value, and schemas.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic_core import ErrorDetails, PydanticCustomError

from service.domain.errors import FieldError
from service.domain.inputs import WEB_URL, InputBytes, InputUrl, split_input
from service.domain.job import Priority
from service.domain.models import MODELS, Model
from service.domain.parsing import flaws, pointer

__all__ = [
    "MODELS",
    "UNKNOWN_MODEL",
    "Model",
    "Order",
    "cap",
    "check",
    "input_image_fields",
    "json_schemas",
    "price_usd",
    "schema",
    "typical_s",
]

MODEL_NAME: Final = re.compile(r"[a-z0-9][a-z0-9.-]{0,63}")
METADATA_BYTES_MAX: Final = 16 * 1024
CALLBACK_URL_CHARS_MAX: Final = 2_083
CUSTOM_ID_CHARS_MAX: Final = 255
DEADLINE_S_MAX: Final = 7 * 24 * 3600
UNKNOWN_MODEL: Final = "Unknown model"
ERRORS_MAX: Final = 100  # a body of 256 KiB can hold 40,000 mistakes
TYPICAL_S: Final = 10.0  # of a model that the catalogue does not know

_SET_BY_US: Final = {
    "webhook_url": "Is set by the service; use callback_url to be told",
    "webhook_secret": "Is set by the service",
}
_LINES_ONLY: Final = {"custom_id": "Only the lines of a batch carry one"}


@dataclass(frozen=True, slots=True)
class Order:
    """A request that was checked.

    `request`: what the caller said to the model, unchanged and without defaults, less the images in `inputs`
    (parameter to decoded bytes), which belong in the bucket and not in Redis.
    """

    model: str
    request: dict[str, Any] = field(repr=False)
    priority: Priority = Priority.NORMAL
    callback_url: str | None = field(default=None, repr=False)
    metadata: dict[str, Any] = field(default_factory=dict, repr=False)
    deadline_s: int | None = None
    custom_id: str | None = None
    inputs: dict[str, bytes] = field(default_factory=dict, repr=False)


def _small(metadata: dict[str, Any]) -> dict[str, Any]:
    if len(json.dumps(metadata, ensure_ascii=False, separators=(",", ":")).encode()) > METADATA_BYTES_MAX:
        raise PydanticCustomError("metadata", "Input should be at most 16 KiB as compact JSON")
    return metadata


Metadata = Annotated[dict[str, Any], AfterValidator(_small)]
CallbackUrl = Annotated[str, Field(max_length=CALLBACK_URL_CHARS_MAX, pattern=WEB_URL)]


class _Body(BaseModel):
    """The fields that are the service's own; those of a model come on top."""

    model_config = ConfigDict(strict=True, extra="forbid")

    model: str
    priority: Literal["high", "normal", "low"] = "normal"  # strict mode takes no text for an enum
    callback_url: CallbackUrl | None = None
    metadata: Metadata | None = None
    deadline_s: Annotated[int, Field(ge=1, le=DEADLINE_S_MAX)] | None = None
    custom_id: Annotated[str, Field(min_length=1, max_length=CUSTOM_ID_CHARS_MAX)] | None = None


class _Unchecked(_Body):
    """For a model that only the operator's settings know: its parameters are the provider's to judge."""

    model_config = ConfigDict(extra="allow")

    prompt: str = ""


def _body(name: str, parameters: Mapping[str, Any], base: type[_Body] = _Body) -> type[_Body]:
    fields: dict[str, Any] = {"model": (Literal[name], ...), **parameters}
    return create_model(name, __base__=base, **fields)


_BODIES: Final = {name: _body(name, model.parameters) for name, model in MODELS.items()}
_ALL_INPUT_IMAGES: Final = tuple(dict.fromkeys(name for model in MODELS.values() for name in model.input_images))


def cap(model: str) -> int | None:
    """The model's own limit of provider tasks outstanding at once; None: only the account's counts."""
    row = MODELS.get(model)
    return row.cap if row else None


def typical_s(model: str) -> float:
    """Seconds from acceptance to ready, before anything has been learnt."""
    row = MODELS.get(model)
    return row.typical_s if row else TYPICAL_S


def price_usd(model: str) -> float | None:
    """Price of one image of up to 1 MP; None: not known."""
    row = MODELS.get(model)
    return row.usd if row else None


def input_image_fields(model: str) -> tuple[str, ...]:
    """The parameters that hold an image. For a model not in the catalogue: every name that the others use."""
    row = MODELS.get(model)
    return row.input_images if row else _ALL_INPUT_IMAGES


def schema(model: str, *, allow_custom_id: bool = False) -> dict[str, Any]:
    """JSON Schema 2020-12 of a request to `model`, without `$ref`; any name outside the catalogue is unchecked."""
    shape = _BODIES.get(model) or _body(model, {}, _Unchecked)
    made = shape.model_json_schema()
    if not allow_custom_id:
        made["properties"].pop("custom_id")
    return made


def json_schemas(*, allow_custom_id: bool = False) -> dict[str, Any]:
    """Model name to schema, for the whole catalogue."""
    return {name: schema(name, allow_custom_id=allow_custom_id) for name in MODELS}


def check(
    body: object, *, extra_models: frozenset[str] = frozenset(), allow_custom_id: bool = False
) -> Order | list[FieldError]:
    """An Order, or at most ERRORS_MAX mistakes (never none). Total: no JSON value raises.

    Safe to store afterwards: the order's strings are Unicode, its numbers finite and within 64 bits, its nesting
    bounded. Errors name fields and rules, and never repeat a value.
    """
    if not isinstance(body, dict):
        return [FieldError("", "Input should be an object")]
    # Flaws first: pydantic and json.dumps are only safe with what has none.
    if errors := list(islice(flaws(body), ERRORS_MAX)):
        return errors
    images = _images(body)
    errors = _mistakes(body, extra_models, allow_custom_id) + _image_errors(body, images)
    return errors[:ERRORS_MAX] or _order(body, images)


def _mistakes(body: dict[str, Any], extra_models: frozenset[str], allow_custom_id: bool) -> list[FieldError]:
    refused = _SET_BY_US if allow_custom_id else _SET_BY_US | _LINES_ONLY
    errors = [FieldError(pointer(name), detail) for name, detail in refused.items() if name in body]
    model = body.get("model")
    if isinstance(model, str) and not _known(model, extra_models):
        errors.append(FieldError("/model", f"{UNKNOWN_MODEL}; known are {', '.join((*MODELS, *sorted(extra_models)))}"))
    shape = _BODIES.get(model, _Unchecked) if isinstance(model, str) else _Unchecked
    try:
        shape.model_validate({name: value for name, value in body.items() if name not in refused})
    except ValidationError as error:
        found = error.errors(include_input=False, include_url=False, include_context=False)
        return errors + [_field_error(one) for one in found]
    return errors + _pixel_errors(body)


def _known(model: str, extra_models: frozenset[str]) -> bool:
    return model in MODELS or (model in extra_models and MODEL_NAME.fullmatch(model) is not None)


def _field_error(error: ErrorDetails) -> FieldError:
    detail = "Is no parameter of this model" if error["type"] == "extra_forbidden" else error["msg"]
    return FieldError(pointer(*map(str, error["loc"][:1])), detail)


def _pixel_errors(body: dict[str, Any]) -> list[FieldError]:
    row = MODELS.get(body["model"])
    if row is None or row.pixels_max is None or body.get("width", 0) * body.get("height", 0) <= row.pixels_max:
        return []
    return [FieldError("/width", f"Width times height should be at most {row.pixels_max} pixels")]


def _images(body: dict[str, Any]) -> dict[str, InputUrl | InputBytes | None]:
    """Each input image that is text, decoded once; null is as good as absent, and other types fail elsewhere."""
    given = {name: body.get(name) for name in input_image_fields(str(body.get("model")))}
    return {name: split_input(value) for name, value in given.items() if isinstance(value, str)}


def _image_errors(body: dict[str, Any], images: Mapping[str, InputUrl | InputBytes | None]) -> list[FieldError]:
    bad = [name for name, image in images.items() if image is None and str(body.get("model")) in MODELS]
    return [FieldError(pointer(name), "Input should be an http(s) URL or base64") for name in bad]


def _order(body: dict[str, Any], images: Mapping[str, InputUrl | InputBytes | None]) -> Order:
    inputs = {name: image.content for name, image in images.items() if isinstance(image, InputBytes)}
    apart = _Body.model_fields.keys() | inputs.keys()
    return Order(
        model=body["model"],
        request={name: value for name, value in body.items() if name not in apart},
        priority=Priority(body.get("priority", Priority.NORMAL)),
        callback_url=body.get("callback_url"),
        metadata=body.get("metadata") or {},
        deadline_s=body.get("deadline_s"),
        custom_id=body.get("custom_id"),
        inputs=inputs,
    )
