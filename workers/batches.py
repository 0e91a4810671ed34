"""Batches: what is due for one as a whole. Its jobs go their own ways.

    unfold its lines → (jobs end, each with its sidecar) → count up → manifest → marker → on record

Killed anywhere: each is done again, and finds itself done. Lines are made jobs in single writes; manifest and marker
are put once, and a second writer of the same adopts the first's.
"""

import hashlib
import json
import logging
import secrets
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Final

from service.clock import Clock
from service.domain import layout
from service.domain.batch import Batch, BatchStatus, view
from service.domain.events import CancelAsked
from service.domain.job import Job, Status
from service.domain.successor import successor
from service.intake import LINE_BYTES, Intake
from service.late import with_late_tasks
from service.manifest import Manifest
from service.storage.bucket import Bucket
from service.storage.desk import Desk
from service.storage.inputs import Inputs
from service.storage.objects import BucketRefused, BucketUnavailable, Conflict, Stored
from service.storage.record import CorruptRecord
from service.storage.terms import Bell, Outcome

log = logging.getLogger(__name__)

UNFOLD_AT_ONCE: Final = 100  # one write: about 10 ms of Redis
UNFOLDS_MOST: Final = 50  # then the batch goes to the back of the queue
RETRIES_AT_ONCE: Final = 20
CANCELS_AT_ONCE: Final = 100
CANCELS_MOST: Final = 500  # then the batch goes to the back of the queue
LATER_S: Final = 15.0  # the bucket is away
STALE_MOST: Final = 20
LIVE: Final = (Status.QUEUED, Status.SUBMITTING, Status.GENERATING, Status.COLLECTING)


@dataclass(frozen=True, slots=True)
class Terms:
    """The settings of this step."""

    lease_s: float
    temp_dir: Path


