"""The store on a real Valkey against the one that simulations use, in histories that Hypothesis invents and shrinks."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import fields, replace
from functools import partial
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from service.clock import SystemClock
from service.domain import events as e
from service.domain.job import Image, Job, Priority, Queue, Status
from service.domain.lifecycle import decide
from service.domain.successor import successor
from service.storage.connection import connect
from service.storage.store import Store
from service.storage.terms import Claim, Idempotency, Limits, Remains, Written
from tests.sim.memory import Memory, MemoryStore

HOUR_S = 3600.0
CAPS = {"flux-kontext-max": 1}
CAP = 9  # so that one slot is kept for high priority
LIMITS = Limits(max_in_flight=CAP, caps=CAPS)
SOON, LATER = "soon", "later"  # the delays are 0 or an hour, so that real time decides nothing
MINUTE_MS = 60_000
INSTANTS = {
    "created_at",
    "intent_at",
    "submitted_at",
    "ready_at",
    "finished_at",
    "polled_at",
    "asked_at",
    "sum",
    "digest",
    "until",
    "since",
}
SETS = ("slots", *(f"slots:{model}" for model in CAPS), "ripe", "ended", "awaited", "rung", "jobs", "jobs:queued")
T = TypeVar("T")


class StoreMachine(RuleBasedStateMachine):
    url = ""

    @initialize()
    def begin(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.redis = connect(self.url, timeout_s=5)
        self.run(self.redis.flushall())
        self.store = Store(self.redis, LIMITS, actor="test")
        self.memory = Memory(SystemClock().now_ms)
        self.twin = MemoryStore(self.memory, LIMITS, actor="test")
        self.count = 0
        self.last: tuple[Any, str] | None = None

    def run(self, work: Awaitable[T]) -> T:
        async def waited() -> T:
            return await work

        return self.loop.run_until_complete(waited())

    def teardown(self) -> None:
        if hasattr(self, "loop"):
            self.run(self.redis.aclose())
            self.loop.close()

    def both(self, call: Callable[[Store], Awaitable[T]]) -> T:
        """What the call answers, on which both must agree."""
        real, twin = self.run(call(self.store)), self.run(call(self.twin))
        assert plain(real) == plain(twin)
        return real

    def pick(self, index: int) -> Job | None:
        """Both are handed the same job; the digest is over instants, too, which are each one's own."""
        ids = list(self.memory.jobs)
        job = self.twin.job(ids[index % len(ids)]) if ids else None
        return job and replace(job, digest="")

    @rule(
        caller=st.sampled_from(["alice", "bob"]),
        priority=st.sampled_from(Priority),
        model=st.sampled_from(["flux-dev", "flux-kontext-max"]),
        key=st.none() | st.sampled_from(["k1", "k2"]),
        body=st.sampled_from(["b1", "b2"]),
        times=st.integers(1, 6),
    )
    def create(self, caller: str, priority: Priority, model: str, key: str | None, body: str, times: int) -> None:
        for _ in range(times):
            self.count += 1
            job = Job(
                id=f"job_{self.count:04}", caller=caller, model=model, request={"prompt": body}, priority=priority
            )
            idempotency = Idempotency(key, body) if key else None
            self.both(partial(created, job=job, idempotency=idempotency))

    @rule(index=st.integers(0, 50), event=st.deferred(lambda: EVENTS), replay=st.booleans())
    def happen(self, index: int, event: e.Event, replay: bool) -> None:
        job = self.pick(index)
        change = decide(job, fitted(event, job)) if job else None
        if change is None:
            return
        self.count += 1
        self.last = change, f"event{self.count:07}"
        written = self.both(lambda store: store.apply(change, f"event{self.count:07}"))
        if replay and written.outcome == "applied":
            again = self.both(lambda store: store.apply(change, f"event{self.count:07}"))
            assert again.outcome == "already"

    @rule()
    def decide_on_what_is_stale(self) -> None:
        if self.last is not None:
            change, _ = self.last
            self.count += 1
            late = self.both(lambda store: store.apply(change, f"late{self.count:08}"))
            assert late.outcome in ("stale", "gone")  # gone: buried meanwhile

    @rule(index=st.integers(0, 50), queue=st.sampled_from(Queue))
    def claim(self, index: int, queue: Queue) -> None:
        job = self.pick(index)
        if job is not None:
            self.both(lambda store: store.claim(queue, job.id, HOUR_S))

    @rule(room=st.integers(0, 3))
    def ripen(self, room: int) -> None:
        self.both(lambda store: store.ripen({"submit": room, "collect": room}, again_s=HOUR_S))

    @rule(index=st.integers(0, 50))
    def retry(self, index: int) -> None:
        old = self.pick(index)
        new = successor(old, f"job_{self.count + 1:04}", rerun=True) if old else None
        if new is not None:
            self.count += 1
            self.both(lambda store: store.create(new, takes_over=old))

    @rule(index=st.integers(0, 50))
    def bury(self, index: int) -> None:
        job = self.pick(index)
        if job is not None and job.ended:
            self.both(lambda store: store.bury(job, busy_s=HOUR_S))

    @rule(index=st.integers(0, 50))
    def vacate(self, index: int) -> None:
        if self.memory.remains:
            job_id = list(self.memory.remains)[index % len(self.memory.remains)]
            self.both(lambda store: store.remains(job_id))
            self.both(lambda store: store.vacate(job_id))

    @rule(status=st.sampled_from(Status), limit=st.integers(1, 9))
    def page(self, status: Status, limit: int) -> None:
        self.both(lambda store: store.page(caller="alice", status=status, limit=limit))

    @rule(index=st.integers(0, 50))
    def hear(self, index: int) -> None:
        job = self.pick(index)
        if job is not None:
            self.both(lambda store: is_late(store, job.id))

    @invariant()
    def agree(self) -> None:
        if not hasattr(self, "twin"):
            return
        lanes = [f"wait:{group}:{priority}" for group in ("", *CAPS) for priority in Priority]
        *rows, gate, found = self.run(self.dump(list(self.memory.jobs), [*SETS, *lanes, "due"]))
        assert found == self.memory.found
        assert timeless(gate) == timeless(self.memory.gate)
        for name in SETS:
            assert set(rows.pop(0)) == set(self.memory.zsets[name]), name
        for lane in lanes:
            assert rows.pop(0) == self.memory.zsets[lane], lane
        assert soon(rows.pop(0)) == soon(self.memory.due)
        assert [timeless(row) for row in rows] == [timeless(row) for row in self.memory.jobs.values()]

    async def dump(self, ids: list[str], sets: list[str]) -> list[Any]:
        """In one round trip: sorted sets, records, the gate, and what became of callbacks."""
        async with self.redis.pipeline(transaction=False) as pipe:
            for name in sets:
                pipe.zrange(f"dr1:{name}", 0, -1, withscores=True)
            for job_id in ids:
                pipe.hgetall(f"dr1:job:{job_id}")
            pipe.hgetall("dr1:gate")
            pipe.lrange("dr1:found", 0, -1)
            *rows, found = await pipe.execute()
        texts = [{key.decode(): text(value) for key, value in dict(row).items()} for row in rows]
        return [*texts, [word.decode() for word in found]]


