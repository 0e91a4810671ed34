"""The texts of settings: environment, `.env` and secrets' files, and what may be said of a mistake in them."""

import io
from collections.abc import Iterable, Mapping, MutableMapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, NamedTuple

from dotenv import dotenv_values
from dotenv.parser import parse_stream

from service.parsers import Parser

SECRET_FILE_BYTES_MAX: Final = 65_536
# A misspelt name is sure to be ours only behind these prefixes; HOST, REDIS_… and the like others use too.
OUR_PREFIXES: Final = ("FLUX_", "S3_", "WEBHOOK_", "UNKNOWN_")
TYPO_LIKENESS: Final = 0.75
SHOWN_CHARS_MAX: Final = 60
PROXY: Final = "_proxy"  # ends the names of HTTP_PROXY, no_proxy and so on, in either case
CREDENTIALS: Final = "AWS_"  # no settings: boto3 reads them itself, and in the environment alone


class Row(NamedTuple):
    name: str
    default: str | None
    parse: Parser[Any]
    unit: str
    doc: str
    secret: bool
    example: str


def texts(rows: Iterable[Row], environ: Mapping[str, str], dotenv: Path | None) -> tuple[dict[str, str], list[str]]:
    """What is set, by name. A secret given in the environment in either form hides both forms in the file."""
    lines, mistakes = _lines(dotenv)
    hidden = {twin for row in rows for twin in twins(row) if any(environ.get(name) for name in twins(row))}
    merged = {name: text for name, text in lines.items() if name not in hidden} | dict(environ)
    return {name: text.strip() for name, text in merged.items() if text and text.strip()}, mistakes


def take_credentials(environ: MutableMapping[str, str], dotenv: Path) -> None:
    """Put the AWS_… lines of the file into `environ`, where boto3 and every child find them: all of them or none.

    None where `environ` has one of its own: a key of one place and a secret or a profile of another open nothing.
    A file that cannot be read has none; `texts` says what is wrong with it.
    """
    if any(text.strip() for name, text in environ.items() if name.startswith(CREDENTIALS)):
        return
    lines, _ = _lines(dotenv)
    environ.update({name: text.strip() for name, text in lines.items() if name.startswith(CREDENTIALS) and text})


def is_proxy(name: str) -> bool:
    """Whether a variable of the environment speaks of proxies, which loopback is never behind."""
    return name.lower().endswith(PROXY)


def _lines(dotenv: Path | None) -> tuple[dict[str, str | None], list[str]]:
    """What the file says, by name, and what cannot be read in it: then it says nothing."""
    try:
        text = dotenv.read_text("utf-8") if dotenv and dotenv.exists() else ""
    except (OSError, ValueError) as error:
        return {}, [f"{dotenv}: cannot be read ({type(error).__name__})"]
    mistakes = [f"{dotenv}: line {number} is no NAME=value (a quote that is not closed?)" for number in _odd(text)]
    return {} if mistakes else dotenv_values(stream=io.StringIO(text), interpolate=False), mistakes


def _odd(text: str) -> list[int]:
    """Numbers of the lines that say nothing that can be read: python-dotenv would skip them."""
    return [binding.original.line for binding in parse_stream(io.StringIO(text)) if binding.error]


def twins(row: Row) -> tuple[str, ...]:
    """The names that a setting is told by: a secret's also by a file."""
    return (row.name, f"{row.name}_FILE") if row.secret else (row.name,)


def value(row: Row, texts: Mapping[str, str]) -> Any:
    """Raises ValueError with the whole line of the mistake."""
    text, shown = _text(row, texts)
    if not text:
        return None if row.default is None else row.parse(row.default)
    try:
        return row.parse(text)
    except ValueError as error:
        raise ValueError(f"{shown}: {error}, e.g. {row.name}={row.example}") from None


def _text(row: Row, texts: Mapping[str, str]) -> tuple[str, str]:
    """The text of a setting, and how a mistake may name it."""
    twin = f"{row.name}_FILE"
    if not row.secret or twin not in texts:
        text = texts.get(row.name, "")
        return text, row.name if row.secret or "@" in text else f"{row.name}={_short(text)}"
    if row.name in texts:
        raise ValueError(f"{row.name} and {twin}: one of them is wanted, not both")
    try:
        with Path(texts[twin]).open(encoding="utf-8") as file:
            return file.read(SECRET_FILE_BYTES_MAX).strip(), f"{twin}={_short(texts[twin])}"
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise ValueError(f"{twin}={_short(texts[twin])}: cannot be read ({reason})") from None


def _short(text: str) -> str:
    plain = "".join(c if c.isprintable() else "\ufffd" for c in text)
    return plain if len(plain) <= SHOWN_CHARS_MAX else plain[: SHOWN_CHARS_MAX - 1] + "…"


def misspelt(rows: Iterable[Row], texts: Mapping[str, str]) -> list[str]:
    known = [name for row in rows for name in twins(row)]
    strange = sorted(name for name in texts if name.startswith(OUR_PREFIXES) and name not in known)
    close = {name: get_close_matches(name, known, 1, TYPO_LIKENESS) for name in strange}
    return [f"{name}: no such setting; {like[0]} is meant?" for name, like in close.items() if like]