class Binder:
    """Does for a batch what is due for it."""

    def __init__(self, desk: Desk, bucket: Bucket, inputs: Inputs, intake: Intake, clock: Clock, terms: Terms) -> None:
        self._desk = desk
        self._batches = desk.store.batches
        self._bucket = bucket
        self._inputs = inputs
        self._intake = intake
        self._manifest = Manifest(desk.store, bucket)
        self._clock = clock
        self._terms = terms

    async def run(self, batch_id: str) -> None:
        """Look at the batch, if it is due. A bell that comes too early or twice finds nothing to do."""
        if not await self._batches.attend(batch_id, self._terms.lease_s):
            return
        batch = await self._batches.get(batch_id)
        if batch is None:
            return
        try:
            await self._step(batch)
        except (BucketUnavailable, BucketRefused) as error:
            log.warning("a batch waits for the store: %s", error.detail, extra={"batch": batch_id})
            await self._desk.store.plan("batch", batch_id, LATER_S)

    async def _step(self, batch: Batch) -> None:
        """One stretch of what is due; it says itself when it wants to be looked at again."""
        if batch.status is BatchStatus.STAGING:  # its upload was abandoned, or its lease has run out
            if not await self._intake.clear(batch.id, self._terms.lease_s):
                await self._soon(batch)
        elif batch.rest:
            await (self._retry_lines if batch.retry_of else self._unfold)(batch)
            await self._soon(batch)
        elif batch.status is BatchStatus.CANCELLED and await self._cancel(batch):
            await self._soon(batch)
        elif await self._batches.count_up(batch.id):
            await self._write_down(batch.id)
        else:
            await self._batches.rest(batch.id)

    async def _soon(self, batch: Batch) -> None:
        await self._desk.store.plan("batch", batch.id, 0)
        self._desk.ring([Bell("batches", batch.id)])

    async def _unfold(self, batch: Batch) -> None:
        for _ in range(UNFOLDS_MOST):
            left, bells = await self._batches.unfold(batch.id, UNFOLD_AT_ONCE)
            self._desk.ring(bells)
            if left == 0:
                return

    async def _retry_lines(self, batch: Batch) -> None:
        """Each line is a job that failed: it gets its retry, unless it has got another one meanwhile.

        The write that makes a retry takes its line off: killed anywhere, no line is counted twice. Only in a Redis that
        came back older a line may stand whose retry, made again from the bucket, is there already: that goes, too.
        """
        number, job_ids = await self._batches.peek(batch.id, RETRIES_AT_ONCE)
        ours = [each for offset, each in enumerate(job_ids) if await self._retried(batch, number + offset, each)]
        await self._batches.pass_over(batch.id, ours)
        await self._batches.drop(batch.id, [each for each in job_ids if each not in ours])

    async def _retried(self, batch: Batch, number: int, job_id: str) -> bool:
        """`_retry`, of a job whose record can be read; one that cannot holds up no other."""
        try:
            return await self._retry(batch, number, job_id)
        except CorruptRecord as error:
            log.error("not retried, since its record cannot be read: %s", error, extra={"job": job_id})  # noqa: TRY400
            return False

    async def _retry(self, batch: Batch, number: int, job_id: str) -> bool:
        """Whether the batch has a job that retries this one."""
        entropy = number.to_bytes(LINE_BYTES) + secrets.token_bytes(layout.ENTROPY_BYTES - LINE_BYTES)
        new_id = layout.new_id("job", self._clock.now_ms(), entropy)
        for _ in range(STALE_MOST):
            old = await self._desk.store.get(job_id)
            if old is None:
                return False
            if old.retried_by is not None:  # by us, before this process's predecessor died, or by somebody else
                known = await self._desk.store.get(old.retried_by)
                return known is not None and known.batch_id == batch.id
            if batch.status is BatchStatus.CANCELLED:
                return False
            old = await with_late_tasks(self._desk.store, old)
            new = successor(old, new_id)
            request = await self._inputs.copy(old, new_id) if new else None
            if new is None or request is None:
                return False
            written = await self._desk.store.create(replace(new, batch_id=batch.id, request=request), takes_over=old)
            self._desk.ring(written.bells)
            if written.outcome in (Outcome.CREATED, Outcome.ALREADY):
                return True
            if written.outcome is Outcome.GONE:  # another process has dropped the line: the batch was cancelled
                return False
        raise RuntimeError(f"the retry of {job_id} found its record stale {STALE_MOST} times")

    async def _cancel(self, batch: Batch) -> bool:
        """Whether a job was cancelled: then there may be more. What is sealed goes its own way.

        They are due, and the sweep rings for them. Tens of thousands of bells at once would fill the queue, and nobody
        else's poll could be rung for until it is empty.
        """
        cancelled = 0
        for status in LIVE:
            async for job in self._jobs(batch, status):
                if cancelled == CANCELS_MOST:
                    return True
                if not job.sealed:
                    cancelled += await self._desk.decide(job, CancelAsked(), quiet=True) is not None
        return cancelled > 0

    async def _jobs(self, batch: Batch, status: Status) -> AsyncIterator[Job]:
        """Those in this state, in the order of the lines, in which they are also bought."""
        after: str | None = None
        while ids := await self._desk.store.members(batch.id, after, CANCELS_AT_ONCE, status):
            for job in await self._desk.store.several(ids):
                yield job
            after = ids[-1]

    async def _write_down(self, batch_id: str) -> None:
        batch = await self._batches.get(batch_id)
        if batch is None:
            return
        owner = {"batch-id": batch.id}
        with tempfile.TemporaryFile(dir=self._terms.temp_dir) as file:
            sha256 = await self._spread(batch, file)
            stored = await self._bucket.put_stream(
                layout.manifest_key(batch.id), file, content_type="application/x-ndjson", sha256=sha256, metadata=owner
            )
            self._object_if(stored, batch)
        marker_key = layout.marker_key(batch.id, ok=batch.succeeded > 0)
        stored = await self._bucket.put_bytes(
            marker_key, marker(batch), content_type="application/json", metadata=owner
        )
        self._object_if(stored, batch)
        self._desk.ring(await self._batches.mark(batch.id, batch.callback_url))

    async def _spread(self, batch: Batch, file: IO[bytes]) -> str:
        """Write the manifest into the file, and renew the lease while it grows; its SHA-256 in hex."""
        digest, renewed_s = hashlib.sha256(), self._clock.monotonic_s()
        async for chunk in self._manifest.chunks(batch):
            digest.update(chunk)
            file.write(chunk)  # 200 KB into the page cache: no wait worth a thread
            if self._clock.monotonic_s() - renewed_s > self._terms.lease_s / 3:
                await self._desk.store.plan("batch", batch.id, self._terms.lease_s)
                renewed_s = self._clock.monotonic_s()
        file.seek(0)
        return digest.hexdigest()

    def _object_if(self, stored: Stored | Conflict, batch: Batch) -> None:
        if isinstance(stored, Conflict):  # nobody can mend that by waiting; the record in Redis stays the truth
            log.error("an object that is not this batch's lies under its key", extra={"batch": batch.id})


def marker(batch: Batch) -> bytes:
    """The batch as it ended, with what a rebuild needs to know its Idempotency-Key again (digests alone)."""
    status = BatchStatus.CANCELLED if batch.status is BatchStatus.CANCELLED else BatchStatus.COMPLETED
    told = view(replace(batch, status=status, marked=True)) | {"idempotency": {"key": batch.key, "hash": batch.hash}}
    return json.dumps(told, ensure_ascii=False, indent=2).encode() + b"\n"
