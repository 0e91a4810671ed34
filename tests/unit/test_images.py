"""A whole PNG, JPEG or WebP is told from everything else, by its bytes alone."""

import gzip
import io
import random
import struct
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow

from workers.images import MAX_PARTS, Image, NotAnImage, inspect

SIGNATURE = b"\x89PNG\r\n\x1a\n"
KIB = 1024


def noise(mode: str = "RGB", width: int = 97, height: int = 61, seed: int = 1) -> Pillow.Image:
    """Draw what does not compress, so that a file has many KiB to be cut in."""
    pixels = random.Random(seed).randbytes(3 * width * height)
    return Pillow.frombytes("RGB", (width, height), pixels).convert(mode)


def encoded(picture: Pillow.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def palette() -> Pillow.Image:
    return noise("L").quantize(7)


def transparent() -> Pillow.Image:
    picture = noise("RGBA")
    picture.putalpha(noise("L"))
    return picture


ICC = random.Random(7).randbytes(70_000)  # longer than one APP2 segment
WHOLE: dict[str, Callable[[], bytes]] = {
    "png-grey": lambda: encoded(noise("L"), "PNG"),
    "png-rgb": lambda: encoded(noise(), "PNG"),
    "png-rgba": lambda: encoded(transparent(), "PNG"),
    "png-grey-alpha": lambda: encoded(noise("LA"), "PNG"),
    "png-palette": lambda: encoded(palette(), "PNG"),
    "png-one-bit": lambda: encoded(noise("1"), "PNG"),
    "png-16-bit": lambda: encoded(noise("L").convert("I;16"), "PNG"),
    "png-profile": lambda: encoded(noise(), "PNG", icc_profile=ICC, dpi=(72, 72)),
    "png-one-colour": lambda: encoded(Pillow.new("RGB", (2048, 2048)), "PNG", compress_level=9),
    "png-uncompressed": lambda: encoded(noise(), "PNG", compress_level=0),
    "jpeg-baseline": lambda: encoded(noise(), "JPEG"),
    "jpeg-progressive": lambda: encoded(noise(), "JPEG", progressive=True, quality=95),
    "jpeg-optimised": lambda: encoded(noise(), "JPEG", optimize=True, subsampling=0),
    "jpeg-grey": lambda: encoded(noise("L"), "JPEG"),
    "jpeg-cmyk": lambda: encoded(noise("CMYK"), "JPEG"),
    "jpeg-restarts": lambda: encoded(noise(), "JPEG", restart_marker_blocks=1),
    "jpeg-profile": lambda: encoded(noise(), "JPEG", icc_profile=ICC, comment=b"drawn"),
    "jpeg-thumbnail-inside": lambda: encoded(noise(), "JPEG", exif=b"Exif\0\0" + encoded(noise("L", 32, 32), "JPEG")),
    "webp-lossy": lambda: encoded(noise(), "WEBP", quality=80),
    "webp-lossless": lambda: encoded(noise(), "WEBP", lossless=True),
    "webp-lossy-alpha": lambda: encoded(transparent(), "WEBP", quality=80),
    "webp-lossless-alpha": lambda: encoded(transparent(), "WEBP", lossless=True),
    "webp-profile": lambda: encoded(noise(), "WEBP", icc_profile=ICC, exif=b"Exif\0\0II*\0"),
}


def chunk(kind: bytes, body: bytes = b"") -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def header(width: int = 8, height: int = 8, depth: int = 8, colour: int = 0) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))


def png(*chunks: bytes, end: bytes = chunk(b"IEND")) -> bytes:
    return SIGNATURE + b"".join(chunks) + end


DATA = chunk(b"IDAT", zlib.compress(bytes(9 * 8)))
TEXT = chunk(b"tEXt", b"a\0b")


def jpeg_of_size(width: int, height: int) -> bytes:
    whole = encoded(noise("L", 8, 8), "JPEG")
    at = whole.index(b"\xff\xc0") + 5
    return whole[:at] + struct.pack(">HH", height, width) + whole[at + 4 :]


def jpeg_of_components(count: int) -> bytes:
    whole = encoded(noise(), "JPEG")
    at = whole.index(b"\xff\xc0") + 9
    return whole[:at] + bytes([count]) + whole[at + 1 :]


def jpeg_without_data() -> bytes:
    whole = encoded(noise(), "JPEG")
    scan = whole.index(b"\xff\xda") + 2
    return whole[: scan + int.from_bytes(whole[scan : scan + 2], "big")] + b"\xff\xd9"


