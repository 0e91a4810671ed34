"""`AsyncClient`: the service for programs on asyncio."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from types import TracebackType
from typing import Self, TypeVar

import httpx

from .core import Answer, Ask, Lost, Page, Patience, Talk, Talks
from .shapes import BATCH_ENDED, Batch, Event, Job, Log
from .streams import Events, Manifest, Reading
from .wire import WATCH_GAP_S, Lines, Order, Wire, answer_of, body_of, content, past_proxies, told, why

T = TypeVar("T")


class AsyncClient:
    """`Client` for asyncio: its methods awaited; `jobs`, `batches`, `events`, `watch` and `manifest` by `async for`."""

    def __init__(
        self,
        url: str,
        token: str,
        *,
        patience: Patience | None = None,
        http: httpx.AsyncClient | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._wire = Wire(url, token)
        self._patience = patience or Patience()
        self._talks = Talks(self._patience)
        self._own = http is None
        self._http = http or httpx.AsyncClient(mounts=past_proxies(url))
        self._sleep = sleep

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        if self._own:
            await self._http.aclose()

    # ---- jobs ----------------------------------------------------------------------------------------------------

    async def submit(self, order: Order, *, key: str | None = None, wait_s: float = 0.0) -> Job:
        return await self._run(self._talks.submit(order, key, wait_s))

    async def get(self, job_id: str, *, wait_s: float = 0.0) -> Job:
        return await self._run(self._talks.get(job_id, wait_s))

    async def wait(self, job_id: str, *, timeout_s: float | None = None) -> Job:
        return await self._run(self._talks.wait(job_id, timeout_s))

    def jobs(self, *, status: str | None = None, batch_id: str | None = None) -> AsyncIterator[Job]:
        return self._walk(partial(self._talks.jobs, status, batch_id))

    async def log(self, job_id: str) -> Log:
        return await self._run(self._talks.log(job_id))

    async def cancel(self, job_id: str) -> Job:
        return await self._run(self._talks.cancel(job_id))

    async def retry(self, job_id: str, *, rerun: bool = False) -> Job:
        return await self._run(self._talks.retry(job_id, rerun=rerun))

    async def delete(self, job_id: str) -> None:
        await self._run(self._talks.delete(job_id))

    async def image(self, job: Job | str) -> bytes:
        return await self._run(self._talks.image(job))

    async def image_url(self, job_id: str) -> str:
        return await self._run(self._talks.link(job_id))

    def events(self, id_: str | None = None, *, after: str | None = None) -> AsyncIterator[Event]:
        return self._read(Events(id_, self._patience, after))

    # ---- batches -------------------------------------------------------------------------------------------------

    async def submit_batch(
        self, lines: Lines, *, key: str | None = None, callback_url: str | None = None, metadata: Order | None = None
    ) -> Batch:
        with body_of(lines) as (body, size_bytes):
            return await self._run(self._talks.submit_batch(body, size_bytes, key, told(callback_url, metadata)))

    async def batch(self, batch_id: str) -> Batch:
        return await self._run(self._talks.batch(batch_id))

    def batches(self) -> AsyncIterator[Batch]:
        return self._walk(self._talks.batches)

    async def watch(self, batch_id: str, *, every_s: float = WATCH_GAP_S) -> AsyncIterator[Batch]:
        batch = await self._run(self._talks.batch(batch_id))
        yield batch
        while batch["status"] not in BATCH_ENDED:
            before, batch = batch, await self._run(self._talks.batch(batch_id, every_s))
            if batch != before:
                yield batch

    async def cancel_batch(self, batch_id: str) -> Batch:
        return await self._run(self._talks.cancel_batch(batch_id))

    async def retry_batch(self, batch_id: str) -> Batch:
        return await self._run(self._talks.retry_batch(batch_id))

    def manifest(self, batch_id: str) -> AsyncIterator[Job]:
        return self._read(Manifest(batch_id, self._patience))

    # ---- the socket ----------------------------------------------------------------------------------------------

    async def _walk(self, page_at: Callable[[str | None], Talk[Page[T]]]) -> AsyncIterator[T]:
        cursor: str | None = None
        while True:
            page, cursor = await self._run(page_at(cursor))
            for each in page:
                yield each
            if not cursor:
                return

    async def _run(self, talk: Talk[T]) -> T:
        reply = await self._send(next(talk))
        while True:
            try:
                ask = talk.send(reply)
            except StopIteration as end:
                result: T = end.value
                return result
            reply = await self._send(ask)

    async def _send(self, ask: Ask) -> Answer | Lost:
        await self._sleep(ask.after_s)
        body = content(ask.body)
        sent = _each(body) if isinstance(body, Iterator) else body
        request = self._http.build_request(**self._wire.arguments(ask), content=sent)
        try:
            return answer_of(await self._http.send(request, auth=None, follow_redirects=False))
        except httpx.RequestError as error:
            return Lost(why(error))

    async def _read(self, reading: Reading[T]) -> AsyncIterator[T]:
        while not reading.over:
            ask = reading.ask()
            await self._sleep(ask.after_s)
            request = self._http.build_request(**self._wire.arguments(ask))
            try:
                response = await self._http.send(request, auth=None, follow_redirects=False, stream=True)
                try:
                    if response.status_code == 200:
                        async for piece in response.aiter_bytes():
                            for each in reading.feed(piece):
                                yield each
                        reading.ended()
                    else:
                        await response.aread()
                        reading.refused(answer_of(response))
                finally:
                    await response.aclose()
            except httpx.RequestError as error:
                reading.cut(why(error))


async def _each(chunks: Iterator[bytes]) -> AsyncIterator[bytes]:
    """64 KiB of a local file: reading them holds up nobody."""
    for chunk in chunks:
        yield chunk
