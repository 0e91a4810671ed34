"""The service's own code at work in a simulated world: worker processes, and the HTTP process that takes orders.

Everything from the receiver of callbacks to the sweep is the real thing; only what it is handed is not.
"""

import asyncio
import random
import tempfile
from collections import defaultdict
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, TypeVar, cast

from service.domain import answers
from service.domain.addresses import HostList
from service.domain.answers import Answer, NotAccepted, Unknown
from service.domain.job import Queue
from service.domain.rules import Rules
from service.intake import Intake
from service.metrics import Metrics
from service.parsers import WebhookKey
from service.seals import Seals
from service.secret import Secret
from service.storage.bucket import Bucket
from service.storage.connection import RedisError
from service.storage.desk import Desk
from service.storage.inputs import Inputs
from service.storage.terms import Limits
from service.tokens import CallbackKeys
from tests.sim.bucket import Shelf, SimBucket, digest
from tests.sim.memory import Memory, MemoryStore
from tests.sim.provider import SILENCE, Provider, Reply
from tests.sim.receiver import Receiver, SimCourier
from tests.sim.spool import SimSpool
from tests.sim.world import DEADLINES_S, Cut, Process, World
from workers import batches, collect, submit, sweep
from workers.batches import Binder
from workers.close import Closer
from workers.collect import Collector
from workers.download import DownloadFailure, FailureKind
from workers.fetch import Fetched, Fetcher
from workers.flux import Flux
from workers.images import Image, NotAnImage
from workers.notify import Notifier
from workers.pull import Puller
from workers.submit import Submitter
from workers.sweep import Sweep
from workers.tend import BEAT_S
from workers.timing import Timing

T = TypeVar("T")

METRICS: Final = Metrics()
KEYS: Final = CallbackKeys((WebhookKey("k1", b"k" * 32),))
MEBIBYTE: Final = 2**20
NOWHERE: Final = HostList.parse("", any_public=True)
SECRETS: Final = {name: (Secret("whsec_" + "QUJD" * 10),) for name in ("alice", "bob")}
RULES: Final = Rules(frozenset(), NOWHERE, SECRETS, max_body_bytes=MEBIBYTE, max_input_bytes=MEBIBYTE)
STEPS_AT_ONCE: Final = 6
_JOB: ContextVar[str] = ContextVar("job")  # whose bell is being answered: the ledger's word, not the service's


@dataclass(frozen=True)
class Terms:
    """The settings that matter here."""

    lease_s: float = 15.0
    unknown_wait_s: float = 60.0
    unknown_outcome: Literal["resubmit", "fail"] = "resubmit"
    generation_timeout_s: float = 300.0
    callbacks: bool = True
    sweep_s: float = 5.0
    spool: bool = False  # each process has one, which outlives it
    limits: Limits = field(default_factory=lambda: Limits(max_in_flight=8))


@dataclass
class Town:
    """What all processes share."""

    world: World
    shelf: Shelf
    provider: Provider
    terms: Terms
    receiver: Receiver
    bells_lost: float = 0.0
    bells_doubled: float = 0.0
    bells_late: float = 0.0
    stores: defaultdict[str, list[MemoryStore]] = field(default_factory=lambda: defaultdict(list))  # by process
    primaries: dict[str, Memory] = field(default_factory=dict)  # of processes for which it is not the world's


class SimRinger:
    """Puts bells into the queues, or loses, doubles and delays them."""

    def __init__(self, process: Process, town: Town) -> None:
        self._process = process
        self._town = town

    async def ring(self, rings: Sequence[tuple[str, str]]) -> None:
        try:
            await self._process.effect("bell.ring", lambda: self._put_all(rings))
        except Cut as cut:
            raise RedisError("cut off") from cut

    async def waiting(self, queue: str) -> int:
        return self._town.world.bells[queue].ids.qsize()

    def _put_all(self, rings: Sequence[tuple[str, str]]) -> None:
        for queue, job_id in rings:
            self._put(queue, job_id)

    def _put(self, queue: str, job_id: str) -> None:
        town, dice = self._town, self._town.world.dice
        bells = town.world.bells[queue]
        copies = 1 if not town.bells_lost else (dice.random() >= town.bells_lost) + (dice.random() < town.bells_doubled)
        for _ in range(copies):
            if town.bells_late and dice.random() < town.bells_late:
                town.world.loop.call_later(dice.uniform(0, 30), bells.put, job_id)
            else:
                bells.put(job_id)


class SimFlux:
    """Stands where `workers.flux.Flux` does; what the bytes mean is judged by the service's own parsers."""

    def __init__(self, process: Process, provider: Provider) -> None:
        self._process = process
        self._provider = provider

    async def submit(self, model: str, body: Mapping[str, Any]) -> Answer:
        job_id = _JOB.get()
        try:
            reply = await self._call("submit", lambda: self._provider.submit(job_id, dict(body)))
        except Cut as cut:
            return Unknown("no answer") if cut.happened else NotAccepted("not reached")
        if reply is SILENCE:
            await asyncio.sleep(DEADLINES_S["flux"])
            return Unknown("no answer")
        return answers.submit_answer(*reply)

    async def result(self, provider_id: str) -> Answer:
        try:
            return answers.result_answer(*await self._call("result", lambda: self._provider.result(provider_id)))
        except Cut:
            return Unknown("no answer")

    async def _call(self, name: str, act: Callable[[], Reply]) -> Reply:
        return await self._process.effect(f"flux.{name}", act)


