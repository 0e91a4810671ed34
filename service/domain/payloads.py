"""How the provider spells a task: the dialects of BFL and CometAPI, read field by field, each total.

A payload is the JSON object of an answer or a callback. CometAPI may wrap it, `{"code", "data": {"status",
"fail_reason", "data": {…}}}`, so every reading goes over its layers, outermost first.
"""

import json
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from enum import Enum, auto
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from service.domain.addresses import RESULT_URL_MAX_CHARS
from service.domain.inputs import WEB_URL
from service.domain.parsing import DEPTH_MAX, deeper_than, is_unicode
from service.domain.redaction import clean

Payload = Mapping[str, Any]

LAYERS_MAX: Final = 3
COST_MAX: Final = 1_000_000.0  # credits; more is no price
DURATION_S_MAX: Final = 86_400.0
EPOCH_S_MAX: Final = 1e11

_PROVIDER_ID: Final = re.compile(r"[!-~]{1,200}")
_WEB_URL: Final = re.compile(WEB_URL)
_MODERATION_REASONS: Final = "Moderation Reasons"


class Word(Enum):
    """What a status word says. Those that no table knows (`Reasoning`, `IN_PROGRESS`, next year's) mean: not ended."""

    READY = auto()
    FAILED = auto()
    MODERATED = auto()
    NOT_FOUND = auto()
    GOING_ON = auto()


_WORDS: Final = {
    "ready": Word.READY,
    "success": Word.READY,
    "error": Word.FAILED,
    "failed": Word.FAILED,
    "failure": Word.FAILED,
    "request moderated": Word.MODERATED,
    "content moderated": Word.MODERATED,
    "task not found": Word.NOT_FOUND,
}


def layers(payload: Payload) -> list[Payload]:
    found = [payload]
    while len(found) < LAYERS_MAX and isinstance(inner := found[-1].get("data"), dict):
        found.append(inner)
    return found


def words(payload: Payload) -> set[Word]:
    """What its statuses say. FastAPI's bare `{"detail": "Task not found"}` counts as one; none: no task speaks here."""
    spoken = [layer.get(name) for layer in layers(payload) for name in ("status", "detail")]
    known = {_WORDS[key] for word in spoken if isinstance(word, str) and (key := _key(word)) in _WORDS}
    if Word.FAILED in known and is_moderation(payload):
        known.add(Word.MODERATED)
    return known or ({Word.GOING_ON} if _has_status(payload) else set())


def is_task(payload: Payload) -> bool:
    """Whether a task speaks, not a gateway: `{"status": "error", "message"}` alone is anybody's way to fail."""
    wrapped = any("status" in layer for layer in layers(payload)[1:])
    return wrapped or "result" in payload or provider_id(payload) is not None


def is_moderation(payload: Payload) -> bool:
    """A failure whose reason is moderation, though its status is a plain Error or FAILURE."""
    return bool(_moderation_reasons(payload)) or any(
        isinstance(reason := layer.get("fail_reason"), str) and _WORDS.get(_key(reason)) is Word.MODERATED
        for layer in layers(payload)
    )


def provider_id(payload: Payload) -> str | None:
    """The outermost id is the one to ask for: inside CometAPI's wrapping lies the id of the house behind it."""
    for layer in layers(payload):
        for name in ("task_id", "id"):
            value = layer.get(name)
            if isinstance(value, str) and _PROVIDER_ID.fullmatch(value):
                return value
    return None


def sample_url(payload: Payload) -> str | None:
    for result in _results(payload):
        sample = result.get("sample")
        if not isinstance(sample, str) or len(sample) > RESULT_URL_MAX_CHARS:
            continue
        if _WEB_URL.fullmatch(sample) and is_unicode(sample):  # a host with half a surrogate pair cannot be stored
            return sample
    return None


def seed(payload: Payload) -> int | None:
    for result in _results(payload):
        value = result.get("seed")
        if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() <= 64:
            return value
    return None


def duration_s(payload: Payload) -> float | None:
    for result in _results(payload):
        if (duration := _number(result.get("duration"), DURATION_S_MAX)) is not None:
            return duration
        start, end = (_number(result.get(name), EPOCH_S_MAX) for name in ("start_time", "end_time"))
        if start is not None and end is not None:
            return _number(end - start, DURATION_S_MAX)
    return None


