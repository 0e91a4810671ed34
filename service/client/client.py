"""`Client`: the service for programs that wait."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from types import TracebackType
from typing import Self, TypeVar

import httpx

from .core import Answer, Ask, Lost, Page, Patience, Talk, Talks
from .shapes import BATCH_ENDED, Batch, Event, Job, Log
from .streams import Events, Manifest, Reading
from .wire import WATCH_GAP_S, Lines, Order, Wire, answer_of, body_of, content, past_proxies, told, why

T = TypeVar("T")


class Client:
    """For one thread, or several. `http` is yours to close if you hand one in.

    with Client("http://127.0.0.1:8000", token) as darkroom:
        job = darkroom.wait(darkroom.submit({"model": "flux-dev", "prompt": "a red fox"})["id"])
        picture = darkroom.image(job)

    Every call raises ServiceError (the service said no) and Unreachable (it did not answer in time).
    """

    def __init__(
        self,
        url: str,
        token: str,
        *,
        patience: Patience | None = None,
        http: httpx.Client | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._wire = Wire(url, token)
        self._patience = patience or Patience()
        self._talks = Talks(self._patience)
        self._own = http is None
        self._http = http or httpx.Client(mounts=past_proxies(url))
        self._sleep = sleep

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        if self._own:
            self._http.close()

    # ---- jobs ----------------------------------------------------------------------------------------------------

    def submit(self, order: Order, *, key: str | None = None, wait_s: float = 0.0) -> Job:
        """Order an image: the job, ended if it ended within `wait_s` (at most 60).

        `key`: the Idempotency-Key, by default a fresh one; with your own, a restarted program finds its job again.
        """
        return self._run(self._talks.submit(order, key, wait_s))

    def get(self, job_id: str, *, wait_s: float = 0.0) -> Job:
        return self._run(self._talks.get(job_id, wait_s))

    def wait(self, job_id: str, *, timeout_s: float | None = None) -> Job:
        """The ended job, succeeded or not. Unfinished (a TimeoutError): not within `timeout_s`."""
        return self._run(self._talks.wait(job_id, timeout_s))

    def jobs(self, *, status: str | None = None, batch_id: str | None = None) -> Iterator[Job]:
        """Newest first; pages are fetched as you read on."""
        return self._walk(partial(self._talks.jobs, status, batch_id))

    def log(self, job_id: str) -> Log:
        return self._run(self._talks.log(job_id))

    def cancel(self, job_id: str) -> Job:
        return self._run(self._talks.cancel(job_id))

    def retry(self, job_id: str, *, rerun: bool = False) -> Job:
        """The new job. `rerun`: buy again if what was bought no longer serves."""
        return self._run(self._talks.retry(job_id, rerun=rerun))

    def delete(self, job_id: str) -> None:
        self._run(self._talks.delete(job_id))

    def image(self, job: Job | str) -> bytes:
        """The image itself; given the job and not its id alone, its SHA-256 is checked."""
        return self._run(self._talks.image(job))

    def image_url(self, job_id: str) -> str:
        """A link that needs no token and lives for minutes."""
        return self._run(self._talks.link(job_id))

    def events(self, id_: str | None = None, *, after: str | None = None) -> Iterator[Event]:
        """Transitions of one job or batch until its last, or of all that are yours for ever; `after` an event's id."""
        return self._read(Events(id_, self._patience, after))

    # ---- batches -------------------------------------------------------------------------------------------------

    def submit_batch(
        self, lines: Lines, *, key: str | None = None, callback_url: str | None = None, metadata: Order | None = None
    ) -> Batch:
        """Orders, or the path of an NDJSON file of them. ServiceError: `errors` name the lines, and nothing exists."""
        with body_of(lines) as (body, size_bytes):
            return self._run(self._talks.submit_batch(body, size_bytes, key, told(callback_url, metadata)))

    def batch(self, batch_id: str) -> Batch:
        return self._run(self._talks.batch(batch_id))

    def batches(self) -> Iterator[Batch]:
        """Newest first; pages are fetched as you read on. One whose record has left Redis is in no list."""
        return self._walk(self._talks.batches)

    def watch(self, batch_id: str, *, every_s: float = WATCH_GAP_S) -> Iterator[Batch]:
        """The batch now, and whenever it has changed, until it has ended."""
        batch = self._run(self._talks.batch(batch_id))
        yield batch
        while batch["status"] not in BATCH_ENDED:
            before, batch = batch, self._run(self._talks.batch(batch_id, every_s))
            if batch != before:
                yield batch

    def cancel_batch(self, batch_id: str) -> Batch:
        return self._run(self._talks.cancel_batch(batch_id))

    def retry_batch(self, batch_id: str) -> Batch:
        """A new batch of the lines that failed."""
        return self._run(self._talks.retry_batch(batch_id))

    def manifest(self, batch_id: str) -> Iterator[Job]:
        """Its ended jobs so far, in the order of its lines."""
        return self._read(Manifest(batch_id, self._patience))

    # ---- the socket ----------------------------------------------------------------------------------------------

    def _walk(self, page_at: Callable[[str | None], Talk[Page[T]]]) -> Iterator[T]:
        cursor: str | None = None
        while True:
            page, cursor = self._run(page_at(cursor))
            yield from page
            if not cursor:
                return

    def _run(self, talk: Talk[T]) -> T:
        reply = self._send(next(talk))
        while True:
            try:
                ask = talk.send(reply)
            except StopIteration as end:
                result: T = end.value
                return result
            reply = self._send(ask)

    def _send(self, ask: Ask) -> Answer | Lost:
        self._sleep(ask.after_s)
        request = self._http.build_request(**self._wire.arguments(ask), content=content(ask.body))
        try:
            return answer_of(self._http.send(request, auth=None, follow_redirects=False))
        except httpx.RequestError as error:
            return Lost(why(error))

    def _read(self, reading: Reading[T]) -> Iterator[T]:
        while not reading.over:
            ask = reading.ask()
            self._sleep(ask.after_s)
            request = self._http.build_request(**self._wire.arguments(ask))
            try:
                response = self._http.send(request, auth=None, follow_redirects=False, stream=True)
                try:
                    if response.status_code == 200:
                        for piece in response.iter_bytes():
                            yield from reading.feed(piece)
                        reading.ended()
                    else:
                        response.read()
                        reading.refused(answer_of(response))
                finally:
                    response.close()
            except httpx.RequestError as error:
                reading.cut(why(error))
