"""May this entry run? What Redis holds of an RQ entry, judged before anything is built, imported or called."""

import json
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

DATA_BYTES_MAX: Final = 17 * 2**20  # a batch handed over inline is 16 MiB at most
CALLBACKS: Final = (b"success_callback_name", b"failure_callback_name", b"stopped_callback_name")
# What makes RQ act on a stranger's word once the function is done: send requests, ring again, promote others.
UNWANTED: Final = (b"webhooks", b"repeats_left", b"group_id", b"rate_limit_key")


@dataclass(frozen=True, slots=True)
class Verdict:
    """`name` is the function ("" when unreadable), `data` the call in plain JSON, `wrong` why it may not run ("")."""

    name: str = ""
    data: bytes = b""
    wrong: str = ""


def judge(raw: Mapping[bytes, bytes], listed: Collection[str]) -> Verdict:
    """Total: a verdict for every hash. A call is `[function, instance, arguments, keyword arguments]`."""
    if not (packed := raw.get(b"data")):
        return Verdict(wrong="it has no data")
    if (data := _inflate(packed)) is None:
        return Verdict(wrong="its data is too large or cut")
    try:
        call = json.loads(data.decode())
    except (ValueError, RecursionError):
        return Verdict(wrong="its data is not JSON")
    match call:
        case [str(name), instance, list(), dict()]:
            return Verdict(name, data, _wrong(raw, name, instance, listed))
    return Verdict(wrong="its data is not a call")


def _wrong(raw: Mapping[bytes, bytes], name: str, instance: object, listed: Collection[str]) -> str:
    if name not in listed:
        return "its function is not listed"
    if instance is not None:
        return "it calls a method"
    if {raw.get(key, b"") for key in CALLBACKS} - {known.encode() for known in listed} - {b""}:
        return "its callback is not listed"
    return next((f"it has {key.decode()}" for key in UNWANTED if raw.get(key)), "")


def _inflate(data: bytes) -> bytes | None:
    """RQ writes zlib and also reads plain text. None: over DATA_BYTES_MAX, cut short, or more behind the end."""
    stream = zlib.decompressobj()
    try:
        plain = stream.decompress(data, DATA_BYTES_MAX)
    except zlib.error:
        return data if len(data) <= DATA_BYTES_MAX else None
    return plain if stream.eof and not stream.unused_data else None
