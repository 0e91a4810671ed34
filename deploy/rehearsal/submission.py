"""What may stand in a submission, per family of models: types, ranges and defaults as the provider documents them.

A model that no family claims (an operator may know one that we do not) takes the parameters of FLUX.2.
"""

import json
from math import sqrt
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from deploy.rehearsal.pictures import Format

AREA_MAX_PX = 4 * 1024 * 1024
AUTO_SIDE_PX = 1024

Side = Annotated[int, Field(ge=256, le=1440, multiple_of=32)]
FreeSide = Annotated[int, Field(ge=0, le=AREA_MAX_PX // 64)]


class Submission(BaseModel):
    """The parameters all models share. Unknown fields are ignored, as FastAPI does."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    prompt: str
    seed: int | None = None
    steps: Annotated[int, Field(ge=1, le=50)] | None = None
    guidance: Annotated[float, Field(ge=1.5, le=10)] | None = None
    interval: Annotated[float, Field(ge=1, le=4)] | None = None
    safety_tolerance: Annotated[int, Field(ge=0, le=6)] | None = None
    prompt_upsampling: bool | None = None
    raw: bool | None = None
    image_prompt: str | None = None
    input_image: str | None = None
    output_format: Format | None = None
    webhook_url: Annotated[str, Field(min_length=1, max_length=2083)] | None = None
    webhook_secret: str | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return AUTO_SIDE_PX, AUTO_SIDE_PX

    @property
    def format(self) -> Format:
        return self.output_format or "jpeg"


class Flux1(Submission):
    width: Side = 1024
    height: Side = 768

    @property
    def size(self) -> tuple[int, int]:
        return self.width, self.height


class Flux2(Submission):
    width: FreeSide = 0
    height: FreeSide = 0

    @model_validator(mode="after")
    def _fits(self) -> Self:
        sides = [side for side in (self.width, self.height) if side]
        if any(side < 64 for side in sides) or self.size[0] * self.size[1] > AREA_MAX_PX:
            raise ValueError("width and height are 0 or at least 64, and together at most 4 megapixels")
        return self

    @property
    def size(self) -> tuple[int, int]:
        return self.width or AUTO_SIDE_PX, self.height or AUTO_SIDE_PX


class Ultra(Submission):
    aspect_ratio: Annotated[str, Field(pattern=r"^[1-9]\d?:[1-9]\d?$")] | None = "16:9"

    @model_validator(mode="after")
    def _between(self) -> Self:
        if not 9 / 21 <= self.ratio <= 21 / 9:
            raise ValueError("aspect_ratio is between 21:9 and 9:21")
        return self

    @property
    def ratio(self) -> float:
        across, down = (self.aspect_ratio or "1:1").split(":")
        return int(across) / int(down)

    @property
    def size(self) -> tuple[int, int]:
        return self.sides(AREA_MAX_PX, 32)

    def sides(self, area_px: int, step_px: int) -> tuple[int, int]:
        width, height = sqrt(area_px * self.ratio), sqrt(area_px / self.ratio)
        return round(width / step_px) * step_px, round(height / step_px) * step_px


class Kontext(Ultra):
    aspect_ratio: Annotated[str, Field(pattern=r"^[1-9]\d?:[1-9]\d?$")] | None = None
    width: None = None
    height: None = None

    @property
    def size(self) -> tuple[int, int]:
        return self.sides(AUTO_SIDE_PX**2, 16)

    @property
    def format(self) -> Format:
        return self.output_format or "png"


def family(model: str) -> type[Submission]:
    if "kontext" in model:
        return Kontext
    if model.endswith("ultra"):
        return Ultra
    return Flux1 if model in {"flux-dev", "flux-pro", "flux-pro-1.1"} else Flux2


class InvalidError(ValueError):
    """`detail` is the list FastAPI answers with, status 422."""

    def __init__(self, detail: list[dict[str, Any]]) -> None:
        super().__init__("the submission is not valid")
        self.detail = detail


def parsed(model: str, body: bytes) -> Submission:
    """Total: a Submission, or InvalidError, for every body."""
    try:
        return family(model).model_validate(json.loads(body))
    except ValidationError as wrong:
        raise InvalidError([_fastapi(error) for error in wrong.errors(include_url=False)]) from wrong
    except (ValueError, RecursionError) as wrong:
        detail = {"type": "json_invalid", "loc": ["body", 0], "msg": "JSON decode error", "input": {}}
        raise InvalidError([detail]) from wrong


def _fastapi(error: Any) -> dict[str, Any]:
    return {key: error[key] for key in ("type", "msg", "input")} | {"loc": ["body", *error["loc"]]}
