"""Input images: an http(s) URL that the provider fetches, or base64 that we decode and put in the bucket.

In a job's request, `{"key": …, "sha256": …, "bytes": …}` stands for an image in the bucket.
"""

import base64
import re
from dataclasses import dataclass, field
from typing import Final

from service.domain.layout import inputs_prefix

INPUT_URL_CHARS_MAX: Final = 8_192  # presigned URLs with a session token pass 2,000
_DATA_URL: Final = re.compile(r"data:image/[a-z0-9.+-]{1,40};base64,", re.IGNORECASE)
# Without credentials. No \s: what that means differs between Python, Rust and ECMA, and it stands in our schema.
WEB_URL: Final = r"^https?://[^\x00-\x20\x7f-\xa0/?#@\\]+([/?#][!-~]*)?$"
_WEB_URL: Final = re.compile(WEB_URL)
_BASE64: Final = r"([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{4}|[A-Za-z0-9+/]{3}=|[A-Za-z0-9+/]{2}==)"
# What `split_input` takes, for the schema's readers; megabytes are not matched against it.
INPUT: Final = rf"^({WEB_URL[1:-1]}|(data:image/[A-Za-z0-9.+-]{{1,40}};base64,)?{_BASE64})$"


@dataclass(frozen=True, slots=True)
class InputUrl:
    """Passed on as it is: we never fetch what a caller names."""

    url: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class InputBytes:
    content: bytes = field(repr=False)


def split_input(value: str) -> InputUrl | InputBytes | None:
    """Tell the two kinds apart. None: neither a usable URL nor strict, padded, non-empty base64."""
    if value.startswith(("http://", "https://")):
        usable = len(value) <= INPUT_URL_CHARS_MAX and _WEB_URL.fullmatch(value)
        return InputUrl(value) if usable else None
    content = _decode(value)
    return InputBytes(content) if content else None


def _decode(value: str) -> bytes | None:
    prefix = _DATA_URL.match(value)
    try:
        return base64.b64decode(value[prefix.end() :] if prefix else value, validate=True)
    except ValueError:  # binascii.Error is one; so is a character outside ASCII
        return None


def kept_key(value: object, job_id: str) -> str | None:
    """The bucket key of a field that stands for an image of this very job.

    None for anything else: a caller who writes such an object himself cannot know his job's id, and must not be able to
    name another's object.
    """
    key = value.get("key") if isinstance(value, dict) else None
    return key if isinstance(key, str) and key.startswith(inputs_prefix(job_id)) else None