def jpeg_with(segment: bytes) -> bytes:
    return b"\xff\xd8" + segment + encoded(noise(), "JPEG")[2:]


def webp(*chunks: tuple[bytes, bytes]) -> bytes:
    body = b"".join(kind + struct.pack("<I", len(data)) + data + bytes(len(data) % 2) for kind, data in chunks)
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def lossless(width: int, height: int) -> tuple[bytes, bytes]:
    return b"VP8L", b"\x2f" + struct.pack("<I", (width - 1) | (height - 1) << 14) + b"\0\0"


def lossy(tag: int = 0, start: bytes = b"\x9d\x01\x2a") -> tuple[bytes, bytes]:
    return b"VP8 ", struct.pack("<I", tag)[:3] + start + struct.pack("<HH", 8, 8) + bytes(22)


def canvas(width: int, height: int, flags: int = 0) -> tuple[bytes, bytes]:
    return b"VP8X", bytes([flags, 0, 0, 0]) + struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]


def archive() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as files:
        files.writestr("index.html", "<script>")
    return out.getvalue()


def frames(kind: str) -> bytes:
    return encoded(noise(), kind, save_all=True, append_images=[noise(seed=2), noise(seed=3)])


SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="8" height="8"><script>alert(1)</script></svg>'
REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "nothing": (lambda: b"", "empty"),
    "one byte": (lambda: b"\x89", "unknown_type"),
    "html": (lambda: b"<!doctype html><title>Not found</title>", "unknown_type"),
    "svg": (lambda: SVG, "unknown_type"),
    "svg after a declaration": (lambda: b'<?xml version="1.0"?>' + SVG, "unknown_type"),
    "json": (lambda: b'{"error": {"code": "gone"}}', "unknown_type"),
    "azure's xml": (lambda: b"\xef\xbb\xbf<?xml version='1.0'?><Error/>", "unknown_type"),
    "gif": (lambda: encoded(noise("P"), "GIF"), "unknown_type"),
    "bmp": (lambda: encoded(noise(), "BMP"), "unknown_type"),
    "tiff": (lambda: encoded(noise(), "TIFF"), "unknown_type"),
    "ico": (lambda: encoded(noise(), "ICO"), "unknown_type"),
    "pdf": (lambda: encoded(noise(), "PDF"), "unknown_type"),
    "zip": (archive, "unknown_type"),
    "gzip around a png": (lambda: gzip.compress(png(header(), DATA)), "unknown_type"),
    "byte order mark before a png": (lambda: b"\xef\xbb\xbf" + png(header(), DATA), "unknown_type"),
    "html before a png": (lambda: b"<html>" + png(header(), DATA), "unknown_type"),
    "avi": (lambda: b"RIFF\x04\0\0\0AVI ", "unknown_type"),
    "png, signature alone": (lambda: SIGNATURE, "truncated"),
    "png and html": (lambda: SIGNATURE + b"<html><script>alert(1)</script></html>", "truncated"),
    "png and zip": (lambda: png(header(), DATA) + archive(), "trailing_bytes"),
    "png without its end": (lambda: png(header(), DATA, end=b""), "truncated"),
    "png without data": (lambda: png(header()), "bad_structure"),
    "png with too little data for its size": (lambda: png(header(4096, 4096), DATA), "bad_structure"),
    "png without header": (lambda: png(DATA), "bad_structure"),
    "png with two headers": (lambda: png(header(), header(), DATA), "bad_structure"),
    "png with its data apart": (lambda: png(header(), DATA, TEXT, DATA), "bad_structure"),
    "png of colours without palette": (lambda: png(header(colour=3), DATA), "bad_structure"),
    "png of a depth that is none": (lambda: png(header(depth=7), DATA), "bad_structure"),
    "png with an unknown critical chunk": (lambda: png(header(), chunk(b"EVIL"), DATA), "bad_structure"),
    "png with a chunk of no letters": (lambda: png(header(), chunk(b"\0\1\2\3"), DATA), "bad_structure"),
    "png with a wrong checksum": (lambda: png(header(), DATA[:-1] + b"\0"), "bad_checksum"),
    "png, animated": (lambda: frames("PNG"), "animated"),
    "png of a million chunks": (lambda: png(header(), TEXT * 1_000_000), "too_many_parts"),
    "png 0 wide": (lambda: png(header(0, 8), DATA), "bad_dimensions"),
    "png 2**31-1 wide": (lambda: png(header(2**31 - 1, 1, 1), chunk(b"IDAT", bytes(2**18))), "bad_dimensions"),
    "png of 64 MP and a little": (lambda: png(header(8001, 8000, 1), chunk(b"IDAT", bytes(8_000))), "too_many_pixels"),
    "jpeg, begin and end": (lambda: b"\xff\xd8\xff\xd9", "bad_structure"),
    "jpeg and html": (lambda: encoded(noise(), "JPEG") + b"<script>", "trailing_bytes"),
    "jpeg and jpeg": (lambda: encoded(noise(), "JPEG") * 2, "trailing_bytes"),
    "jpeg of two pictures": (lambda: frames("MPO"), "trailing_bytes"),
    "jpeg without frame": (lambda: b"\xff\xd8\xff\xda\0\x02data\xff\xd9", "bad_structure"),
    "jpeg, lossless": (lambda: encoded(noise(), "JPEG").replace(b"\xff\xc0", b"\xff\xc3"), "bad_structure"),
    "jpeg without scan": (lambda: encoded(noise(), "JPEG").partition(b"\xff\xda")[0] + b"\xff\xd9", "bad_structure"),
    "jpeg without scan data": (jpeg_without_data, "bad_structure"),
    "jpeg with a reserved segment": (lambda: jpeg_with(b"\xff\x02\0\x02"), "bad_structure"),
    "jpeg with a segment of length 0": (lambda: jpeg_with(b"\xff\xfe\0\0"), "bad_structure"),
    "jpeg with two frames": (lambda: jpeg_with(b"\xff\xc0\0\x0b\x08\0\x08\0\x08\x01\x01\x11\0"), "bad_structure"),
    "jpeg with a frame too short": (lambda: jpeg_of_components(4), "bad_structure"),
    "jpeg of 12 bits": (
        lambda: encoded(noise(), "JPEG").replace(b"\xff\xc0\0\x11\x08", b"\xff\xc1\0\x11\x0c"),
        "bad_structure",
    ),
    "jpeg of a million comments": (lambda: b"\xff\xd8" + b"\xff\xfe\0\x02" * 1_000_000, "too_many_parts"),
    "jpeg 65,535 square": (lambda: jpeg_of_size(65_535, 65_535), "bad_dimensions"),
    "jpeg 0 high": (lambda: jpeg_of_size(8, 0), "bad_dimensions"),
    "jpeg of 1,000 MP": (lambda: jpeg_of_size(32_000, 32_000), "too_many_pixels"),
    "webp, header alone": (lambda: b"RIFF\x04\0\0\0WEBP", "truncated"),
    "webp that says less": (lambda: webp(lossless(8, 8)) + b"PK", "trailing_bytes"),
    "webp that says more": (lambda: webp(lossless(8, 8))[:-1], "truncated"),
    "webp, animated": (lambda: frames("WEBP"), "animated"),
    "webp with the flag of animation alone": (lambda: webp(canvas(8, 8, 2), lossless(8, 8)), "animated"),
    "webp with frames, flag unset": (lambda: webp(canvas(8, 8), (b"ANMF", b""), lossless(8, 8)), "animated"),
    "webp of two pictures": (lambda: webp(canvas(8, 8), lossless(8, 8), lossless(8, 8)), "bad_structure"),
    "webp of another size than its canvas": (lambda: webp(canvas(9, 8), lossless(8, 8)), "bad_structure"),
    "webp without picture": (lambda: webp((b"EXIF", b"<script>")), "bad_structure"),
    "webp and a chunk of script": (lambda: webp(lossless(8, 8), (b"EVIL", b"<script>")), "bad_structure"),
    "webp without start code": (lambda: webp(lossy(start=b"\0\0\0")), "bad_structure"),
    "webp of an inner frame": (lambda: webp(lossy(tag=1)), "bad_structure"),
    "webp with less than its first partition": (lambda: webp(lossy(tag=100 << 5)), "bad_structure"),
    "webp of 268 MP": (lambda: webp(lossless(16_384, 16_384)), "too_many_pixels"),
}