def cost(payload: Payload) -> float | None:
    """In the provider's credits."""
    given = (_number(layer.get("cost"), COST_MAX) for layer in layers(payload))
    return next((one for one in given if one is not None), None)


def progress(payload: Payload) -> float | None:
    """0 to 1; anything else has been seen and means nothing."""
    given = (_number(layer.get("progress"), 1.0) for layer in layers(payload))
    return next((one for one in given if one is not None), None)


def secret(payload: Payload) -> str | None:
    """What the sender offers as proof. Null and empty count as none; half surrogate pairs become question marks."""
    given = (layer.get(name) for layer in layers(payload) for name in ("webhook_secret", "secret"))
    found = next((one for one in given if isinstance(one, str) and one), None)
    return None if found is None else found.encode(errors="replace").decode()


def expires_at(url: str) -> int | None:
    """The end of an Azure SAS, its `se` parameter, in epoch milliseconds; None where the URL does not say."""
    try:
        given = parse_qs(urlsplit(url).query).get("se", [""])[0]
        instant = datetime.fromisoformat(given)
        aware = instant if instant.tzinfo else instant.replace(tzinfo=UTC)
        return round(aware.timestamp() * 1000)
    except (ValueError, OverflowError):
        return None


def reasons(payload: Payload) -> str:
    """Why it was moderated, as a caller may read it; "" when nobody says."""
    return clean(", ".join(_moderation_reasons(payload))) or message(payload)


def message(payload: Payload) -> str:
    """The first explanation that a layer gives, as text fit to be shown; "" when there is none."""
    for layer in layers(payload):
        for name in ("error", "fail_reason", "detail", "details", "message", "msg"):
            if text := clean(_text(layer.get(name))):
                return text
    return ""


def error_code(payload: Payload) -> str:
    """CometAPI's `{"error": {"code"}}`, or a bare `code`."""
    error = payload.get("error")
    code = (error if isinstance(error, dict) else payload).get("code")
    return code if isinstance(code, str) else ""


def _key(word: str) -> str:
    return word.strip().casefold().replace("_", " ")


def _has_status(payload: Payload) -> bool:
    return any(isinstance(layer.get("status"), str) for layer in layers(payload))


def _results(payload: Payload) -> Iterator[Payload]:
    """Where a sample may lie: in a layer's `result`, or in a layer itself; innermost first."""
    for layer in reversed(layers(payload)):
        if isinstance(result := layer.get("result"), dict):
            yield result
        yield layer


def _moderation_reasons(payload: Payload) -> list[str]:
    for layer in layers(payload):
        details = layer.get("details")
        given = details.get(_MODERATION_REASONS) if isinstance(details, dict) else None
        if isinstance(given, list):
            return [reason for reason in given if isinstance(reason, str)]
        if isinstance(given, str):
            return [given]
    return []


def _number(value: object, most: float) -> float | None:
    """Python compares an integer of any size, and a NaN, without raising; only what passes becomes a float."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 <= value <= most else None


def _text(reason: object) -> str:
    """Of FastAPI's `[{"loc", "msg", "input"}]` the input is left out: it is the caller's prompt."""
    if isinstance(reason, str):
        return reason
    if isinstance(reason, dict):
        said = reason.get("message") or reason.get("msg")
        return said if isinstance(said, str) else _compact(reason)
    if isinstance(reason, list):
        return "; ".join(_place(one) + _text(one) for one in reason[:20] if isinstance(one, dict | str))
    return ""


def _place(reason: object) -> str:
    location = reason.get("loc") if isinstance(reason, dict) else None
    names = [str(name) for name in location if isinstance(name, str | int)] if isinstance(location, list) else []
    return ".".join(name for name in names if name != "body") + ": " if names else ""


def _compact(reason: Payload) -> str:
    said = {name: value for name, value in reason.items() if name != "input"}
    return json.dumps(said, ensure_ascii=False) if said and not deeper_than(said, DEPTH_MAX) else ""
