"""JSON from strangers: a value or NOT_JSON for every byte string, never a raise."""

import json
import math
from collections.abc import Iterator
from enum import Enum, auto
from typing import Final, Literal

from service.domain.errors import FieldError

DEPTH_MAX: Final = 64  # an order is 3 deep; json.dumps and every later walk stay far from Python's recursion limit
INTEGER_BITS_MAX: Final = 64  # what databases, Go and Java hold
POINTER_CHARS_MAX: Final = 200


class _Verdict(Enum):
    NOT_JSON = auto()


NOT_JSON: Final = _Verdict.NOT_JSON  # `null` is JSON, so None cannot say it


def loads(body: bytes, max_depth: int = DEPTH_MAX) -> object | Literal[_Verdict.NOT_JSON]:
    r"""The value that `body` spells in UTF-8 (a byte order mark is skipped, RFC 8259 section 8.1), or NOT_JSON.

    Refused beyond RFC 8259: NaN, Infinity and numbers that overflow to them, integers over Python's 4,300 digits,
    nesting over `max_depth`. Of duplicate keys the last wins. Strings may still hold lone surrogates ("\ud800").
    """
    try:
        value: object = json.loads(body.decode("utf-8-sig"), parse_constant=_refuse, parse_float=_finite)
    except (ValueError, RecursionError):
        return NOT_JSON
    brackets = body.count(b"[") + body.count(b"{")
    return NOT_JSON if brackets > max_depth and deeper_than(value, max_depth) else value


def deeper_than(value: object, limit: int) -> bool:
    """Whether arrays and objects nest more than `limit` deep: `[]` is 1. Walks level by level, without recursion."""
    level = [value]
    for _ in range(limit + 1):
        level = [node for node in level if isinstance(node, dict | list)]
        if not level:
            return False
        level = [child for node in level for child in _children(node)]
    return True


def _children(node: object) -> list[object]:
    if isinstance(node, dict):
        return list(node.values())
    return node if isinstance(node, list) else []


def pointer(*names: str) -> str:
    """RFC 6901, cut at POINTER_CHARS_MAX."""
    escaped = "".join("/" + name[:POINTER_CHARS_MAX].replace("~", "~0").replace("/", "~1") for name in names)
    return escaped[:POINTER_CHARS_MAX]


def flaws(value: object) -> Iterator[FieldError]:
    """What makes a JSON value unsafe to store or to compute with, though JSON allows it (or Python's idea of JSON).

    Half surrogate pairs, numbers that are not finite or over 64 bits, nesting over DEPTH_MAX. Walks without recursion.
    """
    waiting = [("", value, 1)]
    while waiting:
        place, node, depth = waiting.pop()
        if (detail := _flaw(node, depth)) is not None:
            yield FieldError(place, detail)
        elif isinstance(node, dict):
            waiting += [(_below(place, name), child, depth + 1) for name, child in node.items()]
        elif isinstance(node, list):
            waiting += [(_below(place, n), child, depth + 1) for n, child in enumerate(node)]


def _below(place: str, name: object) -> str:
    """Cut at every step: a long name above 100,000 children must not be copied for each."""
    return (place + pointer(str(name)))[:POINTER_CHARS_MAX]


def _flaw(node: object, depth: int) -> str | None:
    if isinstance(node, str):
        return None if is_unicode(node) else "Holds half of a surrogate pair"
    if isinstance(node, float):
        return None if math.isfinite(node) else "Is not a finite number"
    if isinstance(node, int):
        return None if node.bit_length() <= INTEGER_BITS_MAX else "Is over 64 bits"
    if isinstance(node, dict) and not all(isinstance(name, str) and is_unicode(name) for name in node):
        return "Has a name that is not Unicode text"
    return "Nests too deep" if isinstance(node, dict | list) and depth > DEPTH_MAX else None


def is_unicode(text: str) -> bool:
    try:
        text.isascii() or text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _refuse(word: str) -> float:
    raise ValueError(f"{word} is not JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise ValueError("the number overflows")
    return number
