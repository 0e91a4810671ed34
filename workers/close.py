"""Closing: what is left to do for a job that is sealed or has ended.

    sidecar → scrub (an image put while it ended) → on record → settle (the purchase and the slot)

Killed anywhere: each is done again, and finds itself done. The sidecar is put once: a second writer adopts the first's.
It stays also where a Redis that has since failed over without its newest writes had come to another end; that is said.
"""

import json
import logging
import random
from typing import Final

from service.domain import events, layout
from service.domain.job import Job, Status
from service.domain.view import unview, view
from service.storage.bucket import Bucket
from service.storage.desk import Desk
from service.storage.objects import BucketRefused, BucketUnavailable, Conflict
from service.storage.terms import Remains
from workers import retry
from workers.flux import Flux
from workers.lease import Lease
from workers.results import ended_event
from workers.spool import Kept, NoSpool

log = logging.getLogger(__name__)

SETTLE_GAP_S: Final = 15.0
SIDECAR_MAX: Final = 4 * 2**20  # bytes
LATE_PUT_S: Final = 120.0  # a put that we gave up on may land later, when the store that hung goes on


class Closer:
    def __init__(
        self,
        desk: Desk,
        flux: Flux,
        bucket: Bucket,
        dice: random.Random,
        *,
        spool: Kept | None = None,
        unknown_wait_s: float,
        generation_timeout_s: float,
    ) -> None:
        self._desk = desk
        self._flux = flux
        self._bucket = bucket
        self._dice = dice
        self._spool: Kept = spool or NoSpool()
        self._unknown_wait_ms = round(unknown_wait_s * 1000)
        self._generation_timeout_ms = round(generation_timeout_s * 1000)

    async def close(self, job: Job, lease: Lease) -> None:
        if not job.sidecar:
            await self._spool.drop(job.id)  # the image is in the bucket, or nobody wants it
            await self._write_down(job)
        elif job.open:
            await self._settle(job, lease)

    async def scrub(self, job_id: str, *, wanted: bool = True) -> None:
        """No image of this job stays in the bucket; an object of somebody else under its keys does.

        So does the image of which a sidecar says that the job succeeded, unless the sidecar is not `wanted` either.
        """
        while (found := await self._bucket.find_image(job_id)) is not None:
            if wanted and await self._told(job_id) is Status.SUCCEEDED:
                return
            await self._bucket.delete(found.key)

    async def _write_down(self, job: Job) -> None:
        try:
            stored = await self._bucket.put_bytes(
                layout.sidecar_key(job.id),
                sidecar(job),
                content_type="application/json",
                metadata={"job-id": job.id} | ({"idempotency": job.idempotency} if job.idempotency else {}),
            )
            told = None if isinstance(stored, Conflict) or stored.created else await self._told(job.id)
            if job.scrub:
                await self.scrub(job.id)
                await self._desk.store.plan("scrub", job.id, LATE_PUT_S)
        except (BucketUnavailable, BucketRefused) as error:
            delay_s = retry.STORE.wait_s(2, self._dice)
            await self._say(job, events.StoreFailed(detail=str(error), delay_s=delay_s))
            return
        if isinstance(stored, Conflict):  # nobody can mend that by waiting; the record in Redis stays the truth
            log.error("an object that is not this job's lies under its sidecar's key", extra={"job": job.id})
        detail = f"the bucket tells another end: {told}" if told not in (None, _end(job)) else ""
        if detail:
            log.error("Redis had forgotten how this job ended; %s", detail, extra={"job": job.id})
        await self._say(job, events.SidecarWritten(detail=detail), patience_s=retry.REDIS_PATIENCE_S)

    async def _say(self, job: Job, event: events.Event, *, patience_s: float = 0.0) -> None:
        """What became of the put. A process may have slept through its job's deletion before it: then the object goes.

        A record that has left Redis by its age says nothing of the kind: its objects stay.
        """
        told = await self._desk.tell(job.id, event, patience_s=patience_s)
        if told.job is None and await self._desk.store.buried_by(job.id) is not None:
            log.info("deleted while its sidecar was put: it is erased again", extra={"job": job.id})
            await self._desk.store.plan("erase", job.id, 0)  # nothing else would look at this job any more

    async def _told(self, job_id: str) -> Status | None:
        """The end that the job's sidecar tells; None: there is none, or nothing that tells."""
        try:
            return unview(
                json.loads(await self._bucket.get_bytes(layout.sidecar_key(job_id), SIDECAR_MAX) or b"")
            ).status
        except (KeyError, TypeError, ValueError, RecursionError):
            return None

    async def _settle(self, job: Job, lease: Lease) -> None:
        """The job's own way is decided, but a task of it may still run: its slot comes back when that is known."""
        for attempt in job.open:
            event = await self._end_of(attempt, job)
            if event is not None:
                await self._desk.tell(job.id, event)
                return
        over = self._given_up(job, lease.now())
        await self._desk.tell(job.id, events.TimedOut() if over else events.StillOpen(delay_s=SETTLE_GAP_S))

    async def vacate(self, job_id: str) -> bool:
        """The slot of a deleted job comes back when its task is known to be over. False: it is not yet."""
        left = await self._desk.store.remains(job_id)
        if left is None:
            return True
        ends = [await self._end_of(attempt, left) for attempt in left.open]
        if None in ends and not self._given_up(left, await self._desk.store.now_ms()):
            return False
        self._desk.ring(await self._desk.store.vacate(job_id))
        return True

    async def _end_of(self, attempt: int, job: Job | Remains) -> events.Event | None:
        task = job.tasks.get(str(attempt))
        return ended_event(await self._flux.result(task), attempt, task, 0) if task else None

    def _given_up(self, job: Job | Remains, now_ms: int) -> bool:
        """Whether what is open counts as over, since nobody will tell any more."""
        since, bound = job.intent_at or 0, self._unknown_wait_ms
        if any(str(attempt) in job.tasks for attempt in job.open):
            since, bound = job.submitted_at or since, self._generation_timeout_ms
        return now_ms - since > bound


def sidecar(job: Job) -> bytes:
    """The whole ended job as JSON: a sealed job is written down as the success that it is about to be."""
    return json.dumps(view(job, status=_end(job)), ensure_ascii=False, indent=2).encode() + b"\n"


def _end(job: Job) -> Status:
    return Status.SUCCEEDED if job.sealed else job.status
