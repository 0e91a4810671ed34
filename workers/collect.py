"""Looking: the step that asks the provider how a task is, and hands what is ready or ended to its next step.

    claim → generating: get_result, and what it means on record
            collecting: pull (workers/pull.py)      ended: close (workers/close.py)
            submitting, with a hint: is the task that it names known?

A `collect` bell means *take the most urgent*: the claim gives the job whose URL dies first, whatever the bell names.
Killed anywhere: nothing is lost, since asking changes nothing; the lease runs out and the job is rung again.
"""

import asyncio
from dataclasses import dataclass

from service.clock import Clock
from service.domain import events
from service.domain.answers import Answer, Failed, Moderated, NotFound, Pending, Ready
from service.domain.errors import ErrorCode
from service.domain.job import FoundBy, Job, Queue, Status
from service.storage.desk import Desk
from workers import retry
from workers.close import Closer
from workers.flux import Flux
from workers.lease import Lease, claimed, renewed
from workers.pull import Puller
from workers.results import ended_event, ready_event
from workers.timing import Timing


@dataclass(frozen=True, slots=True)
class Terms:
    """The settings of this step."""

    lease_s: float
    unknown_wait_s: float
    generation_timeout_s: float
    not_found_s: float = 60.0  # provider fact: a task just submitted may be "not found" for a while


class Collector:
    def __init__(
        self, desk: Desk, flux: Flux, timing: Timing, puller: Puller, closer: Closer, clock: Clock, terms: Terms
    ) -> None:
        self._desk = desk
        self._flux = flux
        self._timing = timing
        self._puller = puller
        self._closer = closer
        self._clock = clock
        self._terms = terms

    async def run(self, job_id: str, alone: str | None = None) -> None:
        """Do what the most urgent job's state asks for now; nothing if no job is due.

        `alone`: do it for this job, a suspect of that group.
        """
        async with claimed(self._desk, Queue.COLLECT, job_id, self._terms.lease_s, alone) as claim:
            if claim is not None:
                lease = Lease(claim, self._clock, self._terms.lease_s)
                async with renewed(lease, self._desk.store):
                    await self._look(claim.job, lease)

    async def _look(self, job: Job, lease: Lease) -> None:
        late = job.deadline_at is not None and job.deadline_at <= lease.now()
        if late and (closed := await self._desk.decide(job, events.DeadlinePassed())):
            # What an earlier step pulled may still be put until its lease ends; ours is that lease now.
            await self._closer.close(closed, lease)
            return
        match job.status:
            case Status.GENERATING:
                await self._poll(job, lease)
            case Status.SUBMITTING:
                await self._look_up(job, lease)
            case Status.COLLECTING:
                await self._puller.pull(job, lease)
            case _:
                await self._closer.close(job, lease)

    async def _poll(self, job: Job, lease: Lease) -> None:
        """Ask for every attempt's task; the first whose end says something decides, else the next poll is placed."""
        tasks = [(int(n), task) for n, task in sorted(job.tasks.items())]
        answers = await asyncio.gather(*(self._flux.result(task) for _, task in tasks))
        for (attempt, task), answer in zip(tasks, answers, strict=True):
            event = ended_event(answer, attempt, task, lease.now(), hinted=job.hints > 0)
            if event is not None and event.applies(job):
                await self._desk.tell(job.id, event, patience_s=retry.REDIS_PATIENCE_S)
                return
        waited_s = (lease.now() - max(job.submitted_at or 0, job.created_at)) / 1000
        await self._desk.decide(job, self._not_yet(job, answers, waited_s))

    def _not_yet(self, job: Job, answers: list[Answer], waited_s: float) -> events.Event:
        gone = all(isinstance(answer, NotFound) for answer in answers)
        # A task that may still run can be "not found" in passing; one that is known to be over does not come back.
        if gone and job.retry_of and not job.open and waited_s > self._terms.not_found_s:
            detail = "the provider does not know the task of the retried job any more"
            return events.Lost(code=ErrorCode.RESULT_EXPIRED, detail=detail)
        if waited_s > self._terms.generation_timeout_s:
            return events.TimedOut()
        return events.Polled(delay_s=self._timing.next_poll_s(waited_s), detail="not found" if gone else "")

    async def _look_up(self, job: Job, lease: Lease) -> None:
        """A callback without proof named a task for an attempt whose outcome is unknown.

        Where there is such a task it is adopted, which the store refuses if it is another job's. What became of it is
        believed only then: a stranger may name a task that failed.
        """
        if job.candidate is None:
            return
        attempt, answer = job.candidate_of or job.attempt, await self._flux.result(job.candidate)
        event: events.Event | None = None
        if isinstance(answer, Ready):
            event = ready_event(answer, attempt, job.candidate, FoundBy.WEBHOOK, now_ms=lease.now())
        elif isinstance(answer, Pending | Moderated | Failed):
            delay_s = await self._timing.first_poll_s(job.model) if isinstance(answer, Pending) else 0.0
            event = events.TaskAccepted(attempt=attempt, provider_id=job.candidate, delay_s=delay_s)
        if event is not None:
            told = await self._desk.tell(job.id, event, patience_s=retry.REDIS_PATIENCE_S)
            if told.changed:
                return
        wait_s = await self._timing.unknown_wait_s(job.model, self._terms.unknown_wait_s)
        waits_till = (job.intent_at or 0) + round(wait_s * 1000)
        await self._desk.decide(job, events.HintDropped(delay_s=max(0.0, (waits_till - lease.now()) / 1000)))
