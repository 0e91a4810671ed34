"""What are these bytes? An image of an allowed type, whole and of a sane size, or not.

Nothing is decoded. Each format is walked from its first byte to its last: PNG by its chunks and their CRCs, JPEG by its
markers, WebP by its RIFF chunks. So a cut is seen wherever it falls (a decoder's own check passes half a JPEG), nothing
can follow the end, and width and height are known before any decoder may see a byte.
Sources: PNG, third edition (W3C); ITU-T T.81; RFC 9649.
"""

import mmap
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

MAX_PIXELS: Final = 64_000_000
MAX_SIDE_PX: Final = 32_768  # the models draw at most 4 MP
MAX_PARTS: Final = 16_384  # 32 MiB of PNG in the smallest pieces in use (4 KiB) are 8,192; a bomb is millions

Reason = Literal[
    "empty",
    "unknown_type",
    "truncated",
    "trailing_bytes",
    "bad_checksum",
    "bad_structure",
    "bad_dimensions",
    "too_many_pixels",
    "too_many_parts",
    "animated",
]
ContentType = Literal["image/jpeg", "image/png", "image/webp"]
Extension = Literal["jpeg", "png", "webp"]


@dataclass(frozen=True, slots=True)
class Image:
    """A whole image. Width and height in pixels, as its header says."""

    content_type: ContentType
    extension: Extension
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class NotAnImage:
    reason: Reason


class _BrokenError(Exception):
    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason: Reason = reason


_Size = tuple[int, int]
_Part = tuple[bytes, int, int]  # kind, where its body begins, where it ends


def inspect(path: Path, *, max_pixels: int = MAX_PIXELS) -> Image | NotAnImage:
    """Judge the file at `path` by its bytes alone: a verdict for any content, OSError only if it cannot be read.

    The file is mapped, never read into memory. Nobody may shorten it meanwhile.
    """
    with path.open("rb") as file:
        if path.stat().st_size == 0:
            return NotAnImage("empty")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as view:
            return _verdict(view, max_pixels)


def _verdict(view: memoryview, max_pixels: int) -> Image | NotAnImage:
    try:
        content_type, extension, size = _walk(view)
        width, height = size
    except _BrokenError as broken:
        return NotAnImage(broken.reason)
    if not (0 < width <= MAX_SIDE_PX and 0 < height <= MAX_SIDE_PX):
        return NotAnImage("bad_dimensions")
    if width * height > max_pixels:
        return NotAnImage("too_many_pixels")
    return Image(content_type, extension, width, height)


def _walk(view: memoryview) -> tuple[ContentType, Extension, _Size]:
    head = bytes(view[:12])
    if head.startswith(_PNG_SIGNATURE):
        return "image/png", "png", _png(view)
    if head.startswith(b"\xff\xd8\xff"):
        return "image/jpeg", "jpeg", _jpeg(view)
    if head.startswith(b"RIFF") and head[8:] == b"WEBP":
        return "image/webp", "webp", _webp(view)
    raise _BrokenError("unknown_type")


def _read(shape: struct.Struct, view: memoryview, at: int) -> tuple[Any, ...]:
    if at + shape.size > len(view):
        raise _BrokenError("truncated")
    return shape.unpack_from(view, at)


def _require(holds: bool, reason: Reason = "bad_structure") -> None:
    if not holds:
        raise _BrokenError(reason)


# PNG

_PNG_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_PNG_CHUNK: Final = struct.Struct(">I4s")
_PNG_CRC: Final = struct.Struct(">I")
_PNG_HEADER: Final = struct.Struct(">IIBBBBB")
_PNG_CHANNELS: Final = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
_PNG_DEPTHS: Final = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_PNG_CRITICAL: Final = {b"IHDR", b"PLTE", b"IDAT", b"IEND"}
_DEFLATE_MAX_RATIO: Final = 1032  # RFC 1951: 258 bytes from two bits