class SimFetcher:
    """Stands where `workers.fetch.Fetcher` does. A whole image begins as one and ends with a full stop."""

    max_bytes = MEBIBYTE

    def __init__(self, process: Process, provider: Provider, shelf: Shelf) -> None:
        self._process = process
        self._provider = provider
        self._shelf = shelf

    async def fetch(self, url: str) -> Fetched | DownloadFailure | NotAnImage:
        try:
            data = await self._process.effect("pull", lambda: self._provider.pull(url))
        except Cut:
            return DownloadFailure(FailureKind.UNAVAILABLE, "cut off")
        if data is None:
            return DownloadFailure(FailureKind.EXPIRED, "403")
        seen = await self.examine(data)
        if isinstance(seen, NotAnImage):
            return seen
        path = f"/nowhere/{len(self._shelf.files)}"
        self._shelf.files[path] = data
        return Fetched(Path(path), len(data), digest(data), seen)

    async def examine(self, data: bytes) -> Image | NotAnImage:
        whole = data.startswith(b"image of ") and data.endswith(b".")
        return Image("image/jpeg", "jpeg", 64, 64) if whole else NotAnImage("truncated")


def desk_of(process: Process, town: Town, spool: str | None = None) -> Desk:
    async def seam(name: str, act: Callable[[], T]) -> T:
        try:
            return await process.effect(name, act)
        except Cut as cut:
            raise RedisError("cut off") from cut

    memory = town.primaries.get(process.name, town.world.memory)
    store = MemoryStore(memory, town.terms.limits, actor=process.name, spool=spool, seam=seam)
    town.stores[process.name].append(store)
    return Desk(store, SimRinger(process, town), process.clock)


class Worker(Process):
    """A worker process: submitters, collectors and a sweep, as `workers/wiring.py` builds them."""

    def __init__(self, town: Town, name: str, *, skew_ms: int = 0, sweeps: bool = True) -> None:
        super().__init__(town.world, name, skew_ms=skew_ms)
        self.town = town
        self._build(random.Random(town.world.dice.random()), town.terms)
        for _ in range(STEPS_AT_ONCE):
            self.start(self._serve(Queue.SUBMIT, self.submitter.run))
            self.start(self._serve(Queue.COLLECT, self.collector.run))
        self.start(self._serve("batches", self.binder.run))
        for _ in range(STEPS_AT_ONCE):
            self.start(self._serve("notify", self.notifier.run))
        if town.terms.spool:
            self.start(self._guard(self._tend()))
        if sweeps:
            self.start(self._guard(self.sweep.run()))

    def _build(self, dice: random.Random, terms: Terms) -> None:
        town, clock = self.town, self.clock
        spool = SimSpool(self.name, town.shelf) if terms.spool else None
        desk = self.desk = desk_of(self, town, spool.id if spool else None)
        bucket = cast("Bucket", SimBucket(self, town.shelf))
        flux = cast("Flux", SimFlux(self, town.provider))
        fetcher = cast("Fetcher", SimFetcher(self, town.provider, town.shelf))
        timing = Timing(desk.store, clock, dice, callbacks=terms.callbacks, gap_most_s=60.0)
        closer = Closer(
            desk,
            flux,
            bucket,
            dice,
            spool=spool,
            unknown_wait_s=terms.unknown_wait_s,
            generation_timeout_s=terms.generation_timeout_s,
        )
        patience_s = terms.generation_timeout_s
        puller = Puller(desk, flux, bucket, closer, fetcher, dice, spool=spool, generation_timeout_s=patience_s)
        buying = submit.Terms(
            lease_s=terms.lease_s,
            unknown_wait_s=terms.unknown_wait_s,
            unknown_outcome=terms.unknown_outcome,
            public_base_url="https://us.example" if terms.callbacks else None,
            input_bytes_max=MEBIBYTE,
        )
        looking = collect.Terms(
            lease_s=terms.lease_s,
            unknown_wait_s=terms.unknown_wait_s,
            generation_timeout_s=terms.generation_timeout_s,
        )
        sweeping = sweep.Terms(interval_s=terms.sweep_s, again_s=10.0, lost_s=8.0)
        self.submitter = Submitter(desk, flux, bucket, timing, KEYS, clock, dice, buying)
        self.collector = Collector(desk, flux, timing, puller, closer, clock, looking)
        self.sweep = Sweep(desk, SimRinger(self, town), bucket, closer, clock, sweeping)
        inputs = Inputs(desk.store, bucket, MEBIBYTE)
        intake = Intake(desk.store, inputs, RULES, clock)
        binding = batches.Terms(lease_s=terms.lease_s, temp_dir=Path(tempfile.gettempdir()))
        self.binder = Binder(desk, bucket, inputs, intake, clock, binding)
        self.notifier = Notifier(desk, bucket, SimCourier(self, town.receiver), SECRETS, Seals(()), clock, dice)

    async def _serve(self, queue: str, step: Callable[[str], Coroutine[Any, Any, None]]) -> None:
        while True:
            job_id = await self.world.bells[queue].ids.get()
            _JOB.set(job_id)
            work, blade = step(job_id), self.world.blade
            await self._guard(work if blade is None else blade.lay(self, work))

    async def _tend(self) -> None:
        while True:
            with suppress(RedisError):
                await self.desk.store.tend()
            await asyncio.sleep(BEAT_S)

    async def _guard(self, work: Awaitable[None]) -> None:
        """As RQ does: what a step raises ends the step. Only Redis being away is expected."""
        try:
            await work
        except RedisError:
            self.world.tally["steps ended without Redis"] += 1
        except Exception as error:  # noqa: BLE001 -- a bug of whatever kind
            self.world.bugs.append(f"{self.name}: a step raised {error!r}")
