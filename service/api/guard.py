"""Middleware on what arrives: a cap and a deadline for every body, an id for every request."""

import asyncio
import logging
import re
import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, NoReturn

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.problems import ProblemError
from service.clock import Clock
from service.logs import request_id

logger = logging.getLogger(__name__)

BODY_DEADLINE_S: Final = 10.0
BODY_RATE_BYTES_S: Final = 65_536
# After a 413 what still comes is read and dropped for so long: closed at once, TCP would reset the answer away.
LINGER_S: Final = 2.0
REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
REQUEST_ID_BYTES: Final = 12


@dataclass(frozen=True, slots=True)
class BodyLimit:
    """At most `max_bytes`, within `deadline_s` or, later than that, at `rate_bytes_s` on the whole at every moment."""

    max_bytes: int
    deadline_s: float = BODY_DEADLINE_S
    rate_bytes_s: int = BODY_RATE_BYTES_S

    def allowed_s(self, received_bytes: int) -> float:
        """How long we may have waited for a body of which so much has come."""
        return max(self.deadline_s, received_bytes / self.rate_bytes_s)


class BodyGuard:
    """Middleware: `limit` says what a request's body may be. Over it: 413, with `Connection: close`; late: 408.

    The route gets the refusal as a ProblemError from `receive`. Time counts only while somebody waits for the body.
    """

    def __init__(self, app: ASGIApp, limit: Callable[[Scope], BodyLimit], clock: Clock) -> None:
        self._app = app
        self._limit = limit
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = _Body(self._limit(scope), self._clock, receive, send)
        try:
            body.check(declared_bytes(scope))
            await self._app(scope, body.receive, body.send)
        except ProblemError as refusal:
            if body.refusal is not refusal or body.answering:
                raise
            await refusal.response()(scope, receive, body.send)


class _Body:
    """One request's body on its way in, and the answer on its way out."""

    def __init__(self, limit: BodyLimit, clock: Clock, receive: Receive, send: Send) -> None:
        self.refusal: ProblemError | None = None
        self.answering = False
        self._limit = limit
        self._clock = clock
        self._receive = receive
        self._send = send
        self._received_bytes = 0
        self._waited_s = 0.0
        self._ended = False

    def check(self, size_bytes: int) -> None:
        if size_bytes > self._limit.max_bytes:
            self._refuse(413, "body_too_large", f"A body of at most {self._limit.max_bytes} bytes is taken here.")

    async def receive(self) -> Message:
        if self._ended:  # the route waits for its client to leave
            return await self._receive()
        if self.refusal is not None:
            raise self.refusal
        message = await self._next()
        self._received_bytes += len(message.get("body", b""))
        self._ended = not message.get("more_body", False)
        self.check(self._received_bytes)
        return message

    async def send(self, message: Message) -> None:
        """An answer to a refused body closes the connection, after what comes of it has been dropped."""
        self.answering = True
        if self.refusal is None:
            await self._send(message)
        elif message["type"] == "http.response.start":
            MutableHeaders(scope=message)["connection"] = "close"
            await self._send(message)
        elif message.get("more_body") or self.refusal.status != 413:
            await self._send(message)
        else:
            await self._send({**message, "more_body": True})
            await self._linger()
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _next(self) -> Message:
        left_s = self._limit.allowed_s(self._received_bytes) - self._waited_s
        start_s = self._clock.monotonic_s()
        try:
            async with asyncio.timeout(left_s):
                message = await self._receive()
        except TimeoutError:
            self._refuse_late()
        self._waited_s += self._clock.monotonic_s() - start_s
        if self._waited_s > self._limit.allowed_s(self._received_bytes + len(message.get("body", b""))):
            self._refuse_late()
        return message

    async def _linger(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER_S):
                while (await self._receive()).get("more_body", False):
                    pass

    def _refuse_late(self) -> NoReturn:
        self._refuse(408, "body_too_slow", "The body came too slowly.")

    def _refuse(self, status: int, code: str, detail: str) -> NoReturn:
        self.refusal = ProblemError(status, code, detail)
        raise self.refusal


class RequestId:
    """Middleware: `X-Request-ID` is taken over if it is harmless, else made; answers, problems and logs carry it.

    At log level debug it writes a line for each request; there is no other access log.
    """

    def __init__(self, app: ASGIApp, clock: Clock) -> None:
        self._app = app
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        name = given if REQUEST_ID.fullmatch(given) else secrets.token_hex(REQUEST_ID_BYTES)
        start_s = self._clock.monotonic_s()
        status = 0

        async def named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = name
            await send(message)

        token = request_id.set(name)
        try:
            await self._app(scope, receive, named)
        finally:
            took_s = round(self._clock.monotonic_s() - start_s, 4)
            logger.debug("%s %s %d", scope["method"], scope["path"], status, extra={"took_s": took_s})
            request_id.reset(token)


def declared_bytes(scope: Scope) -> int:
    """`Content-Length`; the parser has made sure that it is one decimal number."""
    text = Headers(scope=scope).get("content-length", "0")
    return int(text) if re.fullmatch("[0-9]{1,20}", text) else 0
