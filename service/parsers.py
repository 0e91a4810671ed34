"""From a setting's text to its value. A ValueError says what is wanted and never repeats the text."""

import base64
import binascii
import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from types import MappingProxyType
from typing import Final, LiteralString, TypeVar
from urllib.parse import SplitResult, urlsplit

from service.domain.addresses import HostList
from service.secret import Secret
from service.storage import address

T = TypeVar("T")
Word = TypeVar("Word", bound=LiteralString)
Parser = Callable[[str], T]

UNITS: Final = {"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
CALLER: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
KEY_BYTES_MIN: Final = 16  # 128 bits: the strength the contract promises for every token
NOTIFY_KEY_BYTES: Final = range(24, 65)  # Standard Webhooks, "signing secret"
TAGS_MOST: Final = 10
TAG: Final = re.compile(r"(?!aws:)[A-Za-z0-9 +\-._:/@]{1,128}=[A-Za-z0-9 +\-=._:/@]{0,256}")
PUBLIC_URL_CHARS_MAX: Final = 1_900  # the provider takes 2,083 for the whole webhook_url


@dataclass(frozen=True, slots=True)
class WebhookKey:
    kid: str
    key: bytes = field(repr=False)


def whole(low: int, high: int) -> Parser[int]:
    def parse(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,18}", text) or not low <= int(text) <= high:
            raise ValueError(f"a whole number from {low} to {high} is wanted")
        return int(text)

    return parse


def seconds(low: float, high: float) -> Parser[float]:
    def parse(text: str) -> float:
        if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,6})?", text) or not low <= float(text) <= high:
            raise ValueError(f"seconds from {low:g} to {high:g} are wanted")
        return float(text)

    return parse


def size(low: str, high: str) -> Parser[int]:
    def parse(text: str) -> int:
        count = _bytes(text)
        if count is None or not (_bytes(low) or 0) <= count <= (_bytes(high) or 0):
            raise ValueError(f"a size from {low} to {high} is wanted, in bytes or with KiB, MiB, GiB or TiB")
        return count

    return parse


def _bytes(text: str) -> int | None:
    found = re.fullmatch(r"([0-9]{1,15}) ?(|B|[KMGT]iB)", text)
    return int(found[1]) * UNITS[found[2]] if found else None


def one_of(*words: Word) -> Parser[Word]:
    def parse(text: str) -> Word:
        for word in words:
            if word == text.lower():
                return word
        raise ValueError(f"one of {', '.join(words)} is wanted")

    return parse


def switch(text: str) -> bool:
    return one_of("on", "off")(text) == "on"


def some_of(*words: str) -> Parser[frozenset[str]]:
    """A comma-separated choice; `all` is every word."""

    def parse(text: str) -> frozenset[str]:
        chosen = frozenset(words) if text == "all" else frozenset(entries(text))
        if not chosen or not chosen <= set(words):
            raise ValueError(f"`all` or a list of {', '.join(words)} is wanted")
        return chosen

    return parse


