"""Where events meet records: load, decide, write, ring.

Killed anywhere: the write has happened whole or not at all. A bell that did not go out is harmless, since whatever has
work left is due, and the sweep rings for it.
"""

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol, TypeVar

from service.clock import Clock
from service.domain.events import Event
from service.domain.job import Job, Queue
from service.domain.lifecycle import Change, decide
from service.storage.connection import RedisError
from service.storage.record import CorruptRecord, NewerRecord
from service.storage.store import Store
from service.storage.terms import Bell, Claim, Outcome, Unconfirmed, Written

T = TypeVar("T")

log = logging.getLogger(__name__)

RETRY_GAP_S: Final = 0.25  # between tries of a write while Redis is away
NEWER_AGAIN_S: Final = 30.0  # between looks at a record of a newer release
_STALE_MOST: Final = 50  # a fact that loses this often in a row has met a bug, not a neighbour


class Ringer(Protocol):
    """Puts bells into their queues (`service.storage.bell.Bells`)."""

    async def ring(self, rings: Sequence[tuple[str, str]]) -> None: ...


@dataclass(frozen=True, slots=True)
class Told:
    """`job` as it was read last (None: no such record); `changed`: the event said something new."""

    job: Job | None
    changed: bool
    outcome: Outcome | None = None


class Desk:
    """One per process. `sleep` and `clock` are handed in, so that a simulation can own the time."""

    def __init__(
        self,
        store: Store,
        ringer: Ringer,
        clock: Clock,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.store = store
        self._ringer = ringer
        self._clock = clock
        self._sleep = sleep
        self._ringing: set[asyncio.Task[None]] = set()

    async def tell(self, job_id: str, event: Event, *, patience_s: float = 0.0) -> Told:
        """Record a *fact*: whatever the job's version is by now. Raises RedisError after `patience_s` without Redis.

        Told twice, or to a job it says nothing new to, it changes nothing.
        """
        return await self.hear(job_id, lambda _: event, patience_s=patience_s)

    async def hear(self, job_id: str, say: Callable[[Job], Event | None], *, patience_s: float = 0.0) -> Told:
        """`tell`, for a fact that reads differently as the record does: `say` is asked again for each version."""
        event_id, until = _event_id(), self._clock.monotonic_s() + patience_s
        for _ in range(_STALE_MOST):
            job = await self._patiently(lambda: self.store.get(job_id), until)
            event = say(job) if job else None
            change = decide(job, event) if job and event else None
            if job is None or change is None:
                return Told(job, changed=False)
            written = await self._write(change, event_id, until)
            if written.outcome is not Outcome.STALE:
                return Told(job, written.outcome in (Outcome.APPLIED, Outcome.ALREADY), written.outcome)
        raise RuntimeError(f"a fact about {job_id} found its record stale {_STALE_MOST} times")

    async def decide(
        self,
        job: Job,
        event: Event,
        *,
        patience_s: float = 0.0,
        unconfirmed: Event | None = None,
        quiet: bool = False,
    ) -> Job | None:
        """Take a *decision* on this very version of the job: the job as it is now, or None if it has moved meanwhile.

        `unconfirmed`: as many replicas as the settings ask for must have the write, else None (and no purchase), and
        this is what follows it.
        `quiet`: it rings for nobody; if it makes the job due, the sweep will, as far as the queue has room.
        """
        change = decide(job, event)
        if change is None:
            return None
        change = replace(change, ring=change.ring and not quiet)
        event_id, until = _event_id(), self._clock.monotonic_s() + patience_s
        try:
            written = await self._write(change, event_id, until, confirm=unconfirmed is not None)
        except Unconfirmed:
            log.warning("replicas did not confirm", extra={"job": job.id, "event": event.name})
            if unconfirmed is not None:
                await self._follow(change, event_id, unconfirmed, self._clock.monotonic_s() + patience_s)
            return None
        if written.outcome not in (Outcome.APPLIED, Outcome.ALREADY):
            return None
        return await self._patiently(lambda: self.store.get(job.id), until)

    async def _follow(self, change: Change, event_id: str, event: Event, until: float) -> None:
        """What follows a write that may be on record or not: told to that very write's record, and to no other.

        A primary that took over without it may have the same of another worker, who did buy then. Whose it is says the
        event's id, told once more; and the fence, that nothing has happened since.
        """
        for _ in range(_STALE_MOST):
            job = await self._patiently(lambda: self.store.get(change.job.id), until)
            following = decide(job, event) if job else None
            if following is None or (await self._write(change, event_id, until)).outcome is not Outcome.ALREADY:
                return
            if (await self._write(following, _event_id(), until)).outcome is not Outcome.STALE:
                return

    async def claim(self, queue: Queue, job_id: str, lease_s: float, *, alone: str | None = None) -> Claim | None:
        """`store.claim`, with its bells rung. None also for a record that cannot be read: condemned, or left alone.

        Killed half-way: the lease runs out, and whoever claims next finds the same.
        """
        try:
            claim, bells = await self.store.claim(queue, job_id, lease_s, alone=alone)
        except CorruptRecord as error:
            await self.condemn(error)
            await self.store.release(error.job_id, alone=alone)
            return None
        except NewerRecord as error:
            log.warning("left alone: %s", error, extra={"job": error.job_id})
            await self.store.plan("job", error.job_id, NEWER_AGAIN_S)
            await self.store.release(error.job_id, alone=alone)
            return None
        self.ring(bells)
        return claim

    async def condemn(self, error: CorruptRecord) -> None:
        """`store.condemn`, told to the operator."""
        written = await self.store.condemn(error.job_id)
        log.error("a record cannot be read: %s", error, extra={"job": error.job_id, "outcome": written.outcome})
        self.ring(written.bells)

    def ring(self, bells: Iterable[Bell]) -> None:
        """Send bells without waiting for them."""
        rings = [(bell.queue, bell.id) for bell in bells]
        if rings:
            task = asyncio.create_task(self._ring(rings))
            self._ringing.add(task)
            task.add_done_callback(self._ringing.discard)

    async def drain(self) -> None:
        """Wait for the bells that are on their way."""
        await asyncio.gather(*self._ringing)

    async def _ring(self, rings: Sequence[tuple[str, str]]) -> None:
        try:
            await self._ringer.ring(rings)
        except RedisError as error:
            log.warning("bells not rung, the sweep will", extra={"bells": len(rings), "error": type(error).__name__})

    async def _write(self, change: Change, event_id: str, until: float, *, confirm: bool = False) -> Written:
        written = await self._patiently(lambda: self.store.apply(change, event_id, confirm=confirm), until)
        self.ring(written.bells)
        return written

    async def _patiently(self, call: Callable[[], Awaitable[T]], until: float) -> T:
        """While Redis is away, the same call again: its event id makes that safe."""
        while True:
            try:
                return await call()
            except Unconfirmed:
                raise
            except RedisError:
                if self._clock.monotonic_s() >= until:
                    raise
                await self._sleep(RETRY_GAP_S)


def _event_id() -> str:
    return secrets.token_hex(6)
