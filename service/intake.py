"""Taking in a batch, from whichever road: lines are checked and staged as they come, and sealed in one write.

    begin → add, add, … → seal      or      … → abandon

Every line is checked before anything exists. From the first bad line on nothing is staged any more, but the rest is
still read, so that one answer names all mistakes. Killed anywhere before the seal: the upload's lease runs out, what
was staged is cleared away as due work, and the same key begins anew.
"""

import asyncio
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from service.clock import Clock
from service.comparison import RequestHash
from service.domain import layout
from service.domain.batch import LINES_MOST, Batch, BatchStatus
from service.domain.catalogue import Order
from service.domain.errors import FieldError
from service.domain.job import Job
from service.domain.rules import Mistakes, Rules
from service.renewal import meanwhile
from service.storage.batches import Began, Beginning, Enrolled, Line
from service.storage.inputs import Inputs
from service.storage.store import Store

ERRORS_SHOWN: Final = 1_000
CHUNK_LINES: Final = 200  # staged in one write
CHUNK_BYTES: Final = 2**19
THREAD_FROM_BYTES: Final = 2**19  # a line with images: decoding them is not for the loop
RENEW_GAP_S: Final = 4.0  # between renewals of the upload's lease while no chunk is full, or a line's images are put
CLEARED_MOST: Final = 100  # jobs whose images are deleted in one go: some 6 s at 30 ms a call of the bucket
LINE_BYTES: Final = 3  # of an id's entropy: jobs of a batch sort in the order of its lines


class UploadLost(Exception):
    """The upload's lease had run out: nothing of it is left, and the caller may begin anew."""


@dataclass(frozen=True, slots=True)
class BadLines:
    """`errors`: (line from 1, mistake), of the first lines in full; `more`: the numbers of the others."""

    errors: tuple[tuple[int, FieldError], ...]
    more: tuple[int, ...]


@dataclass(slots=True)
class _Found:
    errors: list[tuple[int, FieldError]] = field(default_factory=list)
    lines: int = 0
    more: list[int] = field(default_factory=list)

    def add(self, number: int, errors: list[FieldError]) -> None:
        self.lines += 1
        if self.lines > ERRORS_SHOWN:
            self.more.append(number)
        else:
            self.errors += [(number, error) for error in errors]


