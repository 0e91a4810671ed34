"""Lists of jobs, newest first, a page at a time."""

import base64
from collections.abc import Mapping
from typing import Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from service.api.auth import ADMIN, promptly
from service.api.problems import ProblemError
from service.domain import layout
from service.domain.errors import FieldError
from service.domain.job import Status
from service.domain.view import view
from service.storage.store import Store

PAGE: Final = 50
PAGE_MOST: Final = 200


class Listing:
    def __init__(self, store: Store) -> None:
        self._store = store

    async def page(self, request: Request, caller: str) -> Response:
        asked = _Asked(request.query_params)
        jobs = await promptly(
            self._store.page(
                caller=None if caller == ADMIN else caller,
                status=asked.status,
                batch_id=asked.batch_id,
                before=asked.before,
                limit=asked.limit + 1,  # one more tells whether there is a next page
            )
        )
        shown = jobs[: asked.limit]
        cursor = _cursor(shown[-1].id) if len(jobs) > asked.limit else None
        return JSONResponse({"jobs": [view(job) for job in shown], "next_cursor": cursor})


class _Asked:
    """The parameters of a list, checked."""

    def __init__(self, given: Mapping[str, str]) -> None:
        self.status = _status(given.get("status"))
        self.batch_id = given.get("batch")
        if self.batch_id is not None and not layout.valid_id("batch", self.batch_id):
            raise invalid_parameter("batch", "Is no batch id")
        limit = given.get("limit", str(PAGE))
        if not (limit.isascii() and limit.isdigit() and len(limit) <= 4 and 1 <= int(limit) <= PAGE_MOST):
            raise invalid_parameter("limit", f"Should be 1 to {PAGE_MOST}")
        self.limit = int(limit)
        self.before = _before(given.get("cursor") or None)  # an empty one begins a loop over the pages


def _status(text: str | None) -> Status | None:
    try:
        return None if text is None else Status(text)
    except ValueError:
        raise invalid_parameter("status", f"Should be one of {', '.join(Status)}") from None


def _cursor(job_id: str) -> str:
    return base64.urlsafe_b64encode(job_id.encode()).decode().rstrip("=")


def _before(cursor: str | None) -> str | None:
    """The job id in a cursor of ours."""
    if cursor is None:
        return None
    try:
        job_id = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode("ascii")
    except ValueError:
        job_id = ""
    if not layout.valid_id("job", job_id):
        raise invalid_parameter("cursor", "Is no cursor of this list")
    return job_id


def invalid_parameter(name: str, detail: str) -> ProblemError:
    """A query parameter or header that is wrong; its pointer is its name."""
    return ProblemError(422, "invalid_request", f"{name}: {detail}.", errors=[FieldError(f"/{name}", detail)])