@pytest.fixture
def verdict(tmp_path: Path) -> Iterator[Callable[[bytes], Image | NotAnImage]]:
    path = tmp_path / "pulled"

    def judge(content: bytes) -> Image | NotAnImage:
        path.write_bytes(content)
        return inspect(path)

    yield judge
    path.unlink()  # nothing may hold the file open or mapped


Verdict = Callable[[bytes], Image | NotAnImage]


@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_image_is_accepted_with_the_size_that_pillow_sees(verdict: Verdict, name: str) -> None:
    content = WHOLE[name]()
    extension = name.partition("-")[0]
    size = Pillow.open(io.BytesIO(content)).size
    assert verdict(content) == Image(f"image/{extension}", extension, *size)  # type: ignore[arg-type]  # a str, not one of the three literals


@pytest.mark.parametrize("name", REFUSED)
def test_everything_else_is_refused_for_its_own_reason(verdict: Verdict, name: str) -> None:
    make, reason = REFUSED[name]
    assert verdict(make()) == NotAnImage(reason)  # type: ignore[arg-type]  # a str, not one of the literals


@pytest.mark.parametrize("name", WHOLE)
def test_an_image_cut_at_any_kib_or_at_random_is_refused(verdict: Verdict, name: str) -> None:
    content = WHOLE[name]()
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    random_cuts = [random.Random(seed).randrange(len(content)) for _ in range(50)]
    cuts = [*range(0, len(content), KIB), *random_cuts, len(content) - 1, len(content) - 2]
    assert [cut for cut in cuts if isinstance(verdict(content[:cut]), Image)] == []


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("extra", [b"\0", b"\n", b"\xff\xd9", b"<script>", b"\0" * 4096])
def test_bytes_after_the_end_are_refused(verdict: Verdict, name: str, extra: bytes) -> None:
    assert verdict(WHOLE[name]() + extra) == NotAnImage("trailing_bytes")


