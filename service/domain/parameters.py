"""The kinds of parameters that models take. Each is what pydantic's `create_model` wants: (type, default).

A default is written down for readers of the schema and never filled in: the provider applies its own. What has none
(`None`) may be null in a request too.
"""

from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, Field, StringConstraints
from pydantic_core import PydanticCustomError

from service.domain.inputs import INPUT

PROMPT_CHARS_MAX: Final = 10_000
SEED_MAX: Final = 2**64 - 1
ASPECT_RATIO: Final = r"^[1-9][0-9]{0,3}:[1-9][0-9]{0,3}$"  # W:H; the range is `_in_range`'s

Kind = tuple[Any, Any]


def whole(low: int, high: int, default: int, *, step: int | None = None) -> Kind:
    return Annotated[int, Field(ge=low, le=high, multiple_of=step)], default


def number(low: float, high: float, default: float) -> Kind:
    return Annotated[float, Field(ge=low, le=high)], default


def word(*words: str, default: str) -> Kind:
    return Literal[words], default


def flag(*, default: bool) -> Kind:
    return bool, default


def auto_side(low: int, high: int, step: int) -> Kind:
    """A side in pixels, or 0: the model's own choice."""

    def check(value: int) -> int:
        if 0 < value < low:
            raise PydanticCustomError("side", "Input should be 0 (auto) or at least {low}", {"low": low})
        return value

    shape = {"anyOf": [{"const": 0}, {"minimum": low}], "description": "0 is auto"}
    kind = Annotated[int, Field(ge=0, le=high, multiple_of=step, json_schema_extra=shape), AfterValidator(check)]
    return kind, 0


def aspect_ratio(default: str | None) -> Kind:
    """Without a default, null is the model's own choice."""
    about = Field(description="W:H, from 21:9 to 9:21")
    return (Annotated[_Ratio, about] if default else Annotated[_Ratio | None, about]), default


def _in_range(ratio: str) -> str:
    width, height = map(int, ratio.split(":"))
    if width * 9 > height * 21 or height * 9 > width * 21:
        raise PydanticCustomError("aspect_ratio", "Input should be between 21:9 and 9:21")
    return ratio


_Ratio = Annotated[str, StringConstraints(pattern=ASPECT_RATIO), AfterValidator(_in_range)]

PROMPT: Final[Kind] = (Annotated[str, Field(min_length=1, max_length=PROMPT_CHARS_MAX)], ...)
SEED: Final[Kind] = (Annotated[int, Field(ge=0, le=SEED_MAX)] | None, None)
IMAGE: Final[Kind] = (
    Annotated[
        Annotated[str, Field(min_length=1, json_schema_extra={"pattern": INPUT})] | None,
        Field(description="An http(s) URL, or base64"),
    ],
    None,
)
