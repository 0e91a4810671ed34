"""What the styles paint with: noise, ramps, masks and tones, each a handful of calls into Pillow.

A *field* is a small image in mode F (`FIELD_PX` on its longest side): drawn small, scaled up smoothly. A *mask* is in
mode L: 0 leaves the canvas, 255 covers it.
"""

from collections.abc import Callable
from random import Random
from typing import Any

from PIL import Image, ImageDraw, ImageFilter, ImageMath

Size = tuple[int, int]
Colour = tuple[int, int, int]
Palette = tuple[Colour, ...]

BICUBIC = Image.Resampling.BICUBIC
BILINEAR = Image.Resampling.BILINEAR
FIELD_PX = 192


def palette(names: str) -> Palette:
    """Colours from `rrggbb` words."""

    def colour(name: str) -> Colour:
        red, green, blue = bytes.fromhex(name)
        return red, green, blue

    return tuple(colour(name) for name in names.split())


def mix(one: Colour, other: Colour, share: float) -> Colour:
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(one, other, strict=True))
    return red, green, blue


def along(colours: Palette, share: float) -> Colour:
    """The colour `share` (0 to 1) of the way through `colours`."""
    place = share * (len(colours) - 1)
    left = min(int(place), len(colours) - 2)
    return mix(colours[left], colours[left + 1], place - left)


def toned(grey: Image.Image, colours: Palette) -> Image.Image:
    """`grey` (mode L) in colours: 0 is the first of them, 255 the last."""
    tinted = grey.copy()
    tinted.putpalette([part for level in range(256) for part in along(colours, level / 255)])
    return tinted.convert("RGB")


def vertical(size: Size, colours: Palette) -> Image.Image:
    column = Image.new("RGB", (1, len(colours)))
    column.putdata(colours)
    return column.resize((1, size[1]), BICUBIC).resize(size, Image.Resampling.NEAREST)


def wash(rng: Random, size: Size, colours: Palette) -> Image.Image:
    """Twelve spots of colour that run into each other."""
    cells = Image.new("RGB", (4, 3))
    cells.putdata([rng.choice(colours) for _ in range(12)])
    return cells.resize((64, 48), BICUBIC).resize(size, BICUBIC)


def noise(rng: Random, size: Size, cells: int, octaves: int = 3) -> Image.Image:
    """Hills from 0 to 1, as a field for `size`.

    Each octave is a grid of random bytes, scaled up and turned by an angle of its own (else the grid shows),
    twice as fine and less than half as strong as the one before.
    """
    width, height = _field_size(size)
    side = int(1.5 * max(width, height))
    left, top = (side - width) // 2, (side - height) // 2
    total = Image.new("F", (width, height))
    for octave in range(octaves):
        grid = cells * 2**octave + 2
        bumps = Image.frombytes("L", (grid, grid), rng.randbytes(grid * grid)).convert("F")
        layer = bumps.resize((side, side), BICUBIC).rotate(rng.uniform(0, 360), BILINEAR)
        layer = layer.crop((left, top, left + width, top + height))
        total = blend(lambda a, s=0.42**octave: a["t"] + a["l"] * s, t=total, l=layer)
    return _stretched(total)


def slope(rng: Random, size: Size) -> Image.Image:
    """A tilted plane from 0 to 1, as a field for `size`."""
    tilt = rng.uniform(0.2, 0.8)
    ramp = Image.linear_gradient("L")
    across = ramp.rotate(90).convert("F").resize(_field_size(size), BICUBIC)
    down = ramp.convert("F").resize(_field_size(size), BICUBIC)
    return blend(lambda a: (a["x"] * tilt + a["y"] * (1 - tilt)) / 255, x=across, y=down)


def blend(formula: Callable[..., Any], **images: Image.Image) -> Image.Image:
    """`formula` over whole images, named as in the call."""
    result: Image.Image = ImageMath.lambda_eval(formula, **images)
    return result


def grey(field: Image.Image) -> Image.Image:
    return blend(lambda a: a["f"] * 255, f=field).convert("L")


def wrapped(height: Image.Image) -> Image.Image:
    """The remainder of `height` (mode F) by 256, as mode L."""
    return blend(lambda a: a["h"] - a["int"](a["h"] / 256) * 256, h=height).convert("L")


def above(field: Image.Image, level: float) -> Image.Image:
    """A soft mask of where `field` stands above `level`; 128 is the contour itself."""
    return blend(lambda a: (a["f"] - level) * 2000 + 128, f=field).convert("L")


def cast(cut: Image.Image) -> Image.Image:
    """The shadow mask of a sheet lit from the upper left."""
    lean = FIELD_PX // 64
    width, height = cut.size
    fallen = cut.crop((-lean, -lean, width - lean, height - lean)).filter(ImageFilter.GaussianBlur(3))
    return fallen.point([level // 2 for level in range(256)])


def glow(radius: int, strength: float) -> Image.Image:
    """A mask that fades from `strength` (0 to 1) at its middle to nothing at `radius`.

    Pillow's radial gradient is the distance from the middle times the root of two: 181 at the nearest edge.
    """
    fade = [round(255 * strength * max(0.0, 1 - level / 180) ** 1.5) for level in range(256)]
    return Image.radial_gradient("L").point(fade).resize((radius * 2, radius * 2), BICUBIC)


def disc(radius: int) -> Image.Image:
    """A round mask, drawn at twice the size for its edge."""
    mask = Image.new("L", (radius * 4, radius * 4))
    ImageDraw.Draw(mask).ellipse((0, 0, radius * 4 - 1, radius * 4 - 1), fill=255)
    return mask.reduce(2)


def _field_size(size: Size) -> Size:
    scale = FIELD_PX / max(size)
    return max(2, round(size[0] * scale)), max(2, round(size[1] * scale))


def _stretched(field: Image.Image) -> Image.Image:
    low, high = (float(str(end)) for end in field.getextrema())
    return blend(lambda a: (a["f"] - low) / ((high - low) or 1.0), f=field)
