"""uvicorn's HTTP/1.1 protocol with deadlines and limits on what arrives before a request exists.

uvicorn alone keeps a connection that dribbles its head for ever, takes heads of any size, and appends trailers to the
headers of a request already running. Give this class as `http=`; the limits are class attributes.
"""

import asyncio
import logging
from typing import Any, ClassVar, Final

from starlette.responses import Response
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from service.api.problems import problem

# What strangers' bytes cause is no warning of ours; errors of requests still come out.
logger = logging.getLogger(__name__)
logger.setLevel(logging.ERROR)

HEADER_OVERHEAD_BYTES: Final = 4  # ": " and CRLF


class HeadTooLargeError(ValueError):
    pass


class DeadlineProtocol(HttpToolsProtocol):
    """A head must be complete `HEAD_TIMEOUT_S` after the connection, or after the next request's first byte.

    Late: closed without a word. Too large: 431. A client that reads nothing for `STALL_TIMEOUT_S` is cut off.
    """

    HEAD_TIMEOUT_S: ClassVar[float] = 10.0
    STALL_TIMEOUT_S: ClassVar[float] = 30.0
    HEAD_BYTES_MAX: ClassVar[int] = 65_536  # a batch's 16 KiB of metadata may stand percent-encoded in its query
    HEADERS_MAX: ClassVar[int] = 100

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.logger = logger
        self._head_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None
        self._in_head = False
        self._head_bytes = self._header_count = 0
        self._pending_bytes = 0  # of a head whose lines have not been parsed yet
        self._too_large = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_came()
        self._disarm_stall()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Any byte that no running request takes, a bare CRLF or a left-over body, starts the wait for a head."""
        if not self._busy():
            self._await_head()
        self._pending_bytes += len(data) if self._in_head else 0
        super().data_received(data)
        if self._in_head and self._pending_bytes > self.HEAD_BYTES_MAX and not self.transport.is_closing():
            self._refuse_head()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True
        self._head_bytes = self._header_count = self._pending_bytes = 0
        self._await_head()

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Trailers come here too: they are counted and dropped."""
        self._header_count += 1
        self._count(len(name) + len(value) + HEADER_OVERHEAD_BYTES)
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._head_came()
        super().on_headers_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._disarm_stall()
        self._stall_timer = self.loop.call_later(self.STALL_TIMEOUT_S, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._disarm_stall()

    def send_400_response(self, msg: str) -> None:
        """Called for whatever the parser refuses, and for what `on_url` and `on_header` raise."""
        if self._too_large:
            self._refuse(problem(431, "head_too_large", "The request's head is too large."))
        else:
            self._refuse(problem(400, "bad_request", msg))

    def _count(self, size_bytes: int) -> None:
        self._head_bytes += size_bytes
        if self._head_bytes > self.HEAD_BYTES_MAX or self._header_count > self.HEADERS_MAX:
            self._too_large = True
            raise HeadTooLargeError  # the parser stops here

    def _refuse_head(self) -> None:
        self._too_large = True
        self.send_400_response("")

    def _refuse(self, answer: Response) -> None:
        """Close, with an answer unless it would land inside another one."""
        if not self.pipeline and not (self._busy() and self.cycle.response_started):
            head = [name + b": " + value + b"\r\n" for name, value in answer.raw_headers]
            lines = [STATUS_LINE[answer.status_code], *head, b"connection: close\r\n\r\n", bytes(answer.body)]
            self.transport.write(b"".join(lines))
        self.transport.close()

    def _busy(self) -> bool:
        """Whether a request is in work."""
        cycle: RequestResponseCycle | None = self.cycle  # uvicorn's annotation leaves out that there may be none yet
        return cycle is not None and not cycle.response_complete

    def _await_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self.HEAD_TIMEOUT_S, self._head_is_late)

    def _head_came(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        self._head_timer = None
        if self._busy():
            self.cycle.keep_alive = False  # a request before it is still being answered: closed after that
        else:
            self.transport.abort()

    def _disarm_stall(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None