def text(value: bytes | float) -> str | float:
    return value.decode() if isinstance(value, bytes) else value


def timeless(row: Mapping[str, str]) -> dict[str, str]:
    """What both say without a clock; the checksum covers instants."""
    return {name: value for name, value in row.items() if name not in INSTANTS and "shrunk:" not in name}


def soon(due: Mapping[str, float]) -> dict[str, str]:
    bound = SystemClock().now_ms() + MINUTE_MS
    return {name: SOON if at < bound else LATER for name, at in due.items()}


async def created(store: Store, job: Job, idempotency: Idempotency | None) -> Written:
    return await store.create(job, idempotency=idempotency)


async def is_late(store: Store, job_id: str) -> bool:
    return await store.hear(job_id) is not None


def plain(answer: object) -> object:
    """An answer without its instants."""
    match answer:
        case Written(outcome, _, job_id, bells):
            return outcome, job_id, bells
        case Claim(job, _, _, gate):
            return told(job), gate
        case Job():
            return told(answer)
        case Remains(open_, tasks):
            return open_, tasks
        case tuple() | list():
            return [plain(each) for each in answer]
    return answer


def told(job: Job) -> dict[str, Any]:
    return {f.name: getattr(job, f.name) for f in fields(Job) if f.name not in INSTANTS}


def fitted(event: e.Event, job: Job) -> e.Event:
    """Events name the attempt that the job is at, so that most of them say something."""
    if not hasattr(event, "attempt"):
        return event
    attempt = job.attempt + 1 if isinstance(event, e.Intended) else max(1, job.attempt)
    made: e.Event = replace(event, attempt=attempt)  # type: ignore[call-arg]  # not a field of all events
    return made


TASKS = st.sampled_from([f"task-{n}" for n in range(6)])
EVENTS: st.SearchStrategy[e.Event] = st.one_of(
    st.just(e.Intended(attempt=0, delay_s=HOUR_S)),
    st.builds(e.TaskAccepted, attempt=st.just(0), provider_id=TASKS, delay_s=st.sampled_from([0.0, HOUR_S])),
    st.just(e.Refused(attempt=0, delay_s=0.0)),
    st.builds(e.Ready, attempt=st.just(0), provider_id=TASKS, url=st.just("https://x/y"), expires_at=st.integers(1, 9)),
    st.just(e.Moderated(attempt=0)),
    st.just(e.CancelAsked()),
    st.just(e.Polled(delay_s=HOUR_S)),
    st.builds(e.Hinted, candidate=TASKS),
    st.just(e.PullFailed(delay_s=0.0)),
    st.just(e.Sealed(image=Image("b", "k", "00" * 32, 1, 1, 1, "image/png", 2**63))),
    st.just(e.SidecarWritten(delay_s=HOUR_S)),
    st.just(e.TimedOut()),
    st.just(e.Throttled(attempt=0, delay_s=HOUR_S)),
    st.just(e.Held(attempt=0, detail="402")),
)


@pytest.mark.timeout(280)
def test_the_store_and_its_twin_in_memory_do_the_same(redis_url: str) -> None:
    StoreMachine.url = redis_url
    run_state_machine_as_test(
        StoreMachine,
        settings=settings(
            max_examples=100, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
