"""What no honest server does: hang up without an answer, cut a body, hold a connection for ever.

ASGI has no word for closing a connection, so `Protocol` adds one: an extension of the scope that holds the transport.
"""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Mapping
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

EXTENSION = "rehearsal.transport"


class Protocol(HttpToolsProtocol):
    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {EXTENSION: {"transport": self.transport}}


class HangUp(Response):
    """The connection is closed, and nothing was answered."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002  ASGI's signature
        transport(scope).close()
        await _gone(receive)


class Cut(Response):
    """Headers that promise all of `content`, half of it, and the end of the connection."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        half = bytes(self.body[: len(self.body) // 2])
        await send({"type": "http.response.body", "body": half, "more_body": True})
        transport(scope).close()
        await _gone(receive)


class Hang(Response):
    """Nothing, until the client goes away or the server stops."""

    def __init__(self, closing: asyncio.Event) -> None:
        super().__init__()
        self._closing = closing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await _first(self._answer(send), _gone(receive), self._closing.wait())
        transport(scope).abort()
        await _gone(receive)

    async def _answer(self, send: Send) -> None:  # noqa: ARG002  Stream answers
        await asyncio.Event().wait()


class Stream(Hang):
    """Headers, then `chunks` for as long as there are any and anyone listens."""

    def __init__(self, chunks: AsyncIterator[bytes], headers: Mapping[str, str], closing: asyncio.Event) -> None:
        super().__init__(closing)
        self._chunks = chunks
        del self.headers["content-length"]
        self.headers.update(headers)

    async def _answer(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for chunk in self._chunks:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})


def transport(scope: Scope) -> asyncio.Transport:
    found: asyncio.Transport = scope["extensions"][EXTENSION]["transport"]
    return found


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _first(*works: Coroutine[Any, Any, Any]) -> None:
    """Until one of them ends; the others are stopped."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
