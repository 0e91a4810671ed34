"""The models that Flux offers: one row each, after the provider's documentation (November 2026)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from service.domain.parameters import IMAGE, PROMPT, SEED, Kind, aspect_ratio, auto_side, flag, number, whole, word

FLUX_2_PIXELS_MAX: Final = 4 * 1024 * 1024  # "4 MP": 2048 x 2048


@dataclass(frozen=True, slots=True)
class Model:
    """What a request may say, and what the scheduler and the budgets need to know.

    `usd`: price of one image of up to 1 MP (FLUX.2 costs more above). `typical_s`: places first polls until durations
    have been learnt. `cap`: provider tasks outstanding at once, where the model has a smaller cap than the account.
    """

    parameters: Mapping[str, Kind]
    usd: float
    typical_s: float
    cap: int | None = None
    pixels_max: int | None = None

    @property
    def input_images(self) -> tuple[str, ...]:
        return tuple(name for name, kind in self.parameters.items() if kind is IMAGE)


def _images(count: int) -> dict[str, Kind]:
    """`input_image`, `input_image_2` … `input_image_{count}`."""
    return {"input_image" if n == 1 else f"input_image_{n}": IMAGE for n in range(1, count + 1)}


_FORMAT: Final = word("jpeg", "png", "webp", default="jpeg")
_FLUX_1: Final[dict[str, Kind]] = {
    "prompt": PROMPT,
    "prompt_upsampling": flag(default=False),
    "safety_tolerance": whole(0, 6, 2),
    "output_format": _FORMAT,
    "seed": SEED,
}
_SIDES: Final = {"width": whole(256, 1440, 1024, step=32), "height": whole(256, 1440, 768, step=32)}
_KONTEXT: Final = _FLUX_1 | {
    "aspect_ratio": aspect_ratio(None),
    "output_format": word("png", "jpeg", "webp", default="png"),
    **_images(4),
}
_SIDE_2: Final = auto_side(64, FLUX_2_PIXELS_MAX // 64, step=16)
_FLUX_2: Final[dict[str, Kind]] = {
    "prompt": PROMPT,
    "width": _SIDE_2,
    "height": _SIDE_2,
    "safety_tolerance": whole(0, 5, 2),
    "output_format": _FORMAT,
    "seed": SEED,
}

MODELS: Final[Mapping[str, Model]] = {
    "flux-dev": Model(
        _FLUX_1 | _SIDES | {"steps": whole(1, 50, 28), "guidance": number(1.5, 5, 3.0), "image_prompt": IMAGE},
        usd=0.025,
        typical_s=6,
    ),
    "flux-pro": Model(
        _FLUX_1
        | _SIDES
        | {
            "steps": whole(1, 50, 40),
            "guidance": number(1.5, 5, 2.5),
            "interval": whole(1, 4, 2),
            "output_format": word("jpeg", "png", default="jpeg"),
            "image_prompt": IMAGE,
        },
        usd=0.05,
        typical_s=10,
    ),
    "flux-pro-1.1": Model(_FLUX_1 | _SIDES | {"image_prompt": IMAGE}, usd=0.04, typical_s=6),
    "flux-pro-1.1-ultra": Model(
        _FLUX_1
        | {
            "aspect_ratio": aspect_ratio("16:9"),
            "raw": flag(default=False),
            "image_prompt": IMAGE,
            "image_prompt_strength": number(0, 1, 0.1),
        },
        usd=0.06,
        typical_s=10,
    ),
    "flux-kontext-pro": Model(_KONTEXT, usd=0.04, typical_s=8),
    "flux-kontext-max": Model(_KONTEXT, usd=0.08, typical_s=10, cap=6),
    "flux-2-pro": Model(_FLUX_2 | _images(8), usd=0.03, typical_s=40, pixels_max=FLUX_2_PIXELS_MAX),
    "flux-2-max": Model(_FLUX_2 | _images(8), usd=0.07, typical_s=40, pixels_max=FLUX_2_PIXELS_MAX),
    "flux-2-flex": Model(
        _FLUX_2
        | _images(8)
        | {"steps": whole(1, 50, 50), "guidance": number(1.5, 10, 5.0), "prompt_upsampling": flag(default=True)},
        usd=0.05,
        typical_s=40,
        pixels_max=FLUX_2_PIXELS_MAX,
    ),
    "flux-2-klein-4b": Model(_FLUX_2 | _images(4), usd=0.014, typical_s=20, pixels_max=FLUX_2_PIXELS_MAX),
    "flux-2-klein-9b": Model(_FLUX_2 | _images(4), usd=0.015, typical_s=20, pixels_max=FLUX_2_PIXELS_MAX),
}
