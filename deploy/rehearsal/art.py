"""Four ways to fill a canvas: dunes, paper cuts, silk and orbs. Pure functions of a `random.Random`.

A picture must be worth looking at and cost next to nothing, for the rehearsal shares its cores with what it tests.
So Python never touches a pixel: noise is a handful of random bytes scaled up, colour is a look-up table, and a crisp
edge is a steep ramp over a smooth field. The same `Random` gives the same picture.
"""

from collections.abc import Callable
from math import pi, sin
from random import Random

from PIL import Image, ImageChops, ImageDraw

from deploy.rehearsal import brush
from deploy.rehearsal.brush import BICUBIC, BILINEAR, Colour, Palette, Size, mix

Style = Callable[[Random, Size, Palette], Image.Image]

PALETTES: tuple[str, ...] = (
    "0b132b 1c4672 3a8fb7 f2a65a ffe8c2",  # dusk over water
    "2d1e2f 7a2e4d d1495b edae49 fdf0d5",  # late market
    "10231f 1f5f5b 5fa777 d9c77e faf3dd",  # moss
    "1a1040 4b2e83 b5489b ff8c61 ffe0b5",  # neon evening
    "14213d 3d5a80 98c1d9 ee6c4d e0fbfc",  # harbour
    "2b1a12 7f4f24 c68b59 e9c99b fff4e0",  # clay
    "051923 006494 00a6fb 9bd8f2 f1fbff",  # glacier
    "22181c 5a2a3c ef767a f9b4a4 fff0eb",  # rose
    "0d1f22 264027 6f9283 e3b23c f6eedb",  # mustard field
    "171738 2e1760 3423a6 7180b9 dff3e4",  # ink
)
"""Five colours each, from the darkest to the lightest."""

SHEETS = 6
CRISP = [min(255, max(0, 128 + (level - 128) * 14)) for level in range(256)]
"""Look-up table that makes the edge of a soft mask, once scaled up, two or three pixels wide."""


def paint(rng: Random, size: Size) -> Image.Image:
    """A picture of `size` in RGB: one style, one palette, chosen by `rng`."""
    palette = brush.palette(rng.choice(PALETTES))
    return rng.choice(STYLES)(rng, size, palette)


def dunes(rng: Random, size: Size, palette: Palette) -> Image.Image:
    """A low sun behind ridges that pale with distance; mist lies at the foot of each."""
    height = size[1]
    deep, dark, mid, warm, light = palette
    canvas = brush.vertical(size, (mid, warm, light) if rng.random() < 0.7 else (dark, mid, warm))
    horizon = rng.uniform(0.35, 0.5)
    _sun(rng, canvas, horizon, light)
    layers = rng.randint(5, 7)
    for layer in range(layers):
        near = layer / (layers - 1)
        line = height * (horizon + (1 - horizon) * 0.8 * near**1.2)
        body = mix(mix(mid, light, 0.35), deep, near)
        mist = mix(body, mix(warm, light, 0.5), 0.55 * (1 - near))
        _ridge(rng, canvas, line, height * (0.05 + 0.07 * near), (body, mist))
    return canvas


