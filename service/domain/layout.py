"""Ids, and where things lie in the bucket: every key follows from an id alone.

An id is `{prefix}_{ULID}` (https://github.com/ulid/spec): 26 characters of Crockford base32 in upper case, 48 bits of
Unix time in milliseconds first, then 80 bits of entropy. Ids sort by time, and their UTC day is the folder.
`S3_PREFIX` is not known here; the bucket puts it in front.
"""

import re
from datetime import UTC, datetime
from typing import Final, Literal, get_args

Extension = Literal["jpeg", "png", "webp"]

EXTENSIONS: Final[tuple[Extension, ...]] = get_args(Extension)
ENTROPY_BYTES: Final = 10
TIME_END_MS: Final = 253_402_300_800_000  # the year 10000, which datetime cannot say; 48 bits reach to 10889

_ALPHABET: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_TIME_CHARS: Final = 10
# 26 characters carry 130 bits, so the first is at most 7. Plain [0-9]: \d would let other scripts' digits in.
_ID: Final = re.compile(r"([a-z]{1,16})_([0-7][0-9A-HJKMNP-TV-Z]{25})")
# One segment, no `.` or `..` (SeaweedFS refuses both), nothing that needs quoting in a URL.
_INPUT_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}(\.[A-Za-z0-9]{1,16})?")


def new_id(prefix: str, now_ms: int, entropy: bytes) -> str:
    """An id of this moment, as in `new_id("job", …)`. `entropy` is 10 unguessable bytes; else ValueError."""
    if len(entropy) != ENTROPY_BYTES or not 0 <= now_ms < TIME_END_MS:
        raise ValueError("an id needs 10 bytes of entropy and a time before the year 10000")
    number = now_ms << 80 | int.from_bytes(entropy)
    text = "".join(_ALPHABET[number >> shift & 31] for shift in range(125, -1, -5))
    made = f"{prefix}_{text}"
    if not valid_id(prefix, made):
        raise ValueError("an id's prefix is 1 to 16 letters a-z")
    return made


def id_time_ms(text: str) -> int | None:
    """When the id was made, Unix milliseconds; None if the text is no id. Total."""
    match = _ID.fullmatch(text)
    if match is None:
        return None
    time_ms = 0
    for char in match[2][:_TIME_CHARS]:
        time_ms = time_ms << 5 | _ALPHABET.index(char)
    return time_ms if time_ms < TIME_END_MS else None


def valid_id(prefix: str, text: str) -> bool:
    """Whether the text could be an id that `new_id(prefix, …)` made. Total."""
    return text.startswith(f"{prefix}_") and id_time_ms(text) is not None


def image_key(job_id: str, extension: Extension) -> str:
    """Raises ValueError, as all keys below do, for what `valid_id` refuses: ask it first about a stranger's id."""
    if extension not in EXTENSIONS:
        raise ValueError("an image is jpeg, png or webp")
    return f"images/{_day('job', job_id)}/{job_id}.{extension}"


def image_keys(job_id: str) -> tuple[str, ...]:
    """Every key under which an image of this job may lie."""
    return tuple(image_key(job_id, extension) for extension in EXTENSIONS)


def sidecar_key(job_id: str) -> str:
    return f"jobs/{_day('job', job_id)}/{job_id}.json"


def input_key(job_id: str, name: str) -> str:
    """Where an input image waits. `name` is ours, as in `input_image.png`; ValueError for anything like a path."""
    if _INPUT_NAME.fullmatch(name) is None:
        raise ValueError("an input's name is one short word with at most one extension")
    return f"{inputs_prefix(job_id)}{name}"


def inputs_prefix(job_id: str) -> str:
    """What the keys of all inputs of this job, and of no other, begin with."""
    _day("job", job_id)
    return f"inputs/{job_id}/"


def manifest_key(batch_id: str) -> str:
    return f"batches/{_day('batch', batch_id)}/{batch_id}/manifest.ndjson"


def marker_key(batch_id: str, ok: bool) -> str:
    """`ok`: any job of the batch succeeded."""
    return f"batches/{_day('batch', batch_id)}/{batch_id}/{'_SUCCESS' if ok else '_FAILED'}"


def _day(prefix: str, text: str) -> str:
    time_ms = id_time_ms(text) if valid_id(prefix, text) else None
    if time_ms is None:
        raise ValueError(f"not a {prefix} id")
    return f"{datetime.fromtimestamp(time_ms // 1000, UTC):%Y/%m/%d}"
