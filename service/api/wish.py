"""What a request to OpenAI's images API asks for, in our words."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from service.domain.catalogue import Order
from service.domain.models import MODELS
from service.domain.parameters import SEED_MAX

IMAGES_MOST: Final = 10  # of one request, as OpenAI has it
DEFAULT_MODEL: Final = "flux-pro-1.1"
# OpenAI's own words that mean nothing to these models, and the values under which that does no harm.
HARMLESS: Final[Mapping[str, frozenset[object]]] = {
    "quality": frozenset({"auto", "standard", "high", "hd", "medium", "low"}),
    "style": frozenset({"vivid", "natural"}),
    "background": frozenset({"auto", "opaque"}),
    "moderation": frozenset({"auto", "low"}),
    "output_compression": frozenset({100}),
    "partial_images": frozenset({0}),
    "stream": frozenset({False}),
}
SIDES: Final = frozenset({"width", "height", "aspect_ratio"})


@dataclass(frozen=True, slots=True)
class Wish:
    """`body`: the order of each of its `count` images. `sized`: the client said `size`, and we made its sides of it.
    `digest`: two requests that ask the same have the same.
    """

    body: dict[str, Any]
    count: int
    inline: bool
    sized: bool
    digest: str

    def param(self, name: str) -> str:
        """What the client calls a field of ours."""
        return "size" if self.sized and name in SIDES else name


class WrongError(Exception):
    """`param` is the field that the client must change."""

    def __init__(self, param: str, detail: str) -> None:
        super().__init__(detail)
        self.param = param
        self.detail = detail


def understand(body: object) -> Wish:
    """OpenAI's words in ours. Total but for WrongError; what remains is checked as any order is."""
    if not isinstance(body, dict):
        raise WrongError("body", "The body should be an object.")
    told = {name: value for name, value in body.items() if value is not None}
    for name, values in HARMLESS.items():
        if name in told and not _among(told.pop(name), values):
            raise WrongError(name, f"'{name}' can only be left out here: these models know no such thing.")
    count = told.pop("n", 1)
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= IMAGES_MOST:
        raise WrongError("n", f"'n' should be 1 to {IMAGES_MOST}.")
    form = told.pop("response_format", "url")
    if form not in ("url", "b64_json"):
        raise WrongError("response_format", "'response_format' should be url or b64_json.")
    sides = _sides(told.pop("size", "auto"), told.setdefault("model", DEFAULT_MODEL))
    told |= sides
    _name_user(told)
    canonical = json.dumps([told, count, form], sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()
    return Wish(told, count, form == "b64_json", bool(sides), digest)


def numbered(order: Order, number: int) -> Order:
    """The order of the image of that number, from 0. With a seed each gets the next one: else all would be the same."""
    seed = order.request.get("seed")
    if number == 0 or not isinstance(seed, int):
        return order
    return replace(order, request=order.request | {"seed": (seed + number) % (SEED_MAX + 1)})


def _name_user(told: dict[str, Any]) -> None:
    """OpenAI's `user` is kept in the job's metadata, beside what the client has there."""
    user, metadata = told.pop("user", None), told.get("metadata", {})
    if user is None:
        return
    if not isinstance(user, str):
        raise WrongError("user", "'user' should be text.")
    if isinstance(metadata, dict):
        told["metadata"] = metadata | {"user": user}


def _sides(size: object, model: object) -> dict[str, Any]:
    """`1024x768` as width and height, or as a ratio for models that take only that; `auto` leaves it to the model."""
    if size == "auto":
        return {}
    width, cross, height = str(size).partition("x")
    if not (cross and width.isascii() and width.isdecimal() and height.isascii() and height.isdecimal()):
        raise WrongError("size", "'size' should be auto, or like 1024x768.")
    if len(width) > 5 or len(height) > 5 or int(width) == 0 or int(height) == 0:
        raise WrongError("size", "'size' is not possible.")
    row = MODELS.get(str(model))
    if row is not None and "width" not in row.parameters:
        divisor = math.gcd(int(width), int(height))
        return {"aspect_ratio": f"{int(width) // divisor}:{int(height) // divisor}"}
    return {"width": int(width), "height": int(height)}


def _among(value: object, values: frozenset[object]) -> bool:
    return isinstance(value, str | int | bool) and value in values
