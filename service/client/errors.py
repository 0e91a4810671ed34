"""What a call raises: the service said no, it could not be reached, or what was waited for has not come."""

import json
from collections.abc import Mapping
from typing import Any, Self

from .shapes import Job


class ClientError(Exception):
    """Base of all that this package raises by itself."""


class Unreachable(ClientError):
    """No whole answer came for the whole of the patience. A call with the same Idempotency-Key may be made again."""


class Unfinished(ClientError, TimeoutError):
    """The wait is over and the job goes on; `job` is what it was last."""

    def __init__(self, job: Job) -> None:
        super().__init__(f"{job['id']} is still {job['status']}")
        self.job = job


class ServiceError(ClientError):
    """An answer that is no success (RFC 9457). Branch on `code`, which is stable.

    `errors` name what is wrong with a request: `pointer` (to the field), `detail`, and `line` (from 1) in a batch;
    `more_lines` are the numbers of further bad lines. `request_id` leads to the cause in the service's log.
    """

    def __init__(self, status: int, code: str, detail: str, **more: Any) -> None:
        super().__init__(f"{status} {code}: {detail}")
        self.status = status
        self.code = code
        self.detail = detail
        self.errors: list[dict[str, Any]] = _list_of(dict, more.get("errors"))
        self.more_lines: list[int] = _list_of(int, more.get("more_lines"))
        self.request_id: str | None = _text(more.get("request_id"))
        self.job_id: str | None = _text(more.get("job_id"))

    @classmethod
    def of(cls, status: int, body: bytes) -> Self:
        """Total: an answer that is no problem document (a proxy's page) has the code `http_<status>`."""
        told = document(body)
        named = {name: told[name] for name in ("errors", "more_lines", "request_id", "job_id") if name in told}
        code, detail = _text(told.get("code")), _text(told.get("detail"))
        return cls(status, code or f"http_{status}", detail or "The answer explains nothing.", **named)


def document(body: bytes) -> Mapping[str, Any]:
    """The JSON object in these bytes; empty where there is none."""
    try:
        told = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return told if isinstance(told, dict) else {}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _list_of(kind: type[Any], value: object) -> list[Any]:
    return [each for each in value if isinstance(each, kind)] if isinstance(value, list) else []