def paper(rng: Random, size: Size, palette: Palette) -> Image.Image:
    """Sheets of paper cut along the contours of one hill country, each with its shadow on the sheet below."""
    hills = brush.noise(rng, size, cells=3)
    tone, light = Image.new("L", size), Image.new("L", size, 255)
    for sheet in range(1, SHEETS):
        cut = brush.above(hills, 0.1 + 0.8 * sheet / SHEETS)
        light.paste(90, mask=brush.cast(cut).resize(size, BILINEAR))
        edge = cut.resize(size, BICUBIC).point(CRISP)
        light.paste(255, mask=edge)
        tone.paste(255 * sheet // (SHEETS - 1), mask=edge)
    ramp = palette if rng.random() < 0.5 else palette[::-1]
    return ImageChops.multiply(brush.toned(tone, ramp), Image.merge("RGB", (light, light, light)))


def silk(rng: Random, size: Size, palette: Palette) -> Image.Image:
    """Folded cloth: one run of colours over a warped slope, each fold bright at its crest and dark in its crease."""
    folds, sway = rng.uniform(2.0, 4.0), rng.uniform(2.0, 3.5)
    bend, slope = brush.noise(rng, size, cells=2, octaves=2), brush.slope(rng, size)
    height = brush.blend(lambda a: (a["s"] * folds + a["b"] * sway) * 256, s=slope, b=bend)
    turn = brush.wrapped(height.resize(size, BICUBIC))
    tones = palette[1:] if rng.random() < 0.5 else palette[:4]
    cloth = brush.toned(brush.grey(bend).resize(size, BICUBIC), tones)
    shade = turn.point([round(40 + 150 * _fold(level / 255)) for level in range(256)])
    return ImageChops.soft_light(cloth, Image.merge("RGB", (shade, shade, shade)))


def orbs(rng: Random, size: Size, palette: Palette) -> Image.Image:
    """Lit spheres, large behind and small before, over a soft wash."""
    deep, dark, mid, warm, light = palette
    canvas = brush.wash(rng, size, (deep, dark, dark, mix(dark, mid, 0.6)))
    count = rng.randint(6, 10)
    for number in range(count):
        radius = int(min(size) * (0.34 * (1 - number / count) ** 1.4 + 0.03) * rng.uniform(0.75, 1.1))
        centre = (int(size[0] * rng.uniform(0.08, 0.92)), int(size[1] * rng.uniform(0.08, 0.92)))
        _sphere(canvas, centre, max(radius, 2), (light, rng.choice((mid, warm, mix(warm, light, 0.6))), deep))
    return canvas


STYLES: tuple[Style, ...] = (dunes, paper, silk, orbs)


def _ridge(rng: Random, canvas: Image.Image, line: float, rise: float, colours: Palette) -> None:
    """Land below a line of four sines, drawn at twice the size for its edge."""
    width, height = canvas.size
    waves = [(rng.uniform(0.6, 1.4) * 2.1**n, rng.uniform(0, 2 * pi), 0.55**n) for n in range(4)]
    top = min(height - 1, max(0, int(line - rise * sum(strength for _, _, strength in waves))))
    edge = [
        (2 * x, 2 * (line - top - rise * sum(a * sin(2 * pi * f * x / width + p) for f, p, a in waves)))
        for x in range(0, width + 8, 8)
    ]
    mask = Image.new("L", (2 * width, 2 * (height - top)))
    ImageDraw.Draw(mask).polygon([(0, mask.height), *edge, (mask.width, mask.height)], fill=255)
    canvas.paste(brush.vertical((width, height - top), colours), (0, top), mask.reduce(2))


def _sun(rng: Random, canvas: Image.Image, horizon: float, colour: Colour) -> None:
    width, height = canvas.size
    radius = max(1, int(min(width, height) * rng.uniform(0.07, 0.13)))
    x, y = int(width * rng.uniform(0.2, 0.8)), int(height * horizon * rng.uniform(0.55, 0.95))
    canvas.paste(colour, (x - radius * 5, y - radius * 5), brush.glow(radius * 5, 0.55))
    canvas.paste(mix(colour, (255, 255, 255), 0.4), (x - radius, y - radius), brush.disc(radius))


def _fold(turn: float) -> float:
    """Light on a fold of cloth: rises slowly to the crest, falls fast into the crease."""
    return sin(pi / 2 * turn / 0.85) if turn < 0.85 else (1 - turn) / 0.15


def _sphere(canvas: Image.Image, centre: tuple[int, int], radius: int, colours: Palette) -> None:
    """A ball lit from the upper left, with its shadow on whatever is behind it."""
    x, y = centre
    light, body, deep = colours
    reach = radius * 8 // 5
    canvas.paste((0, 0, 0), (x + radius // 3 - reach, y + radius // 3 - reach), brush.glow(reach, 0.9))
    tones = (mix(body, light, 0.75), body, mix(body, deep, 0.3), mix(body, deep, 0.8), deep)
    ball = Image.radial_gradient("L").crop((76, 76, 226, 226)).resize((radius * 2, radius * 2), BICUBIC)
    canvas.paste(brush.toned(ball, tones), (x - radius, y - radius), brush.disc(radius))
