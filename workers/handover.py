"""A batch handed over through the queue: an RQ entry of a service that shares our Redis and imports nothing of ours.

The RQ job id is its idempotency key: the same id with the same batch finds it, with another is refused. What is wrong
with a batch is the entry's result, never an exception. Killed half-way: nothing is there, the upload's lease runs out,
and RQ's maintenance runs the entry again (where it was enqueued with retries) or shows it as failed.
"""

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from typing import Any, Final

from service.comparison import RequestHash
from service.domain.errors import FieldError
from service.domain.rules import Extras
from service.intake import BadLines, Intake, Upload, UploadLost
from service.storage.batches import Began, Beginning, Enrolled
from service.storage.desk import Desk
from service.storage.terms import Bell

INLINE_LINES_MOST: Final = 5_000
TRIES: Final = 3
EXTRAS: Final = ("callback_url", "metadata")
NAMES: Final = frozenset({"caller", "jobs", *EXTRAS})

Answer = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Asked:
    caller: str
    jobs: list[object]
    extras: Extras


class Handover:
    """`known_caller`: what a caller may be named."""

    def __init__(
        self,
        desk: Desk,
        intake: Intake,
        known_caller: Callable[[str], bool],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._desk = desk
        self._intake = intake
        self._known_caller = known_caller
        self._sleep = sleep

    async def submit(self, told: object, entry_id: str | None) -> Answer:
        """`{"batch_id": …}`, or `{"errors": [{"line", "pointer", "detail"}], "more_lines": […]}`. Raises RedisError."""
        asked = self._understand(told)
        if not isinstance(asked, _Asked):
            return _mistakes(asked)
        key = hashlib.sha256(f"rq\n{entry_id}".encode()).hexdigest() if entry_id else None
        for _ in range(TRIES):
            begun = await self._begin(asked.caller, key)
            if isinstance(begun, Beginning):
                return self._known(begun, asked)
            try:
                return await self._take_in(begun, asked)
            except UploadLost:  # this process was stopped for longer than its lease
                continue
        raise UploadLost

    def _understand(self, told: object) -> _Asked | list[FieldError]:
        if not isinstance(told, dict):
            return [FieldError("", "Input should be an object")]
        errors = [FieldError(f"/{name}", "Is not known here") for name in sorted(map(str, told.keys() - NAMES))]
        caller, jobs = told.get("caller"), told.get("jobs")
        if not isinstance(caller, str) or not self._known_caller(caller):
            return [*errors, FieldError("/caller", "Should be a name of [a-z0-9_-]")]
        if not isinstance(jobs, list) or not 0 < len(jobs) <= INLINE_LINES_MOST:
            return [*errors, FieldError("/jobs", f"Should be a list of 1 to {INLINE_LINES_MOST} jobs")]
        extras = self._intake.rules.extras({name: told[name] for name in EXTRAS if name in told}, caller)
        return errors or (_Asked(caller, jobs, extras) if isinstance(extras, Extras) else extras)

    async def _begin(self, caller: str, key: str | None) -> Upload | Beginning:
        while True:
            begun = await self._intake.begin(caller, key)
            if isinstance(begun, Upload) or begun.began is Began.KNOWN:
                return begun
            await self._sleep(begun.busy_s)  # another worker is at it, or has died over it

    def _known(self, begun: Beginning, asked: _Asked) -> Answer:
        request = RequestHash()
        for job in asked.jobs:
            request.line(job)
        if request.whole(asked.extras.metadata or {}, asked.extras.callback_url) == begun.hash:
            return {"batch_id": begun.known_id}
        return _mistakes([FieldError("", "This RQ job id came with another batch before")])

    async def _take_in(self, upload: Upload, asked: _Asked) -> Answer:
        for job in asked.jobs:
            await upload.add(json.dumps(job, ensure_ascii=True).encode())
        if upload.bad:
            await upload.abandon()
            return _bad_lines(upload.bad)
        enrolled, batch_id = await upload.seal(asked.extras.metadata or {}, asked.extras.callback_url)
        if enrolled is Enrolled.FULL:
            await upload.abandon()
            return _mistakes([FieldError("", "Too many jobs wait already; enqueue it again later")])
        self._desk.ring([Bell("batches", batch_id)])
        return {"batch_id": batch_id}


def _mistakes(errors: list[FieldError]) -> Answer:
    return {"errors": [{"line": None, **asdict(error)} for error in errors], "more_lines": []}


def _bad_lines(bad: BadLines) -> Answer:
    errors = [{"line": number, **asdict(error)} for number, error in bad.errors]
    return {"errors": errors, "more_lines": list(bad.more)}
