"""How a job lies in Redis: one hash, a field each, so that `HGETALL` tells an operator all of it.

What was ordered is one JSON field, `body`; what became of it are fields of their own. None is the empty string.
`SCHEMA` is counted up when a field changes its meaning: a newer record than ours is left alone (`NewerRecord`). Its
checksum names the schema, too, so that one flipped byte cannot make a record look newer.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any, Final

from service.domain.errors import JobError
from service.domain.job import FoundBy, Image, Job, Priority, Status
from service.domain.layout import TIME_END_MS

SCHEMA: Final = 1


class CorruptRecord(Exception):
    """The record's checksum or shape is wrong. `job_id` tells whose."""

    def __init__(self, job_id: str, detail: str) -> None:
        super().__init__(f"record of {job_id}: {detail}")
        self.job_id = job_id


class NewerRecord(Exception):
    """Written by a newer release: left alone until a process of that release looks at it. `job_id` tells whose."""

    def __init__(self, job_id: str) -> None:
        super().__init__(f"record of {job_id} is of a newer release")
        self.job_id = job_id


def _optional(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    return lambda text: parse(text) if text else None


def _flag(text: str) -> bool:
    return text == "1"


def _attempts(text: str) -> tuple[int, ...]:
    return () if text in {"", "[]"} else tuple(json.loads(text))


def _object(text: str) -> dict[str, Any]:
    return {} if text in {"", "{}"} else json.loads(text)


def _image(text: str) -> Image:
    return Image.from_dict(json.loads(text))


def _error(text: str) -> JobError:
    return JobError.from_dict(json.loads(text))


_BODY: Final[Mapping[str, type]] = {
    "request": dict,
    "metadata": dict,
    "callback_url": str,
    "custom_id": str,
    "hook": str,
}
_MAPS: Final[Mapping[str, Any]] = {"tasks": str, "costs": int | float}

_READ: Final[Mapping[str, Callable[[str], Any]]] = {
    "id": str,
    "caller": str,
    "model": str,
    "priority": Priority,
    "batch_id": _optional(str),
    "retry_of": _optional(str),
    "idempotency": _optional(str),
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
    "candidate_of": int,
    "hints": int,
    "polls": int,
    "polled_at": _optional(int),
    "pulls": int,
    "provider_id": _optional(str),
    "found_by": _optional(FoundBy),
    "result_url": _optional(str),
    "result_expires_at": _optional(int),
    "result_seed": _optional(int),
    "asked_at": _optional(int),
    "spool": _optional(str),
    "image": _optional(_image),
    "error": _optional(_error),
    "sidecar": _flag,
    "scrub": _flag,
    "retried_by": _optional(str),
}

# What a corrupt record says of these is not believed.
_UNSURE: Final[Mapping[str, Any]] = {
    "open": (),
    "image": None,
    "result_url": None,
    "candidate": None,
    "deadline_at": None,
    "sidecar": False,
    "scrub": True,
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
    if type(value) is str:
        return value
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


def read(flat: Mapping[str, str], key: str | None = None) -> Job:
    """The Job of a hash; `key` is the id under which it lies. Raises CorruptRecord, NewerRecord; total otherwise."""
    job_id = key or flat.get("id", "?")
    _guard(flat, job_id)
    try:
        told = json.loads(flat["body"])
        body = {name: told[name] for name in _BODY if name in told}  # a newer release may have said more
        return Job(
            **{name: parse(flat.get(name, "")) for name, parse in _READ.items() if name in flat},
            **body,
            digest=flat["sum"],
        )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptRecord(job_id, f"it cannot be read ({type(error).__name__})") from error


def _guard(flat: Mapping[str, str], job_id: str) -> None:
    schema, told = flat.get("schema", ""), flat.get("sum", "")
    if schema.isdecimal() and int(schema[:9]) > SCHEMA and told.startswith(f"{schema}:"):
        raise NewerRecord(job_id)  # its own release knows over which fields its sum goes
    if told != checksum(flat):
        raise CorruptRecord(job_id, "its checksum is wrong")


def salvage(flat: Mapping[str, str], key: str) -> Job:
    """What can still be read of a corrupt record; what cannot is as in a new job. Total, and so is `view` of it.

    Nothing of it is sure, so it holds no slot, waits for nothing and has no image: its own way is over.
    """
    found: dict[str, Any] = {"caller": "", "model": "", "request": {}}
    for name, parse in _READ.items():
        with suppress(ValueError, KeyError, TypeError, RecursionError):
            found[name] = _sane(name, parse(_utf8(flat[name])))
    with suppress(ValueError, KeyError, TypeError, RecursionError):
        body = json.loads(_utf8(flat["body"]))
        compact(body).encode()  # half of a surrogate pair: ValueError
        found |= {name: body[name] for name, kind in _BODY.items() if isinstance(body[name], kind)}
    return Job(**(found | dict(_UNSURE) | {"id": key}))


def _sane(name: str, value: Any) -> Any:
    """The value, if it is of the kind that such a field has; else ValueError."""
    kind = _MAPS.get(name)
    if kind is not None and not (isinstance(value, dict) and all(isinstance(each, kind) for each in value.values())):
        raise ValueError(name)
    if isinstance(value, int) and not 0 <= value < TIME_END_MS:
        raise ValueError(name)
    return value


def _utf8(text: str) -> str:
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def checksum(flat: Mapping[str, str]) -> str:
    """The schema, and SHA-1 over `name=value` lines in the order of NAMES: the same that the script stores as `sum`."""
    lines = "".join([f"{name}={flat[name]}\n" for name in NAMES if name in flat])
    digest = hashlib.sha1(lines.encode("utf-8", "surrogateescape"), usedforsecurity=False).hexdigest()
    return f"{flat.get('schema', '')}:{digest}"


def compact(value: Any) -> str:
    return _JSON.encode(value)
