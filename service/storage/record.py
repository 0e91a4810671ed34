"""How a job lies in Redis: one hash, a field each, so that `HGETALL` tells an operator all of it.

What was ordered is one JSON field, `body`; what became of it are fields of their own. None is the empty string.
`SCHEMA` is counted up when a field changes its meaning: a newer record than ours is left alone (`NewerRecord`).
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from service.domain.errors import JobError
from service.domain.job import FoundBy, Image, Job, Priority, Status

SCHEMA: Final = 1


class CorruptRecord(Exception):
    """The record's checksum or shape is wrong. `job_id` tells whose."""

    def __init__(self, job_id: str, detail: str) -> None:
        super().__init__(f"record of {job_id}: {detail}")
        self.job_id = job_id


class NewerRecord(Exception):
    """Written by a newer release: left alone until a process of that release looks at it."""


def _optional(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    return lambda text: parse(text) if text else None


def _flag(text: str) -> bool:
    return text == "1"


def _attempts(text: str) -> tuple[int, ...]:
    return tuple(json.loads(text)) if text else ()


def _object(text: str) -> dict[str, Any]:
    return json.loads(text) if text else {}


def _image(text: str) -> Image:
    return Image.from_dict(json.loads(text))


def _error(text: str) -> JobError:
    return JobError.from_dict(json.loads(text))


_BODY: Final = ("request", "metadata", "callback_url", "custom_id")

_READ: Final[Mapping[str, Callable[[str], Any]]] = {
    "id": str,
    "caller": str,
    "model": str,
    "priority": Priority,
    "batch_id": _optional(str),
    "retry_of": _optional(str),
    "version": int,
    "status": Status,
    "reason": str,
    "created_at": int,
    "deadline_at": _optional(int),
    "intent_at": _optional(int),
    "submitted_at": _optional(int),
    "ready_at": _optional(int),
    "finished_at": _optional(int),
    "attempt": int,
    "open": _attempts,
    "refusals": int,
    "possible_duplicate": _flag,
    "untold": _flag,
    "tasks": _object,
    "costs": _object,
    "candidate": _optional(str),
    "hints": int,
    "polls": int,
    "polled_at": _optional(int),
    "pulls": int,
    "provider_id": _optional(str),
    "found_by": _optional(FoundBy),
    "result_url": _optional(str),
    "result_expires_at": _optional(int),
    "result_seed": _optional(int),
    "image": _optional(_image),
    "error": _optional(_error),
    "sidecar": _flag,
    "scrub": _flag,
    "retried_by": _optional(str),
}

# Fields of the hash that are the store's own: the cap's group, whose queue it is, event ids seen, the schema.
_OWN: Final = ("body", "group", "queue", "seen", "schema")
NAMES: Final = (*_READ, *_OWN)

_JSON: Final = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, default=dict)


def write(fields: Mapping[str, Any]) -> Iterable[str]:
    """Fields of a Job as the flat list `name, value, …` that the script takes."""
    for name, value in fields.items():
        yield name
        yield _text(value)


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "1" if value else "0"
    if isinstance(value, Image | JobError):
        return compact(value.to_dict())
    if isinstance(value, tuple | Mapping):
        return compact(value)
    return str(value)


def fresh(job: Job) -> dict[str, Any]:
    """All fields of a new record, in the shape `write` takes; instants are stamped by the script."""
    fields = {name: getattr(job, name) for name in _READ if name not in {"version", "deadline_at", "created_at"}}
    body = {name: getattr(job, name) for name in _BODY}
    return fields | {"body": compact(body), "schema": SCHEMA}


def read(flat: Mapping[str, str]) -> Job:
    """The Job of a hash. Raises CorruptRecord, NewerRecord."""
    job_id = flat.get("id", "?")
    if int(flat.get("schema") or 0) > SCHEMA:
        raise NewerRecord(job_id)
    if flat.get("sum") != checksum(flat):
        raise CorruptRecord(job_id, "its checksum is wrong")
    try:
        body = json.loads(flat["body"])
        return Job(**{name: parse(flat.get(name, "")) for name, parse in _READ.items() if name in flat}, **body)
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptRecord(job_id, f"it cannot be read ({type(error).__name__})") from error


def checksum(flat: Mapping[str, str]) -> str:
    """SHA-1 over `name=value` lines in the order of NAMES: the same that the script stores as `sum`."""
    lines = "".join(f"{name}={flat[name]}\n" for name in NAMES if name in flat)
    return hashlib.sha1(lines.encode("utf-8", "surrogateescape"), usedforsecurity=False).hexdigest()


def compact(value: Any) -> str:
    return _JSON.encode(value)
