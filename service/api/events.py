"""Server-sent events: one per transition, resumable by `Last-Event-ID` (the WHATWG's EventSource).

    id: 1763848005123-0
    event: job.generating
    data: {"id": "job_…", "batch_id": null, "status": "generating", "reason": "accepted", "at": "2026-11-22T…Z"}

A batch that is over is told as `batch.completed` or `batch.cancelled`, its id in both `id` and `batch_id`.

An `event: reset` says that some that came before are no longer kept, or that the given id lies after the newest event
(Redis went back to an older state): read the jobs themselves.
"""

import json
import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, suppress
from typing import Final

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from service.api.auth import ADMIN, owned, promptly
from service.api.past_batches import PastBatches, unknown_batch
from service.api.problems import ProblemError
from service.api.reader import Crowded, Reader, order
from service.domain.batch import Batch
from service.domain.instants import rfc3339
from service.domain.job import ENDED
from service.storage.connection import RedisError
from service.storage.store import Store
from service.storage.terms import Entry

HEARTBEAT_S: Final = 15.0
EVENT_ID: Final = re.compile(r"[0-9]{1,19}-[0-9]{1,19}")
HEARTBEAT: Final = ":\n\n"
_HEADERS: Final = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # nginx would hold the events back


class Events:
    """The three streams. A job's own is read from its log, so that it misses nothing and knows its end.

    A batch's begins with the batch, as far as that is still kept, and closes after its own end.
    """

    def __init__(self, store: Store, reader: Reader, batches: PastBatches) -> None:
        self._store = store
        self._reader = reader
        self._batches = batches

    async def of_job(self, request: Request, caller: str) -> Response:
        job_id = request.path_params["job_id"]
        job = owned(await promptly(self._store.get(job_id)), caller)
        after = _last_event_id(request)
        entries = await promptly(self._store.log(job_id))
        if job.ended and after and entries and entries[-1].eid == after:
            return Response(status_code=204)  # tells an EventSource to come no more
        return await _stream(self._job_stream(job_id, after))

    async def of_caller(self, request: Request, caller: str) -> Response:
        owner = None if caller == ADMIN else caller
        return await _stream(self._caller_stream(owner, _last_event_id(request)))

    async def of_batch(self, request: Request, caller: str) -> Response:
        batch = await self._batches.record(request.path_params["batch_id"], caller)
        if batch is None:
            raise unknown_batch()
        after = _last_event_id(request)
        if batch.marked and after and await self._nothing_follows(batch.id, after):
            return Response(status_code=204)
        return await _stream(self._batch_stream(batch, after))

    async def _job_stream(self, job_id: str, after: str | None) -> AsyncGenerator[str]:
        sent = after or "0-0"
        async with self._reader.follow(id_=job_id) as feed:
            entries = await promptly(self._store.log(job_id))
            yield HEARTBEAT
            if after and entries and "from" in entries[0].data and order(after) < order(entries[0].eid):
                yield reset(sent)
            if after and entries and order(after) > order(entries[-1].eid):
                sent = entries[-1].eid
                yield reset(sent)
            with suppress(RedisError, TimeoutError):  # the client comes again with its Last-Event-ID
                while True:
                    for entry in entries:
                        if order(entry.eid) > order(sent):
                            sent = entry.eid
                            yield text(entry)
                    if feed.over or not entries or entries[-1].data["status"] in ENDED:
                        return
                    if not await feed.take(HEARTBEAT_S):
                        yield HEARTBEAT
                    entries = await promptly(self._store.log(job_id))

    async def _caller_stream(self, caller: str | None, after: str | None) -> AsyncGenerator[str]:
        async with self._reader.follow(caller=caller) as feed:
            sent = after or feed.since
            resumable = after is None or await promptly(self._resumable(after))
            yield HEARTBEAT
            if not resumable:
                sent = feed.since
                yield reset(sent)
            with suppress(RedisError, TimeoutError):
                async for entry in self._kept(sent, feed.since):
                    sent = entry.eid
                    if caller in (None, entry.data.get("caller")):
                        yield text(entry)
            while not feed.over:
                entries = await feed.take(HEARTBEAT_S)
                if not entries:
                    yield HEARTBEAT
                for entry in entries:
                    if order(entry.eid) > order(sent):
                        yield text(entry)

    async def _batch_stream(self, batch: Batch, after: str | None) -> AsyncGenerator[str]:
        async with self._reader.follow(batch_id=batch.id) as feed:
            sent = after or f"{batch.created_at}-0"  # nothing is told of a batch before it is sealed
            complete = await promptly(self._resumable(sent) if after else self._kept_since(sent))
            if not complete and not await self._goes_on(batch, sent, feed.since):
                sent = feed.since
            yield HEARTBEAT
            if not complete:
                yield reset(sent)
            with suppress(RedisError, TimeoutError):
                async for entry in self._kept(sent, feed.since):
                    sent = entry.eid
                    if entry.data.get("batch_id") == batch.id:
                        yield text(entry)
                        if entry.data["id"] == batch.id:
                            return
                if await self._is_over(batch.id):
                    return
            while not feed.over:
                entries = await feed.take(HEARTBEAT_S)
                if not entries:
                    yield HEARTBEAT
                for entry in entries:
                    if order(entry.eid) > order(sent):
                        yield text(entry)
                    if entry.data["id"] == batch.id:
                        return

    async def _is_over(self, batch_id: str) -> bool:
        """Its end was told before this stream began, and is not kept any more."""
        batch = await promptly(self._store.batches.get(batch_id))
        return batch is None or batch.marked

    async def _nothing_follows(self, batch_id: str, after: str) -> bool:
        """Of a batch that is over: all that came after this id is kept, and its end is not among it."""
        last = await promptly(self._store.last_event())
        if order(after) < order(last) and not await promptly(self._resumable(after)):
            return False  # a reset is due
        return not await self._end_is_kept(batch_id, after, last)

    async def _goes_on(self, batch: Batch, after: str, until: str) -> bool:
        """After a reset: from this id, to its end. If not, the newest id is given, so that no client asks for ever."""
        if batch.marked:
            return await self._end_is_kept(batch.id, after, until)
        return order(after) <= order(until)

    async def _end_is_kept(self, batch_id: str, after: str, until: str) -> bool:
        async for entry in self._kept(after, until):
            if entry.data["id"] == batch_id:
                return True
        return False

    async def _kept_since(self, moment: str) -> bool:
        """Whether no event after this moment has been dropped from the stream."""
        first = await self._store.first_event()
        reaches = first is not None and order(first) <= order(moment)
        return reaches or not await self._store.events_dropped()

    async def _resumable(self, after: str) -> bool:
        """Whether all that came after this id is still in the stream, and the id itself is not from its future.

        `0-0` lies before the first event of all. Any other id older than those kept was of an event that is lost, even
        where this stream has dropped none: Redis came back empty.
        """
        if order(after) == (0, 0):
            return not await self._store.events_dropped()
        first = await self._store.first_event()
        return first is not None and order(first) <= order(after) <= order(await self._store.last_event())

    async def _kept(self, after: str, until: str) -> AsyncIterator[Entry]:
        """What the stream still has, up to where the feed begins."""
        while order(after) < order(until):
            entries = await promptly(self._store.events(after))
            for entry in entries:
                if order(entry.eid) <= order(until):
                    yield entry
            if not entries:
                return
            after = entries[-1].eid


