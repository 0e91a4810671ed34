"""A plain model of the store: what `store.lua` must do, said once more in dicts and lists, for the state machine."""

from dataclasses import dataclass, field, replace
from typing import Any

from service.domain.events import NOW
from service.domain.job import Job, Priority, Queue, Status
from service.domain.lifecycle import KEEP, Change

WEIGHT = {Priority.HIGH: 16, Priority.NORMAL: 4, Priority.LOW: 1}
SOON, LATER = "soon", "later"  # the machine's delays are 0 or an hour, so that real time decides nothing


@dataclass
class Model:
    """`due` maps a job to SOON or LATER. Instants are not modelled (all 1)."""

    cap: int
    caps: dict[str, int]
    jobs: dict[str, Job] = field(default_factory=dict)
    due: dict[str, str] = field(default_factory=dict)
    slots: list[str] = field(default_factory=list)
    waiting: dict[str, float] = field(default_factory=dict)  # id -> tag
    tags: dict[tuple[str, Priority], float] = field(default_factory=dict)
    clock: float = 0.0
    owners: dict[str, str] = field(default_factory=dict)
    keys: dict[tuple[str, str], tuple[str, str]] = field(default_factory=dict)

    def create(self, job: Job, key: str | None, body: str) -> tuple[str, str, list[str]]:
        if job.id in self.jobs:
            return "already", job.id, []
        if key is not None and (known := self.keys.get((job.caller, key))):
            return ("replayed" if known[0] == body else "conflict"), known[1], []
        if key is not None:
            self.keys[job.caller, key] = (body, job.id)
        self.jobs[job.id] = replace(job, version=1)
        self.due[job.id] = LATER
        self._wait(job)
        return "created", job.id, self.admit()

    def apply(self, change: Change) -> tuple[str, list[str]]:
        job = self.jobs[change.job.id]
        if job.version != change.job.version:
            return "stale", []
        if change.provider_id is not None:
            if self.owners.get(change.provider_id, job.id) != job.id:
                return "taken", []
            self.owners[change.provider_id] = job.id
        patch: dict[str, Any] = {name: 1 if value is NOW else value for name, value in change.patch.items()}
        self.jobs[job.id] = replace(job, status=change.to, version=job.version + 1, reason=change.event, **patch)
        self._hold(job.id, holds=change.holds_slot)
        if change.to is not Status.QUEUED:
            self.waiting.pop(job.id, None)
        if change.due_s is None:
            self.due.pop(job.id, None)
        elif change.due_s is not KEEP:
            self.due[job.id] = LATER if change.due_s else SOON
        return "applied", self.admit()

    def claim(self, queue: Queue, job_id: str) -> tuple[str | None, list[str]]:
        if queue is Queue.COLLECT:
            ripe = [j for j in self.jobs.values() if j.status is Status.COLLECTING and not j.sealed]
            for job in sorted(ripe, key=lambda j: (j.result_expires_at or 0, j.id)):
                if self.due.get(job.id) == SOON:
                    self.due[job.id] = LATER
                    return job.id, []
        found = self.jobs.get(job_id)
        if found is None or self.due.get(job_id) != SOON or queue_of(found) is not queue:
            return None, []
        self.due[job_id] = LATER
        if found.status is Status.QUEUED and job_id not in self.slots:
            self._wait(found)
            return None, self.admit()
        return job_id, []

    def admit(self) -> list[str]:
        admitted = []
        while (
            best := min((self.waiting[id_], id_) for id_ in self.waiting if not self._full(self.jobs[id_]))
            if any(not self._full(self.jobs[id_]) for id_ in self.waiting)
            else None
        ):
            self.clock, job_id = best
            del self.waiting[job_id]
            self._hold(job_id, holds=True)
            self.due[job_id] = SOON
            admitted.append(job_id)
        return admitted

    def _wait(self, job: Job) -> None:
        if job.id not in self.waiting:
            who = (job.caller, job.priority)
            self.tags[who] = max(self.clock, self.tags.get(who, 0)) + 1 / WEIGHT[job.priority]
            self.waiting[job.id] = self.tags[who]

    def _hold(self, job_id: str, *, holds: bool) -> None:
        if holds and job_id not in self.slots:
            self.slots.append(job_id)
        if not holds and job_id in self.slots:
            self.slots.remove(job_id)

    def _full(self, job: Job) -> bool:
        group = [id_ for id_ in self.slots if self.jobs[id_].model == job.model]
        bounds = [(self.cap, len(self.slots))]
        if job.model in self.caps:
            bounds.append((self.caps[job.model], len(group)))
        return any(cap - used <= (0 if job.priority is Priority.HIGH else min(2, cap // 8)) for cap, used in bounds)


def queue_of(job: Job) -> Queue:
    unsent = job.status is Status.QUEUED or (job.status is Status.SUBMITTING and job.candidate is None)
    return Queue.SUBMIT if unsent else Queue.COLLECT