def test_a_flipped_bit_anywhere_in_a_png_is_refused(verdict: Verdict) -> None:
    content = bytearray(WHOLE["png-rgb"]())
    for at in range(0, len(content), 13):
        content[at] ^= 1
        assert isinstance(verdict(bytes(content)), NotAnImage), at
        content[at] ^= 1


def test_a_webp_may_not_hide_bytes_in_its_padding(verdict: Verdict) -> None:
    odd = webp(canvas(8, 8), lossless(8, 8), (b"EXIF", b"abc"))
    assert verdict(odd) == Image("image/webp", "webp", 8, 8)
    assert verdict(odd[:-1] + b"!") == NotAnImage("bad_structure")


def test_padding_before_a_jpeg_marker_is_allowed(verdict: Verdict) -> None:
    content = encoded(noise(), "JPEG")
    assert isinstance(verdict(content[:-2] + b"\xff\xff\xff\xd9"), Image)


def test_the_pixel_limit_is_the_callers(tmp_path: Path) -> None:
    path = tmp_path / "pulled"
    path.write_bytes(png(header(8, 8), DATA))
    assert inspect(path, max_pixels=64) == Image("image/png", "png", 8, 8)
    assert inspect(path, max_pixels=63) == NotAnImage("too_many_pixels")


def test_a_large_file_is_mapped_not_read(tmp_path: Path) -> None:
    path = tmp_path / "pulled"
    path.write_bytes(png(header(4000, 4000), chunk(b"IDAT", random.Random(1).randbytes(16_000_000))))
    tracemalloc.start()
    try:
        found = inspect(path)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert isinstance(found, Image)
    assert peak_bytes < 256 * KIB


def test_a_png_in_many_small_pieces_is_accepted(verdict: Verdict) -> None:
    data = zlib.compress(bytes(9 * 8))
    pieces = [chunk(b"IDAT", data[:1]), chunk(b"IDAT", data[1:]), *[chunk(b"IDAT")] * (MAX_PARTS - 4)]
    assert isinstance(verdict(png(header(), *pieces)), Image)


HEADS = [
    b"",
    SIGNATURE,
    SIGNATURE + header(),
    b"\xff\xd8\xff",
    b"\xff\xd8\xff\xc0\0\x0b\x08",
    b"RIFF\x10\0\0\0WEBPVP8X",
]


@settings(
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture], max_examples=500, deadline=None
)
@given(head=st.sampled_from(HEADS), rest=st.binary(max_size=200))
def test_any_bytes_have_a_verdict(verdict: Verdict, head: bytes, rest: bytes) -> None:
    assert isinstance(verdict(head + rest), Image | NotAnImage)


@pytest.mark.parametrize("name", WHOLE)
def test_a_damaged_image_has_a_verdict(verdict: Verdict, name: str) -> None:
    content = WHOLE[name]()
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    for _ in range(100):
        damaged = bytearray(content)
        for _ in range(dice.randint(1, 8)):
            damaged[int(len(damaged) * dice.random() ** 4)] = dice.randrange(256)  # mostly in the headers
        assert isinstance(verdict(bytes(damaged)), Image | NotAnImage)