def _png(view: memoryview) -> _Size:
    chunks = list(_png_chunks(view))
    kinds = [kind for kind, _, _ in chunks]
    data = [end - begin for kind, begin, end in chunks if kind == b"IDAT"]
    _, begin, end = chunks[0]
    _require(kinds[0] == b"IHDR" and end - begin == _PNG_HEADER.size and kinds.count(b"IHDR") == 1)
    _require(b"acTL" not in kinds, "animated")
    _require(all(kind.isalpha() and (kind[:1].islower() or kind in _PNG_CRITICAL) for kind in kinds))
    width, height, depth, colour, compression, filters, interlace = _read(_PNG_HEADER, view, begin)
    _require(depth in _PNG_DEPTHS.get(colour, ()) and (compression, filters) == (0, 0) and interlace in {0, 1})
    _require(bool(data))
    first = kinds.index(b"IDAT")
    _require(kinds[first : first + len(data)] == [b"IDAT"] * len(data))
    _require(colour != 3 or b"PLTE" in kinds[:first])  # 3: palette
    row_bytes = (width * depth * _PNG_CHANNELS[colour] + 7) // 8
    _require(height * row_bytes <= sum(data) * _DEFLATE_MAX_RATIO)
    return width, height


def _png_chunks(view: memoryview) -> Iterator[_Part]:
    """Yield each chunk of the file, its CRC checked, up to an IEND that is the file's end."""
    at = len(_PNG_SIGNATURE)
    for _ in range(MAX_PARTS):
        length, kind = _read(_PNG_CHUNK, view, at)
        begin, end = at + 8, at + 8 + length
        (crc,) = _read(_PNG_CRC, view, end)
        _require(zlib.crc32(view[at + 4 : end]) == crc, "bad_checksum")
        yield kind, begin, end
        at = end + 4
        if kind == b"IEND":
            _require(length == 0)
            _require(at == len(view), "trailing_bytes")
            return
    raise _BrokenError("too_many_parts")


# JPEG

_JPEG_MARKER: Final = re.compile(rb"\xff+([^\xff])", re.DOTALL)
# In entropy-coded data FF is followed by 00 (stuffing), a restart or, padding the next marker, FF. No `+` before the
# class: on a run of FF it would take the square of its length.
_JPEG_DATA_END: Final = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)
_JPEG_LENGTH: Final = struct.Struct(">H")
_JPEG_FRAME: Final = struct.Struct(">BHHB")
_SOS, _EOI, _DQT, _DHT, _DRI, _COM = b"\xda", b"\xd9", b"\xdb", b"\xc4", b"\xdd", b"\xfe"
_FRAMES: Final = {b"\xc0", b"\xc1", b"\xc2"}  # baseline, extended, progressive: what viewers decode
_APPLICATION: Final = {bytes([code]) for code in range(0xE0, 0xF0)}
_JPEG_SEGMENTS: Final = _FRAMES | _APPLICATION | {_SOS, _EOI, _DQT, _DHT, _DRI, _COM}


def _jpeg(view: memoryview) -> _Size:
    segments = list(_jpeg_segments(view))
    kinds = [kind for kind, _, _ in segments]
    frames = [(begin, end) for kind, begin, end in segments if kind in _FRAMES]
    _require(len(frames) == 1 and {_SOS, _DQT, _DHT} <= set(kinds))
    _require(kinds.index(_SOS) > next(at for at, kind in enumerate(kinds) if kind in _FRAMES))
    begin, end = frames[0]
    precision, height, width, components = _read(_JPEG_FRAME, view, begin)
    _require(precision == 8 and components in {1, 3, 4})
    _require(end - begin == _JPEG_FRAME.size + 3 * components)
    return width, height


def _jpeg_segments(view: memoryview) -> Iterator[_Part]:
    """Yield each segment up to an EOI that is the file's end; the entropy-coded data after a SOS is passed over."""
    at = 2
    for _ in range(MAX_PARTS):
        marker = _JPEG_MARKER.match(view, at)
        if marker is None:
            raise _BrokenError("bad_structure" if at < len(view) else "truncated")
        kind, begin = marker[1], marker.end()
        if kind == _EOI:
            _require(begin == len(view), "trailing_bytes")
            return
        _require(kind in _JPEG_SEGMENTS)
        (length,) = _read(_JPEG_LENGTH, view, begin)
        at = begin + length  # of 0 or 1 it leads back into the length itself, where no marker can be
        yield kind, begin + _JPEG_LENGTH.size, at
        if kind == _SOS:
            at = _jpeg_data_end(view, at)
    raise _BrokenError("too_many_parts")