def text(entry: Entry) -> str:
    """One event; nothing for a job's transition that did not change its status."""
    data = entry.data
    status = data["status"]
    kind = "batch" if data["id"] == data.get("batch_id") else "job"
    if kind == "job" and data.get("from") == status:
        return ""
    shown = {
        "id": data["id"],
        "batch_id": data.get("batch_id"),
        "status": status,
        "reason": data.get("reason"),
        "at": rfc3339(int(data["at"])),
    }
    return f"id: {entry.eid}\nevent: {kind}.{status}\ndata: {json.dumps(shown)}\n\n"


def reset(eid: str) -> str:
    return f"id: {eid}\nevent: reset\ndata: {{}}\n\n"


async def _stream(chunks: AsyncGenerator[str]) -> Response:
    """Begun before it is answered, so that an outage is still a 503."""
    try:
        first = await anext(chunks)
    except Crowded:
        raise ProblemError(
            503, "unavailable", "Too many streams are open here.", headers={"Retry-After": "5"}
        ) from None
    return StreamingResponse(_after(first, chunks), headers=_HEADERS, media_type="text/event-stream")


async def _after(first: str, chunks: AsyncGenerator[str]) -> AsyncIterator[str]:
    async with aclosing(chunks):
        yield first
        async for chunk in chunks:
            if chunk:
                yield chunk


def _last_event_id(request: Request) -> str | None:
    given = request.headers.get("last-event-id", "")
    return given if EVENT_ID.fullmatch(given) else None
