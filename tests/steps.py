"""A worker's steps in the test's own hands: a running system without workers, and a house whose steps a test calls.

Nobody waits here. What a job waits for is a time in Redis, and `hasten` says that it has come: the same to every step
as a night that has passed, or as a lease that has run out.
"""

import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

import anyio
import httpx

from deploy.local.stack import Stack
from deploy.rehearsal.pictures import Picture, draw
from service.clock import SystemClock
from service.domain.events import Event
from service.domain.job import Job, Queue
from service.domain.layout import new_id
from service.domain.view import view
from service.storage.connection import text
from service.storage.store import PREFIX
from tests.integration.house import House
from workers import wiring

HOUR_S: Final = 3600.0
WITHIN_S: Final = 30.0
LOOK_AGAIN_S: Final = 0.01
SIDE: Final = 256  # pixels
QUIET: Final = {"latency_s": HOUR_S, "latency_spread_s": 0, "callback_loss": 1, "progress_events": 0}


@dataclass(frozen=True)
class Steps:
    """One worker process's parts. Each step is awaited, and then tells what became of the job."""

    house: wiring.House

    async def new(self, prompt: str, *, deadline_s: float | None = None, **request: Any) -> str:
        """The id of a job that was just accepted. Its bell is not rung."""
        order = order_of(prompt, **request)
        await self.house.desk.store.create(order, deadline_s=deadline_s)
        return order.id

    async def job(self, job_id: str) -> Job:
        job = await self.house.desk.store.get(job_id)
        assert job is not None
        return job

    async def submit(self, job_id: str) -> Job:
        await self.house.submitter.run(job_id)
        return await self.job(job_id)

    async def submit_again(self, job_id: str) -> Job:
        """Its backoff is over: it takes its place among those that wait for a slot, gets one, and is submitted."""
        await self.hasten(job_id)
        await self.submit(job_id)
        return await self.submit(job_id)

    async def collect(self, job_id: str) -> Job:
        await self.house.collector.run(job_id)
        return await self.job(job_id)

    async def take_over(self, job_id: str) -> Job:
        """Another's lease on it has run out: whoever meets that makes it a suspect, and it is looked at apart."""
        await self.hasten(job_id)
        await self.collect(job_id)
        group = await self.house.desk.store.quarantine.isolate(HOUR_S)
        assert group
        assert group.jobs == (job_id,)
        await self.house.collector.run(job_id, alone=group.id)
        return await self.job(job_id)

    async def bought(self, prompt: str = "a lighthouse", **more: Any) -> str:
        """The id of a job that the provider has; it makes its image until it is told to finish."""
        job_id = await self.new(prompt, **more)
        await self.submit(job_id)
        await self.hasten(job_id)
        return job_id

    async def tell(self, job_id: str, *told: Event) -> Job:
        """What happens to the job; each must change it."""
        for event in told:
            assert (await self.house.desk.tell(job_id, event)).changed, event
        return await self.job(job_id)

    async def hasten(self, job_id: str) -> None:
        """The time at which it is due has come, and any lease on it has run out."""
        redis = self.house.redis
        await redis.zadd(f"{PREFIX}due", {f"job:{job_id}": 0}, xx=True)
        if holder := await redis.hget(f"{PREFIX}holders", job_id):
            await redis.hset(f"{PREFIX}inflight:{text(holder)}", job_id, "0")

    async def due(self, job_id: str) -> float | None:
        """When it must be looked at, ms; None: nothing is left to do."""
        return await self.house.redis.zscore(f"{PREFIX}due", f"job:{job_id}")

    async def open_gate(self) -> None:
        """The time for which submissions pause is over; why they did is not forgotten."""
        await self.house.redis.hset(f"{PREFIX}gate", "until", "0")
        await self.house.sweep.round()
        await self.house.desk.drain()

    async def gate(self) -> str:
        """Why submissions pause; empty: they do not."""
        return (await self.house.desk.store.figures()).gate.get("reason", "")

    async def gate_until(self) -> int:
        """Till when, ms."""
        return int((await self.house.desk.store.figures()).gate["until"])

    async def slots(self) -> int:
        return (await self.house.desk.store.figures()).slots

    async def bells(self, queue: Queue) -> int:
        """How many entries wait in a queue."""
        await self.house.desk.drain()
        return int(await self.house.redis.llen(f"rq:queue:{queue}"))


class Bench(House):
    """A stack without workers. The provider ends tasks when it is told to, and calls nobody back."""

    def __init__(self, stack: Stack) -> None:
        super().__init__(stack)
        self.control(**QUIET)

    @asynccontextmanager
    async def steps(self, **settings: Any) -> AsyncIterator[Steps]:
        """A worker process of its own: `settings` by their field names."""
        async with wiring.opened(replace(self.stack.settings, **settings)) as house:
            yield Steps(house)

    def turn(self, **knobs: Any) -> None:
        self.provider.post("/_control", json=knobs).raise_for_status()

    def finish(self) -> None:
        """All running tasks end now."""
        self.provider.post("/_finish").raise_for_status()

    def call_back(self, submission: dict[str, Any], **body: Any) -> None:
        """What the provider, or a stranger, tells the service of a submission."""
        httpx.post(submission["webhook_url"], json=body, trust_env=False).raise_for_status()

    def submissions(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self.ledger()["submissions"]
        return rows

    def put(self, key: str, data: bytes, **metadata: str) -> None:
        self.s3.put_object(Bucket=self.bucket, Key=key, Body=data, Metadata=metadata)

    def true_image(self, job: Job) -> bytes:
        """What the provider drew for the job."""
        [seed] = {row["seed"] for row in self.submissions() if row["id"] == job.provider_id}
        return picture(job.request["prompt"], seed)

    def audit_job(self, job: Job) -> None:
        assert job.status == "succeeded", job.error
        self.audit_one(view(job))


def picture(prompt: str, seed: int = 1) -> bytes:
    """One whole image."""
    return draw(Picture(prompt, seed, SIDE, SIDE, "jpeg"))


def order_of(prompt: str, **request: Any) -> Job:
    asked = {"prompt": prompt, "width": SIDE, "height": SIDE} | request
    job_id = new_id("job", SystemClock().now_ms(), secrets.token_bytes(10))
    return Job(id=job_id, caller="admin", model="flux-pro-1.1", request=asked)


async def comes(holds: Callable[[], bool]) -> None:
    """Wait for what happens outside this process. AssertionError after the deadline."""
    deadline = time.monotonic() + WITHIN_S
    while not holds():
        assert time.monotonic() < deadline, "it did not come to hold in time"
        await anyio.sleep(LOOK_AGAIN_S)
