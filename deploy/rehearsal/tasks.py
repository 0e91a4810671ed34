"""The desk: which tasks were accepted, which still run, what was billed. In memory, and in the journal if there is one.

`/_ledger` is the proof that nothing was bought twice, so a row is written before any answer is sent and never
taken away but by a reset, or by a restart without a journal.
"""

import asyncio
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Self
from uuid import uuid4

from deploy.rehearsal.control import Control
from deploy.rehearsal.dice import Dice
from deploy.rehearsal.journal import Journal, Record
from deploy.rehearsal.pictures import Picture
from deploy.rehearsal.submission import Submission, family
from service.domain.instants import rfc3339

KONTEXT_MAX = "flux-kontext-max"
SEED_BELOW = 2**32
INPUTS = {"image_prompt", "input_image"}
"""Megabytes, of which no picture depends: the journal does without them."""

Clock = Callable[[], float]
"""Seconds since 1970, for what is told and for what expires."""


@dataclass(slots=True, eq=False)
class Task:
    """One accepted submission. It runs until `ended_at` is set."""

    id: str
    model: str
    asked: Submission
    dice: Dice
    fate: frozenset[str]
    accepted_at: float
    latency_s: float
    ended_at: float | None = None
    polls: int = 0
    pulls: int = 0
    callbacks_sent: int = 0
    callbacks_taken: int = 0
    settled: bool = False
    """It has ended, and its last callback was taken, given up, or never due."""
    over: asyncio.Event = field(default_factory=asyncio.Event)
    """Set: it has ended."""
    hurry: asyncio.Event = field(default_factory=asyncio.Event)
    """Set: end now, whatever the latency."""
    told: asyncio.Event = field(default_factory=asyncio.Event)
    """Set: the last callback was tried once, or none will be."""

    @property
    def outcome(self) -> Literal["ready", "moderated", "failed"]:
        if "moderated" in self.fate:
            return "moderated"
        return "failed" if "failed" in self.fate else "ready"

    @property
    def seed(self) -> int:
        return self.dice.whole("image_seed", SEED_BELOW) if self.asked.seed is None else self.asked.seed

    @property
    def picture(self) -> Picture:
        return Picture(self.asked.prompt, self.seed, *self.asked.size, self.asked.format)

    @classmethod
    def again(cls, record: Record) -> Self:
        """The task of whose life this is known. What was counted (polls, pulls, callbacks) is counted anew."""
        model, settled, ended_at = record["model"], record.get("settled", False), record.get("ended_at")
        task = cls(
            id=record["id"],
            model=model,
            asked=family(model).model_validate(record["asked"]),
            dice=Dice(record["seed"], record["number"]),
            fate=frozenset(record["fate"]),
            accepted_at=record["accepted_at"],
            latency_s=record["latency_s"],
            ended_at=ended_at,
            settled=settled,
        )
        if ended_at is not None:
            task.over.set()
        if settled:
            task.told.set()
        return task

    def record(self) -> Record:
        """All that `again` needs to make it, just accepted, the same: its picture to the byte, its fate to the roll."""
        return {
            "id": self.id,
            "model": self.model,
            "asked": self.asked.model_dump(exclude_unset=True, exclude=INPUTS),
            "seed": self.dice.seed,
            "number": self.dice.number,
            "fate": sorted(self.fate),
            "accepted_at": self.accepted_at,
            "latency_s": self.latency_s,
        }

    def row(self) -> dict[str, Any]:
        width, height = self.asked.size
        return {
            "id": self.id,
            "model": self.model,
            "prompt": self.asked.prompt,
            "webhook_url": self.asked.webhook_url,
            "accepted_at": rfc3339(int(self.accepted_at * 1000)),
            "billed": self.outcome == "ready",
            "outcome": self.outcome if self.ended_at is not None else "running",
            "seed": self.seed,
            "width": width,
            "height": height,
            "output_format": self.asked.format,
            "polls": self.polls,
            "pulls": self.pulls,
            "callbacks_sent": self.callbacks_sent,
            "callbacks_taken": self.callbacks_taken,
        }


class Desk:
    def __init__(self, control: Control, now: Clock, journal: Journal | None = None) -> None:
        self._at_start, self.now, self._journal = control, now, journal
        self._clear()
        for record in journal.records if journal else ():
            self._add(Task.again(record))
        self._numbers = itertools.count(1 + max((task.dice.number for task in self.tasks.values()), default=0))

    def reset(self) -> None:
        """As at the very first start: no tasks, the first number, the knobs as the flags set them."""
        if self._journal:
            self._journal.empty()
        self._clear()

    def _clear(self) -> None:
        self.control = self._at_start
        self.tasks: dict[str, Task] = {}
        self.running: set[Task] = set()
        self.max_outstanding = 0
        self.refused_429 = 0
        self._numbers = itertools.count(1)

    def next_dice(self) -> Dice:
        return Dice(self.control.seed, next(self._numbers))

    def full(self, model: str) -> bool:
        if 0 < self.control.max_in_flight <= len(self.running):
            return True
        cap = self.control.max_in_flight_kontext_max
        return model == KONTEXT_MAX and 0 < cap <= sum(task.model == model for task in self.running)

    def accept(self, model: str, asked: Submission, dice: Dice, fate: frozenset[str]) -> Task:
        """A new running task, on the ledger. Ids are not dice: two runs of one seed must not share any."""
        name = uuid4()
        task = Task(
            id=dice.pick("id_style", (str(name), name.hex[:26])),
            model=model,
            asked=asked,
            dice=dice,
            fate=fate,
            accepted_at=self.now(),
            latency_s=0.0 if "callback_early" in fate else self._latency_s(dice),
        )
        self._note(task.record())
        self._add(task)
        return task

    def end(self, task: Task) -> None:
        task.ended_at = self.now()
        task.over.set()
        self.running.discard(task)
        self._note({"id": task.id, "ended_at": task.ended_at})

    def settle(self, task: Task) -> None:
        task.settled = True
        self._note({"id": task.id, "settled": True})

    def before(self, task: Task) -> Task:
        """The task accepted before this one, itself if it is the first."""
        ids = list(self.tasks)
        return self.tasks[ids[max(0, ids.index(task.id) - 1)]]

    def ledger(self, **wanted: str) -> dict[str, Any]:
        """All rows, or those whose columns equal `wanted`."""
        rows = [task.row() for task in self.tasks.values()]
        return {
            "submissions": [row for row in rows if all(row[column] == value for column, value in wanted.items())],
            "outstanding": len(self.running),
            "max_outstanding": self.max_outstanding,
            "refused_429": self.refused_429,
        }

    def _add(self, task: Task) -> None:
        self.tasks[task.id] = task
        if task.ended_at is None:
            self.running.add(task)
        self.max_outstanding = max(self.max_outstanding, len(self.running))

    def _note(self, change: Record) -> None:
        if self._journal:
            self._journal.note(change)

    def _latency_s(self, dice: Dice) -> float:
        swing = self.control.latency_spread_s * (2 * dice.roll("latency") - 1)
        return max(0.0, self.control.latency_s + swing)