def matching(pattern: str, wanted: str) -> Parser[str]:
    def parse(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(f"{wanted} is wanted")
        return text

    return parse


def list_of(parse_one: Parser[str]) -> Parser[tuple[str, ...]]:
    def parse(text: str) -> tuple[str, ...]:
        return tuple(dict.fromkeys(parse_one(entry) for entry in entries(text)))

    return parse


def series(parse_one: Parser[T]) -> Parser[tuple[T, ...]]:
    """One after another, commas between, one at least; the same may come again."""

    def parse(text: str) -> tuple[T, ...]:
        found = tuple(parse_one(entry) for entry in entries(text))
        if not found:
            raise ValueError("one value at least is wanted, commas between several")
        return found

    return parse


def path(text: str) -> Path:
    if not text.isprintable():
        raise ValueError("a path of printable characters is wanted")
    return Path(text)


def prefix(text: str) -> str:
    """No slash at either end. Some stores refuse `.` and `..` segments, some fold empty ones."""
    segments = text.strip("/").split("/")
    if text.strip("/") and not all(re.fullmatch(r"(?!\.{1,2}$)[\w.!'()*-]{1,255}", s, re.ASCII) for s in segments):
        raise ValueError("path segments of letters, digits and -_.!'()* are wanted")
    return text.strip("/")


def hosts(text: str) -> str:
    """Stays the text: whoever dials parses it."""
    HostList.parse(text)
    return text


def url(text: str) -> str:
    """An http(s) URL without user, query or fragment; no trailing slash is kept."""
    parts = _split(text)
    if parts is None or parts.scheme not in {"http", "https"} or "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError("a plain http(s) URL without user, query or fragment is wanted")
    return text.rstrip("/")


def public_url(text: str) -> str:
    plain = url(text)
    parts = urlsplit(plain)
    if (parts.scheme == "http" and not _loopback(parts.hostname or "")) or len(plain) > PUBLIC_URL_CHARS_MAX:
        raise ValueError(
            f"an https URL (http on loopback alone) of at most {PUBLIC_URL_CHARS_MAX} characters is wanted"
        )
    return plain


def redis_url(text: str) -> Secret:
    """A Secret: the URL may hold a password."""
    address.parse(text)
    return Secret(text)


def api_key(text: str) -> Secret:
    if not re.fullmatch(r"[\x21-\x7e]{8,4096}", text):
        raise ValueError("8 or more printable characters without spaces are wanted")
    return Secret(text)


def api_tokens(text: str) -> Mapping[str, Secret]:
    tokens = _named(text, r"[\x21-\x7e]{16,512}", "name:token pairs (token: 16 or more printable characters)")
    if len(set(tokens.values())) < len(tokens):
        raise ValueError("a token of its own is wanted for each caller, but two share one")
    return _sealed(tokens)


def notify_secrets(text: str) -> Mapping[str, tuple[Secret, ...]]:
    """A caller may be there twice: then each of the two signs, in this order, while the receiver changes over."""
    pairs = _pairs(text, r"whsec_[^:]+", "name:whsec_… pairs")
    if not all(len(notify_key(value)) in NOTIFY_KEY_BYTES for _, value in pairs):
        raise ValueError("24 to 64 bytes in base64 are wanted after each whsec_")
    if len(set(pairs)) < len(pairs):
        raise ValueError("a secret is there twice for one caller")
    names = dict.fromkeys(name for name, _ in pairs)
    return MappingProxyType({name: tuple(Secret(value) for who, value in pairs if who == name) for name in names})


def notify_key(secret: str) -> bytes:
    """The bytes that a `whsec_…` secret signs with; none, if it spells none."""
    return _unbase64(secret.removeprefix("whsec_")) or b""


def webhook_keys(text: str) -> tuple[WebhookKey, ...]:
    """`kid:base64` pairs; the first signs, all verify."""
    pairs = [entry.partition(":") for entry in entries(text)]
    keys = tuple(WebhookKey(kid, _unbase64(encoded) or b"") for kid, _, encoded in pairs)
    if not all(re.fullmatch(r"[A-Za-z0-9]{1,16}", k.kid) and len(k.key) >= KEY_BYTES_MIN for k in keys):
        raise ValueError(
            f"kid:base64 pairs are wanted, {KEY_BYTES_MIN} bytes or more each, kid of 1 to 16 letters or digits"
        )
    if len({k.kid for k in keys}) < len(keys) or len({k.key for k in keys}) < len(keys):
        raise ValueError("a kid and a key of its own are wanted in each pair, but one is there twice")
    return keys


def budgets(text: str) -> Mapping[str, Decimal]:
    """US dollars a day for each caller named."""
    amounts = _named(text, r"[0-9]{1,9}(\.[0-9]{1,4})?", "name:usd_per_day pairs")
    return MappingProxyType({name: Decimal(amount) for name, amount in amounts.items()})


def tags(text: str) -> Mapping[str, str]:
    """What S3 takes as tags: https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-tagging.html."""
    found = entries(text)
    if len(found) > TAGS_MOST or not all(map(TAG.fullmatch, found)):
        raise ValueError(f"at most {TAGS_MOST} name=value pairs of letters, digits, spaces and +-=._:/@ are wanted")
    pairs = [entry.partition("=")[::2] for entry in found]
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a name of its own is wanted for each tag, but one is there twice")
    return MappingProxyType(dict(pairs))


def entries(text: str) -> list[str]:
    return [entry.strip() for entry in text.split(",") if entry.strip()]


def _pairs(text: str, pattern: str, wanted: str) -> list[tuple[str, str]]:
    pairs = [(entry.partition(":")[0], entry.partition(":")[2]) for entry in entries(text)]
    if not all(CALLER.fullmatch(name) and re.fullmatch(pattern, value) for name, value in pairs):
        raise ValueError(f"{wanted} are wanted, comma-separated, name of [a-z0-9_-]")
    return pairs


def _named(text: str, pattern: str, wanted: str) -> dict[str, str]:
    pairs = _pairs(text, pattern, wanted)
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a name of its own is wanted for each caller, but one is there twice")
    return dict(pairs)


def _sealed(values: Mapping[str, str]) -> Mapping[str, Secret]:
    return MappingProxyType({name: Secret(value) for name, value in values.items()})


def _unbase64(text: str) -> bytes | None:
    """Both alphabets of RFC 4648, padded or not."""
    plain = text.rstrip("=").replace("-", "+").replace("_", "/")
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError):
        return None


def _split(text: str) -> SplitResult | None:
    """The parts of a URL whose host and port can be read, else None."""
    try:
        parts = urlsplit(text)
        known = parts.hostname and parts.port != 0
    except ValueError:
        return None
    return parts if known and text.isprintable() and " " not in text else None


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
