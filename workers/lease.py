"""A claim kept alive while its step runs."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from service.clock import Clock
from service.domain.job import Queue
from service.storage.connection import RedisError
from service.storage.desk import Desk
from service.storage.store import Store
from service.storage.terms import Claim
from workers.patience import cut


class Lease:
    """`now()` is Redis's clock, carried on by our monotonic one. `lost`: another may be at the job by now."""

    def __init__(self, claim: Claim, clock: Clock, lease_s: float) -> None:
        self.claim = claim
        self.lost = False
        self._clock = clock
        self._began_s = clock.monotonic_s()
        self._renewed_s = self._began_s
        self._lease_s = lease_s

    def now(self) -> int:
        """Milliseconds."""
        return self.claim.now + round((self._clock.monotonic_s() - self._began_s) * 1000)

    def holds(self) -> bool:
        """Whether it surely has not run out, also if this process was stopped for a while."""
        return not self.lost and self._clock.monotonic_s() - self._renewed_s < self._lease_s

    async def renew_while_running(self, store: Store) -> None:
        """Renew three times in a lease, until told that it is lost."""
        lease_end = self.claim.lease_end
        while not self.lost:
            await asyncio.sleep(self._lease_s / 3)
            asked_s = self._clock.monotonic_s()
            with suppress(RedisError):  # Redis away: the lease may run out, and `holds` says so
                renewed = await store.renew(self.claim.job.id, lease_end, self._lease_s, alone=self.claim.alone)
                self.lost = renewed is None
                lease_end, self._renewed_s = renewed or lease_end, asked_s


@asynccontextmanager
async def claimed(
    desk: Desk, queue: Queue, job_id: str, lease_s: float, alone: str | None = None
) -> AsyncIterator[Claim | None]:
    """A claim, in flight for as long as the block runs: a process that dies meanwhile makes the job suspect."""
    claim = await desk.claim(queue, job_id, lease_s, alone=alone)
    try:
        yield claim
    finally:
        if claim is not None:
            with suppress(RedisError):
                await desk.store.release(claim.job.id, alone=alone)


@asynccontextmanager
async def renewed(lease: Lease, store: Store) -> AsyncIterator[Lease]:
    """Renews in the background for as long as the block runs."""
    renewing = asyncio.create_task(lease.renew_while_running(store))
    try:
        yield lease
    finally:
        await cut({renewing})  # redis-py may lose a cancellation, and then the step would never end
