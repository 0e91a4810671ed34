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
        given = request.query_params
        limit = limit_of(given)
        jobs = await promptly(
            self._store.page(
                caller=None if caller == ADMIN else caller,
                status=status_of(given),
                batch_id=_batch_of(given),
                before=place_of(given, "job"),
                limit=limit + 1,  # one more tells whether there is a next page
            )
        )
        more = cursor(jobs[limit - 1].id) if len(jobs) > limit else None
        return JSONResponse({"jobs": [view(job) for job in jobs[:limit]], "next_cursor": more})


def limit_of(given: Mapping[str, str]) -> int:
    """How long a page shall be. This and those below raise ProblemError 422 for a parameter that is wrong."""
    limit = given.get("limit", str(PAGE))
    if not (limit.isascii() and limit.isdigit() and len(limit) <= 4 and 1 <= int(limit) <= PAGE_MOST):
        raise invalid_parameter("limit", f"Should be 1 to {PAGE_MOST}")
    return int(limit)


def status_of(given: Mapping[str, str]) -> Status | None:
    text = given.get("status")
    try:
        return None if text is None else Status(text)
    except ValueError:
        raise invalid_parameter("status", f"Should be one of {', '.join(Status)}") from None


def place_of(given: Mapping[str, str], kind: str) -> str | None:
    """The id, of a job or a batch, in a cursor of ours; None at the beginning."""
    text = given.get("cursor")
    if not text:  # an empty one begins a loop over the pages
        return None
    try:
        id_ = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode("ascii")
    except ValueError:
        id_ = ""
    if not layout.valid_id(kind, id_):
        raise invalid_parameter("cursor", "Is no cursor of this list")
    return id_


def cursor(id_: str) -> str:
    """What leads on behind the last of a page."""
    return base64.urlsafe_b64encode(id_.encode()).decode().rstrip("=")


def _batch_of(given: Mapping[str, str]) -> str | None:
    batch_id = given.get("batch")
    if batch_id is not None and not layout.valid_id("batch", batch_id):
        raise invalid_parameter("batch", "Is no batch id")
    return batch_id


def invalid_parameter(name: str, detail: str) -> ProblemError:
    """A query parameter or header that is wrong; its pointer is its name."""
    return ProblemError(422, "invalid_request", f"{name}: {detail}.", errors=[FieldError(f"/{name}", detail)])
