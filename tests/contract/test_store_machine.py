"""The store on a real Valkey against the plain model, in histories that Hypothesis invents and shrinks."""

import asyncio
from collections.abc import Awaitable
from dataclasses import fields, replace
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from service.domain import events as e
from service.domain.job import Image, Job, Priority, Queue, Status
from service.domain.lifecycle import decide
from service.storage.connection import connect
from service.storage.store import Idempotency, Limits, Store
from tests.contract.model import LATER, SOON, Model

HOUR_S = 3600.0
CAPS = {"flux-kontext-max": 1}
CAP = 9  # so that one slot is kept for high priority
INSTANTS = {"created_at", "intent_at", "submitted_at", "ready_at", "finished_at", "polled_at"}
T = TypeVar("T")


class StoreMachine(RuleBasedStateMachine):
    url = ""

    @initialize()
    def begin(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.redis = connect(self.url, timeout_s=5)
        self.run(self.redis.flushall())
        self.store = Store(self.redis, Limits(max_in_flight=CAP, caps=CAPS), actor="test")
        self.model = Model(CAP, CAPS)
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

    def pick(self, index: int) -> Job | None:
        jobs = list(self.model.jobs.values())
        return jobs[index % len(jobs)] if jobs else None

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
            written = self.run(self.store.create(job, idempotency=Idempotency(key, body) if key else None))
            outcome, job_id, rung = self.model.create(job, key, body)
            assert (written.outcome, written.job_id) == (outcome, job_id)
            assert [bell.id for bell in written.bells] == rung

    @rule(index=st.integers(0, 50), event=st.deferred(lambda: EVENTS), replay=st.booleans())
    def happen(self, index: int, event: e.Event, replay: bool) -> None:
        modelled = self.pick(index)
        if modelled is None:
            return
        job = self.run(self.store.get(modelled.id))
        assert job is not None
        change = decide(job, fitted(event, job))
        if change is None:
            return
        self.last = change, f"event{self.count:07}x{index:02}"
        self.count += 1
        written = self.run(self.store.apply(change, self.last[1]))
        outcome, rung = self.model.apply(replace(change, job=modelled))
        assert written.outcome == outcome
        assert [bell.id for bell in written.bells if bell.queue == Queue.SUBMIT] == rung
        if replay and outcome == "applied":
            assert self.run(self.store.apply(change, self.last[1])).outcome == "already"

    @rule()
    def decide_on_what_is_stale(self) -> None:
        if self.last is not None:
            change, _ = self.last
            assert self.run(self.store.apply(change, f"late{self.count:08}")).outcome in ("stale", "taken")

    @rule(index=st.integers(0, 50), queue=st.sampled_from(Queue))
    def claim(self, index: int, queue: Queue) -> None:
        job = self.pick(index)
        if job is not None:
            claim, bells = self.run(self.store.claim(queue, job.id, HOUR_S))
            claimed, rung = self.model.claim(queue, job.id)
            assert (claim and claim.job.id) == claimed
            assert [bell.id for bell in bells] == rung

    @invariant()
    def agree(self) -> None:
        if not hasattr(self, "model"):
            return
        for job_id, modelled in self.model.jobs.items():
            job = self.run(self.store.get(job_id))
            assert job is not None
            assert told(job) == told(modelled)
        assert set(self.members("slots")) == set(self.model.slots)
        assert self.due() == self.model.due
        for status in Status:
            listed = [job.id for job in self.run(self.store.page(caller=None, status=status, limit=200))]
            assert listed == sorted((j.id for j in self.model.jobs.values() if j.status is status), reverse=True)

    def members(self, name: str) -> list[str]:
        rows: Any = self.run(self.redis.zrange(f"dr1:{name}", 0, -1))
        return [raw.decode() for raw in rows]

    def due(self) -> dict[str, str]:
        seconds, _ = self.run(self.redis.time())
        rows: Any = self.run(self.redis.zrange("dr1:due", 0, -1, withscores=True))
        soon = (seconds + 60) * 1000
        return {name.decode().removeprefix("job:"): SOON if at < soon else LATER for name, at in rows}


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
)


@pytest.mark.timeout(280)
def test_the_store_does_what_the_model_says(redis_url: str) -> None:
    StoreMachine.url = redis_url
    run_state_machine_as_test(
        StoreMachine,
        settings=settings(
            max_examples=100, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