class Upload:
    """One batch on its way in. `size` is how many lines have come."""

    def __init__(self, intake: "Intake", batch_id: str, caller: str, key: str | None) -> None:
        self.id = batch_id
        self.size = 0
        self._intake = intake
        self._caller = caller
        self._key = key
        self._began_ms = intake.clock.now_ms()
        self._hash = RequestHash()
        self._found = _Found()
        self._chunk: list[Line] = []
        self._chunk_bytes = 0
        self._staged_s = intake.clock.monotonic_s()

    @property
    def bad(self) -> BadLines | None:
        """The mistakes so far, if there are any."""
        found = self._found
        return BadLines(tuple(found.errors), tuple(found.more)) if found.lines else None

    async def add(self, raw: bytes) -> None:
        """The next line. Raises UploadLost, RedisError, BucketError."""
        self.size += 1
        if self.size > LINES_MOST:
            if self.size == LINES_MOST + 1:
                self._found.add(self.size, [FieldError("", f"A batch has at most {LINES_MOST} lines")])
            return
        body, order = await self._understand(raw)
        self._hash.line(body)
        if isinstance(order, Mistakes):
            self._found.add(self.size, order.errors)
        elif self._found.lines == 0:
            await self._keep(order, len(raw))
        await self.breathe()

    async def breathe(self) -> None:
        """Renew the upload's lease if it is time: also to be called while bytes come that are no line yet."""
        if self._intake.clock.monotonic_s() - self._staged_s > RENEW_GAP_S:
            await self._flush()

    async def seal(self, metadata: Mapping[str, Any], callback_url: str | None) -> tuple[Enrolled, str]:
        """All lines are in, and good: from now on there is a batch. Raises as `add` does, and Unconfirmed."""
        if self._chunk:
            await self._flush()
        whole = Batch(
            self.id,
            self._caller,
            BatchStatus.RUNNING,
            total=self.size,
            metadata=metadata,
            callback_url=callback_url,
            hash=self._hash.whole(metadata, callback_url),
            key=self._key,
        )
        enrolled, batch_id = await self._intake.store.batches.enroll(whole)
        if enrolled is Enrolled.GONE:
            raise UploadLost
        return enrolled, batch_id

    async def abandon(self) -> None:
        """Nothing of it shall be left; images that are in the bucket go as due work, for which nobody waits here.

        Not called, or killed: its lease runs out, and then the same happens.
        """
        await self._intake.store.batches.discard(self.id)

    async def _understand(self, raw: bytes) -> tuple[object, Order | Mistakes]:
        if len(raw) < THREAD_FROM_BYTES:
            return self._intake.rules.line(raw, self._caller)
        return await asyncio.to_thread(self._intake.rules.line, raw, self._caller)

    async def _keep(self, order: Order, size_bytes: int) -> None:
        entropy = self.size.to_bytes(LINE_BYTES) + secrets.token_bytes(layout.ENTROPY_BYTES - LINE_BYTES)
        job_id = layout.new_id("job", self._began_ms, entropy)
        kept = await self._put(job_id, order.inputs) if order.inputs else {}
        job = Job(
            id=job_id,
            caller=self._caller,
            model=order.model,
            request={**order.request, **kept},
            priority=order.priority,
            metadata=order.metadata,
            callback_url=order.callback_url,
            custom_id=order.custom_id,
            version=1,
        )
        self._chunk.append(Line(job, order.deadline_s, staged=bool(order.inputs)))
        self._chunk_bytes += size_bytes
        if order.inputs or len(self._chunk) >= CHUNK_LINES or self._chunk_bytes >= CHUNK_BYTES:
            await self._flush()

    async def _put(self, job_id: str, images: Mapping[str, bytes]) -> dict[str, Any]:
        """What stands for the images in the line's request. A slow bucket takes longer than the upload's lease."""
        return await meanwhile(self._intake.inputs.keep(job_id, images), self._flush, RENEW_GAP_S)

    async def _flush(self) -> None:
        chunk, self._chunk, self._chunk_bytes = self._chunk, [], 0
        if not await self._intake.store.batches.stage(self.id, self._caller, self._key, chunk):
            raise UploadLost
        self._staged_s = self._intake.clock.monotonic_s()


class Intake:
    """One per process."""

    def __init__(self, store: Store, inputs: Inputs, rules: Rules, clock: Clock) -> None:
        self.store = store
        self.inputs = inputs
        self.rules = rules
        self.clock = clock

    async def begin(self, caller: str, key: str | None) -> Upload | Beginning:
        """An upload; or what is known of the key, which has been used or is being used just now."""
        entropy = secrets.token_bytes(layout.ENTROPY_BYTES)
        upload = Upload(self, layout.new_id("batch", self.clock.now_ms(), entropy), caller, key)
        beginning = await self.store.batches.open(upload.id, caller, key)
        return upload if beginning.began is Began.OPENED else beginning

    async def clear(self, batch_id: str, lease_s: float) -> bool:
        """Forget an upload that will not be sealed, or a stretch of it; False: there is more. Raises BucketError.

        A job's inputs go from the bucket, then its id from the list. Killed half-way, the next call has only the rest
        before it; the lease is renewed with each job, and while one takes long.
        """
        batches = self.store.batches
        for job_id in await batches.inputs(batch_id, CLEARED_MOST):
            await meanwhile(self.inputs.drop(job_id), partial(batches.cleared, batch_id, (), lease_s), lease_s / 3)
            await batches.cleared(batch_id, [job_id], lease_s)
        return await batches.discard(batch_id)
