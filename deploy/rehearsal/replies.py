"""Answers as HTTP: JSON whatever strings it holds, refusals in the dialect of the path, the pages of gateways."""

import json
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from deploy.rehearsal.answers import refusal

GATEWAY_WORDS = {
    "502": "Bad Gateway",
    "503-html": "Service Temporarily Unavailable",
    "504": "Gateway Time-out",
    "524": "A Timeout Occurred",
}
REFUSED_5XX = ("500", "502", "503", "503-html", "504", "524")
LATE_5XX = ("500", "502", "504", "524")
"""What may follow an acceptance: a 503 in JSON would say that nothing was accepted."""


class Json(JSONResponse):
    """A 422 echoes its input: lone surrogates and infinities must not break the answer, so all is ASCII."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, separators=(",", ":")).encode()


def refused(request: Request, status: int, message: str, code: str, headers: dict[str, str] | None = None) -> Response:
    comet = request.url.path.startswith("/flux/")
    return Json(refusal(message, code, comet=comet), status, headers=headers)


def broken(request: Request, kind: str) -> Response:
    """A 5xx: 500 and 503 are the API's own, in JSON; the others are pages of whatever stands before it."""
    status = int(kind[:3])
    if kind in GATEWAY_WORDS:
        title = f"{status} {GATEWAY_WORDS[kind]}"
        return HTMLResponse(f"<!doctype html><title>{title}</title><center><h1>{title}</h1></center>", status)
    return refused(request, status, "Service overloaded" if status == 503 else "Internal error", "server_error")


def unavailable_page() -> Response:
    return HTMLResponse("<!doctype html><title>Welcome</title><p>This route is not available.</p>")
