"""A TCP proxy that fails on demand: it delays, stalls, cuts after so many bytes, or refuses.

    async with CuttingProxy("127.0.0.1", server_port) as proxy:
        proxy.cut_up_bytes = 1000      # connections from now on lose their client's bytes after the 1,000th
        ... talk to 127.0.0.1:proxy.port ...

Every switch may be thrown while connections are open, but for the cuts, which a connection reads when it opens.
A `witness` sees each chunk before it goes on: the number of its connection, the bytes, and whether the client sent
them. It may raise ConnectionResetError, and the chunk is as lost as what comes after a cut.
"""

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable
from types import TracebackType
from typing import Self

LOOPBACK = "127.0.0.1"
CHUNK_BYTES = 64 * 1024
# SO_LINGER with a time of 0: close sends RST, as a crashed peer or a dropped NAT entry does, and no tidy FIN.
RESET = struct.pack("ii", 1, 0)


class CuttingProxy:
    """Forwards to `host:port`. Counts: `connections` opened, `cuts` made, `up_bytes` and `down_bytes` let through."""

    def __init__(self, host: str, port: int) -> None:
        self.delay_s = 0.0  # before each chunk, in either direction
        self.cut_up_bytes: int | None = None  # so many bytes of the client get through, then both ends are reset
        self.cut_down_bytes: int | None = None  # the same for the server's bytes
        self.witness: Callable[[int, bytes, bool], None] = lambda _number, _chunk, _up: None
        self.port = 0
        self.connections = self.cuts = self.up_bytes = self.down_bytes = 0
        self._target = (host, port)
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._server: asyncio.Server | None = None
        self._links: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"

    async def __aenter__(self) -> Self:
        await self.accept()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.refuse()

    async def accept(self) -> None:
        """Listen, on the same port as before if there was one."""
        self._server = await asyncio.start_server(self._link, LOOPBACK, self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def refuse(self) -> None:
        """Reset what is open, and let every new connection be refused until `accept`."""
        if self._server is not None:
            self._server.close()
        await self.drop()

    async def drop(self) -> None:
        """Reset what is open; new connections are welcome."""
        links = list(self._links)
        for link in links:
            link.cancel()
        await asyncio.gather(*links, return_exceptions=True)

    def stall(self) -> None:
        """Let no byte through, in open connections and new ones, until `resume`: a peer that hangs."""
        self._flowing.clear()

    def resume(self) -> None:
        self._flowing.set()

    async def _link(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._links.add(task)
        self.connections += 1
        number = self.connections
        end: Callable[[asyncio.StreamWriter], None] = _reset
        writers = [to_client]
        try:
            server, to_server = await asyncio.open_connection(*self._target)
            writers.append(to_server)
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(self._pump(number, client, to_server, self.cut_up_bytes, up=True))
                pumps.create_task(self._pump(number, server, to_client, self.cut_down_bytes, up=False))
            end = asyncio.StreamWriter.close
        except* OSError:
            pass  # cut by us or by a peer; a target that refuses is passed on as a reset
        finally:
            for writer in writers:
                end(writer)
            self._links.discard(task)

    async def _pump(
        self, number: int, source: asyncio.StreamReader, sink: asyncio.StreamWriter, allowed: int | None, *, up: bool
    ) -> None:
        """Forward until the source ends; ConnectionResetError once more than `allowed` bytes have come."""
        while chunk := await source.read(CHUNK_BYTES):
            await asyncio.sleep(self.delay_s)
            await self._flowing.wait()
            self.witness(number, chunk, up)
            passed = chunk if allowed is None else chunk[:allowed]
            allowed = None if allowed is None else allowed - len(passed)
            sink.write(passed)
            await sink.drain()
            self._count(len(passed), up=up)
            if len(passed) < len(chunk):
                self.cuts += 1
                raise ConnectionResetError("cut")
        if sink.can_write_eof():
            sink.write_eof()

    def _count(self, size: int, *, up: bool) -> None:
        if up:
            self.up_bytes += size
        else:
            self.down_bytes += size


def _reset(writer: asyncio.StreamWriter) -> None:
    plug: socket.socket | None = writer.get_extra_info("socket")
    if plug is not None:
        with contextlib.suppress(OSError):
            plug.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    writer.transport.abort()
