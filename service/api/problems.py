"""Errors as RFC 9457 problems: `application/problem+json` with a stable `code`.

{"type": "about:blank", "title": "Conflict", "status": 409, "detail": "…", "code": "not_ready", "request_id": "…"}
"""

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from http import HTTPStatus
from typing import Any, Final

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, ExceptionHandler, Message, Receive, Scope, Send

from service.domain.errors import FieldError
from service.logs import request_id
from service.storage.connection import RedisError

logger = logging.getLogger(__name__)

RETRY_AFTER_S: Final = 1
# Where the code is not simply the name of the status.
CODES: Final = {401: "unauthorized", 413: "body_too_large", 422: "invalid_request", 500: "internal", 503: "unavailable"}
# RFC 9110, section 15.5; Python before 3.13 has the older names.
TITLES: Final = {413: "Content Too Large", 422: "Unprocessable Content"}

Errors = Iterable[FieldError | Mapping[str, Any]]


def problem(
    status: int,
    code: str,
    detail: str,
    *,
    errors: Errors | None = None,
    headers: Mapping[str, str] | None = None,
    **extra: Any,
) -> Response:
    """`detail` is for the caller: a sentence without foreign text. `errors` name fields; `extra` become members."""
    body: dict[str, Any] = {
        "type": "about:blank",
        "title": _title(status),
        "status": status,
        "detail": detail,
        "code": code,
    }
    if (request := request_id.get()) is not None:
        body["request_id"] = request
    if errors is not None:
        body["errors"] = [asdict(error) if isinstance(error, FieldError) else dict(error) for error in errors]
    text = json.dumps(body | extra)  # in ASCII: a detail may quote a lone surrogate
    return Response(
        text,
        status,
        {"cache-control": "no-store", **(headers or {})},
        media_type="application/problem+json",
    )


class ProblemError(Exception):
    """A problem as a route raises it; the arguments are those of `problem`."""

    def __init__(self, status: int, code: str, detail: str, **more: Any) -> None:
        super().__init__(f"{status} {code}: {detail}")
        self.status = status
        self.code = code
        self._arguments = (status, code, detail)
        self._more = more

    @property
    def errors(self) -> list[FieldError]:
        """The mistakes that name fields."""
        return [error for error in self._more.get("errors") or () if isinstance(error, FieldError)]

    @property
    def detail(self) -> str:
        return self._arguments[2]

    @property
    def headers(self) -> dict[str, str]:
        return dict(self._more.get("headers") or {})

    def response(self) -> Response:
        return problem(*self._arguments, **self._more)


def unavailable() -> Response:
    return problem(
        503, "unavailable", "The service cannot reach its database.", headers={"retry-after": str(RETRY_AFTER_S)}
    )


def internal() -> Response:
    return problem(500, "internal", "The service failed. The request id leads to the cause in its log.")


async def _on_problem(_: Request, error: Exception) -> Response:
    return error.response() if isinstance(error, ProblemError) else internal()


async def _on_http(_: Request, error: Exception) -> Response:
    """Starlette's own: an unknown path, a method that a path does not take."""
    if not isinstance(error, HTTPException):
        return internal()
    code = CODES.get(error.status_code, _title(error.status_code).lower().replace(" ", "_"))
    return problem(error.status_code, code, _title(error.status_code) + ".", headers=error.headers)


async def _on_redis(_: Request, error: Exception) -> Response:
    logger.warning("Redis did not serve a request", extra={"error_type": type(error).__name__, "reason": str(error)})
    return unavailable()


async def _on_disconnect(_: Request, _error: Exception) -> Response:
    return problem(400, "disconnected", "The body was cut.")  # nobody reads it


exception_handlers: Final[dict[Any, ExceptionHandler]] = {
    ProblemError: _on_problem,
    HTTPException: _on_http,
    RedisError: _on_redis,
    ClientDisconnect: _on_disconnect,
}


class LastResort:
    """Middleware: what no handler caught is logged once, with its type, and answered as `500 internal`.

    Starlette's own last resort raises the error again after its answer, so that uvicorn would log it too.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception:
            if scope["type"] != "http":
                raise
            logger.exception("A request failed")
            if not started:
                await internal()(scope, receive, send)


def _title(status: int) -> str:
    try:
        return TITLES.get(status) or HTTPStatus(status).phrase
    except ValueError:
        return "Unknown Status"
