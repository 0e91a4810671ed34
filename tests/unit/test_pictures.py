"""The rehearsal's pictures: the size and format asked for, the same bytes for the same request."""

from io import BytesIO
from random import Random

import pytest
from PIL import Image, ImageStat

from deploy.rehearsal.art import PALETTES, STYLES, Style
from deploy.rehearsal.brush import palette
from deploy.rehearsal.pictures import Format, Picture, draw

SMALL = Picture("a lighthouse", 7, 96, 64, "png")


def opened(data: bytes) -> Image.Image:
    image = Image.open(BytesIO(data))
    image.load()
    return image


@pytest.mark.parametrize("form", ["jpeg", "png", "webp"])
@pytest.mark.parametrize(("width", "height"), [(256, 256), (1024, 768), (64, 4096 // 8), (544, 1280)])
def test_a_picture_has_the_format_and_size_asked_for(form: Format, width: int, height: int) -> None:
    image = opened(draw(Picture("harbour", 1, width, height, form)))
    assert (image.format, image.size) == (form.upper(), (width, height))


def test_the_same_request_gives_the_same_bytes() -> None:
    assert draw(SMALL) == draw(SMALL)


def test_another_prompt_or_seed_gives_another_picture() -> None:
    pictures = [Picture(prompt, seed, 96, 64, "png") for prompt in ("a", "b", "") for seed in (0, 1, -1)]
    assert len({draw(picture) for picture in pictures}) == len(pictures)


@pytest.mark.parametrize("style", STYLES)
def test_every_style_holds_for_every_palette_and_odd_sizes(style: Style) -> None:
    for number, names in enumerate(PALETTES):
        for size in ((64, 64), (64, 2048), (2048, 64), (65, 67)):
            assert style(Random(number), size, palette(names)).size == size


@pytest.mark.parametrize("style", STYLES)
def test_no_style_draws_a_blank(style: Style) -> None:
    for seed in range(20):
        picture = style(Random(seed), (128, 96), palette(PALETTES[seed % len(PALETTES)]))
        assert all(low < high for low, high in ImageStat.Stat(picture).extrema), f"seed {seed}"