def _jpeg_data_end(view: memoryview, begin: int) -> int:
    found = _JPEG_DATA_END.search(view, begin)
    if found is None:
        raise _BrokenError("truncated")
    _require(found.start() > begin)
    return found.start()


# WebP

_RIFF: Final = struct.Struct("<4sI4s")
_RIFF_CHUNK: Final = struct.Struct("<4sI")
_VP8: Final = struct.Struct("<HB3sHH")
_VP8L: Final = struct.Struct("<BI")
_VP8X: Final = struct.Struct("<B3xHBHB")
_VP8_START: Final = b"\x9d\x01\x2a"
_VP8L_SIGNATURE: Final = 0x2F
_ANIMATION: Final = 0x02
_14_BITS: Final = 0x3FFF


def _webp(view: memoryview) -> _Size:
    chunks = list(_webp_chunks(view))
    _require(bool(chunks), "truncated")
    kinds = [kind for kind, _, _ in chunks]
    images = [chunk for chunk in chunks if chunk[0] in _WEBP_SIZES]
    if kinds[0] == b"VP8X":
        canvas = _vp8x(view, chunks[0])
        _require(not {b"ANIM", b"ANMF"} & set(kinds), "animated")
        _require(kinds.count(b"VP8X") == 1)
    else:
        canvas = None
        _require(len(chunks) == 1)
    _require(len(images) == 1)
    size = _WEBP_SIZES[images[0][0]](view, images[0])
    _require(canvas in {None, size})
    return size


def _webp_chunks(view: memoryview) -> Iterator[_Part]:
    """Yield each chunk, padding checked, up to the end that the RIFF header names and that is the file's."""
    _, riff_bytes, _ = _read(_RIFF, view, 0)
    _require(riff_bytes + 8 <= len(view), "truncated")
    _require(riff_bytes + 8 == len(view), "trailing_bytes")
    at = _RIFF.size
    for _ in range(MAX_PARTS):
        if at == len(view):
            return
        kind, length = _read(_RIFF_CHUNK, view, at)
        begin, end = at + 8, at + 8 + length
        at = end + length % 2
        _require(at <= len(view), "truncated")
        _require(not any(view[end:at]))
        yield kind, begin, end
    raise _BrokenError("too_many_parts")


def _vp8(view: memoryview, chunk: _Part) -> _Size:
    _, begin, end = chunk
    _require(end - begin >= _VP8.size)
    low, high, start, width, height = _read(_VP8, view, begin)
    first_partition_bytes = (low | high << 16) >> 5
    _require(low & 1 == 0 and start == _VP8_START and first_partition_bytes <= end - begin - _VP8.size)
    return width & _14_BITS, height & _14_BITS


def _vp8l(view: memoryview, chunk: _Part) -> _Size:
    _, begin, end = chunk
    _require(end - begin > _VP8L.size)
    signature, bits = _read(_VP8L, view, begin)
    _require(signature == _VP8L_SIGNATURE and bits >> 29 == 0)
    return (bits & _14_BITS) + 1, (bits >> 14 & _14_BITS) + 1


def _vp8x(view: memoryview, chunk: _Part) -> _Size:
    _, begin, end = chunk
    _require(end - begin == _VP8X.size)
    flags, width_low, width_high, height_low, height_high = _read(_VP8X, view, begin)
    _require(not flags & _ANIMATION, "animated")
    return (width_low | width_high << 16) + 1, (height_low | height_high << 16) + 1


_WEBP_SIZES: Final[dict[bytes, Callable[[memoryview, _Part], _Size]]] = {b"VP8 ": _vp8, b"VP8L": _vp8l}
