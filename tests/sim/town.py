"""A whole system in one event loop: who lives in it, who comes again after a death, and how it is judged at the end."""

import asyncio
import json
import math
import random
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, Final

from service.domain.errors import ErrorCode
from service.domain.job import Job
from service.domain.view import view
from tests.sim import history
from tests.sim.bucket import Shelf, digest
from tests.sim.front import Front
from tests.sim.memory import Memory, MemoryStore
from tests.sim.provider import Manners, Provider, Task
from tests.sim.receiver import Receiver
from tests.sim.staff import Terms, Town, Worker
from tests.sim.world import EPOCH_MS, Crash, Process, World, entropy

CALLER: Final = "alice"
LOOK_S: Final = 2.0
AGAIN_S: Final = 5.0  # a caller who was not answered asks again after this
RESTART_S: Final = 1.0
ASKS_MOST: Final = 2000


class Sim:
    """One run. Callers' requests are asked again until they are answered, as a careful client would."""

    def __init__(
        self,
        dice: random.Random,
        manners: Manners,
        terms: Terms,
        *,
        crashes: tuple[Crash, ...] = (),
        workers: int = 1,
        skews_ms: tuple[int, ...] = (0,),
    ) -> None:
        self.world = World(dice, crashes=crashes)
        self.shelf = Shelf()
        self.provider = Provider(self.world, random.Random(dice.random()), manners)
        self.receiver = Receiver(self.shelf, random.Random(2))
        self.town = Town(self.world, self.shelf, self.provider, terms, self.receiver)
        self.store = MemoryStore(self.world.memory, terms.limits)
        self.skews_ms = skews_ms
        self.deafening = False  # with each death all bells are lost
        self.front = Front(self.town, "front")
        self.workers: dict[str, Worker] = {}
        self.provider.post = self._post
        self.world.on_crash = self._mourn
        self.world.memory.watch = self._watch
        self.ended: dict[str, str] = {}
        self.deleted: set[str] = set()
        self.uploads: list[dict[str, Any]] = []
        for number in range(workers):
            self.hire(f"worker-{number}")

    # ---- callers ------------------------------------------------------------------------------------------------

    async def order(self, key: str, *, caller: str = CALLER, **body: Any) -> str | None:
        """The id of the accepted job; None: it was refused for good."""
        told = {"model": "flux-dev", "prompt": key} | body
        raw = json.dumps(told).encode()
        status, answer = await self._insist(lambda: self.front.order(caller, key, raw))
        job_id = json.loads(answer)["id"] if status in (200, 202) else None
        self.world.answers.append({"to": "order", "status": status, "job_id": job_id, "key": key, "caller": caller})
        return job_id

    async def upload(
        self, key: str, *prompts: str, caller: str = CALLER, callback_url: str | None = None, **body: Any
    ) -> str:
        """The id of the accepted batch; `callback_url` is the whole batch's."""
        rows = [json.dumps({"model": "flux-dev", "prompt": prompt} | body).encode() for prompt in prompts]
        status, answer = await self._insist(lambda: self.front.upload(caller, key, rows, callback_url))
        while answer == b"in_progress":  # nobody may have heard of the end of the upload before
            await asyncio.sleep(AGAIN_S)
            status, answer = await self._insist(lambda: self.front.upload(caller, key, rows, callback_url))
        batch_id: str = json.loads(answer)["id"]
        self.uploads.append({"key": (caller, key), "id": batch_id, "prompts": list(prompts), "status": status})
        return batch_id

    async def cancel_batch(self, batch_id: str, *, caller: str = CALLER) -> int:
        return (await self._insist(lambda: self.front.cancel_batch(caller, batch_id)))[0]

    async def retry_batch(self, batch_id: str, *, caller: str = CALLER) -> tuple[str, str]:
        """The id of the batch that retries what failed, and empty; or the reverse: why there is none."""
        status, answer = await self._insist(lambda: self.front.retry_batch(caller, batch_id))
        return (json.loads(answer)["id"], "") if status in (200, 202) else ("", answer.decode())

    async def cancel(self, job_id: str, *, caller: str = CALLER) -> int:
        return (await self._insist(lambda: self.front.cancel(caller, job_id)))[0]

    async def retry(self, job_id: str, *, caller: str = CALLER, rerun: bool = False) -> str | None:
        status, answer = await self._insist(lambda: self.front.retry(caller, job_id, rerun=rerun))
        return json.loads(answer)["id"] if status in (200, 202) else None

    async def delete(self, job_id: str, *, caller: str = CALLER) -> int:
        status = (await self._insist(lambda: self.front.delete(caller, job_id)))[0]
        if status == 204:
            self.deleted.add(job_id)
        return status

    async def _insist(self, ask: Callable[[], Coroutine[Any, Any, tuple[int, bytes] | None]]) -> tuple[int, bytes]:
        for _ in range(ASKS_MOST):
            answer = await ask()
            if answer is not None and answer[0] not in (429, 503):
                return answer
            await asyncio.sleep(AGAIN_S)
        raise AssertionError("a caller was never answered")

    async def _post(self, url: str, body: bytes) -> int | None:
        return await self.front.call_back(url, body)

    def move(self, memory: Memory, names: Iterable[str]) -> None:
        """These processes, and those that take their places, have another primary from now on."""
        for name in names:
            self.town.primaries[name] = memory
            for store in self.town.stores[name]:
                store.memory = memory

    # ---- life and death -----------------------------------------------------------------------------------------

    def hire(self, name: str) -> None:
        self.workers[name] = Worker(self.town, name, skew_ms=self.world.dice.choice(self.skews_ms))

    def _mourn(self, dead: Process) -> None:
        if self.deafening:
            self.world.silence()
        self.world.loop.call_later(RESTART_S, self._replace, dead)

    def _replace(self, dead: Process) -> None:
        if isinstance(dead, Front):
            self.front = Front(self.town, "front")
        else:
            self.hire(dead.name)

    # ---- waiting and judging ------------------------------------------------------------------------------------

    def job(self, job_id: str) -> Job:
        job = self.store.job(job_id)
        assert job is not None, job_id
        return job

    async def until(self, holds: Callable[[], bool], within_s: float) -> None:
        end_s = self.world.now_s() + within_s
        while not holds():
            assert self.world.now_s() < end_s, f"not so within {within_s:.0f} s: {self.state()}"
            await asyncio.sleep(LOOK_S)

    def quiet(self) -> bool:
        """Nothing is left to do: every job has ended, and no work of any kind is due."""
        return not self.world.memory.due and all(self.job(job_id).ended for job_id in self.world.memory.jobs)

    def over(self, batch_id: str) -> bool:
        return self.world.memory.batches[batch_id].get("marked") == "1"

    def state(self) -> str:
        memory = self.world.memory
        jobs = [f"{job.id[-6:]} {job.status} {job.reason} {job.open}" for job in map(self.job, memory.jobs)]
        late = {name: round((at - memory.now_ms()) / 1000) for name, at in memory.due.items()}
        return f"jobs {jobs}, due in {late}, gate {memory.gate}, slots {list(memory.zsets['slots'])}"

    def faults(self) -> list[str]:
        """What this run broke, once it is quiet."""
        memory, things = self.world.memory, self.shelf.things
        found = [*self.world.bugs]
        found += history.violations(
            lines=[entry.data for entry in memory.events if entry.data["id"] not in memory.batches],
            jobs=[view(self.job(job_id)) for job_id in memory.jobs],
            ledger=self.provider.ledger,
            objects={key: plain(key, thing.data, thing.metadata) for key, thing in things.items()},
            answers=self.world.answers,
            unknown_wait_ms=round(self.town.terms.unknown_wait_s * 1000),
        )
        found += history.batch_faults(
            self.uploads,
            batches={batch_id: {"lines": self.members(batch_id), **row} for batch_id, row in memory.batches.items()},
            objects={key: thing.data for key, thing in things.items()},
            deleted=self.deleted,
        )
        known = [task for task in self.provider.tasks.values() if task.id in memory.tasks and not task.late]
        found += crowds(known, self.town.terms.limits.max_in_flight, self._given_up_s())
        found += [f"P6 {job_id}: moderated, and no task of it was" for job_id in memory.jobs if self._slandered(job_id)]
        found += history.notice_faults(self._to_be_told(), self.receiver.letters)
        found += [f"{rows} of {batch_id} became no jobs" for batch_id, rows in memory.lines.items() if rows]
        found += [f"{memory.folded} lines are thought to wait"] if memory.folded else []
        for name in ("slots", "ripe", "due", *(name for name in memory.zsets if name.startswith(("slots:", "wait:")))):
            found += [f"{member} is left in {name}" for member in memory.zsets[name]]
        found += [f"{key} of a deleted job is left" for key in things if any(gone in key for gone in self.deleted)]
        found += [f"{key} was staged for no job" for key in things if key.startswith("inputs/") and _stray(key, memory)]
        found += [
            f"{job_id}: no sidecar" for job_id in memory.jobs if not any(f"{job_id}.json" in key for key in things)
        ]
        return found

    def _slandered(self, job_id: str) -> bool:
        """It ended as moderated, and the provider has moderated no task of it: somebody else's word was taken."""
        job = self.job(job_id)
        its = [task for task in self.provider.tasks.values() if task.job_id == job_id or task.id in job.tasks.values()]
        moderated = job.error is not None and job.error.code is ErrorCode.MODERATED
        return moderated and not any(task.fate == "moderated" for task in its)

    def _given_up_s(self) -> dict[str, float]:
        """Jobs of which nobody waited for an answer any more, and since when."""
        told = [entry.data for entry in self.world.memory.events if entry.data["reason"] in ("gave_up", "timed_out")]
        return {each["id"]: (int(each["at"]) - EPOCH_MS) / 1000 for each in told}

    def _to_be_told(self) -> list[str]:
        """Jobs and batches that are over, and whose callers want to hear of it."""
        memory = self.world.memory
        jobs = [job_id for job_id in memory.jobs if self.job(job_id).callback_url]
        return jobs + [id_ for id_, row in memory.batches.items() if json.loads(row["body"])["callback_url"]]

    def members(self, batch_id: str) -> list[str]:
        """The jobs that the batch has or had, in the order of its lines."""
        born = (entry.data for entry in self.world.memory.events if entry.data["reason"] == "created")
        return sorted(told["id"] for told in born if told.get("batch_id") == batch_id)

    def _watch(self, job_id: str) -> None:
        """After every write, what is cheap to see."""
        memory = self.world.memory
        row = memory.jobs[job_id]
        ended = row["status"] in history.ENDED
        if self.ended.setdefault(job_id, row["status"]) != row["status"] if ended else job_id in self.ended:
            self.world.bugs.append(f"{job_id}: was {self.ended[job_id]}, is {row['status']}")
        rests = ended and row["sidecar"] == "1" and row["open"] in ("", "[]")
        if (f"job:{job_id}" in memory.due) == rests:
            self.world.bugs.append(f"{job_id}: {row['status']} after {row['reason']}, due: {not rests}")
        held, waits = job_id in memory.zsets["slots"], row["status"] == "queued"
        if not waits and held != (row["open"] not in ("", "[]")):
            self.world.bugs.append(f"{job_id}: {row['status']} after {row['reason']}, open {row['open']}, slot: {held}")
        if row["status"] == "succeeded" and not any(f"{job_id}." in key for key in self.shelf.things):
            self.world.bugs.append(f"{job_id}: succeeded without an object")


def crowds(tasks: Sequence[Task], cap: int, given_up_s: Mapping[str, float]) -> Iterable[str]:
    """Of how many jobs the provider had tasks at once, where that was more than the cap (0: none).

    Of jobs, not of tasks: one that was posted again after an unknown outcome keeps its slot for both, until the second
    has ended or was given up; that there was a task may be learnt much later. What nobody heard of, and what a process
    posted that was stopped between its last look and its POST, no count can hold back.
    """
    ends_s = {each.id: _counted_until_s(each, tasks, given_up_s.get(each.job_id, math.inf)) for each in tasks}
    for task in tasks if cap else ():
        there = {each.job_id for each in tasks if each.born_s <= task.born_s < ends_s[each.id]}
        if len(there) > cap:
            yield f"{len(there)} jobs had tasks outstanding when {task.id} was accepted, and there are {cap} slots"


def _counted_until_s(task: Task, tasks: Sequence[Task], given_up_s: float) -> float:
    again = (other.born_s for other in tasks if other.job_id == task.job_id and other.born_s > task.born_s)
    return min([task.ends_s, given_up_s, *again])


def plain(key: str, data: bytes, metadata: Any) -> dict[str, Any]:
    thing = {"job_id": metadata.get("job-id"), "sha256": digest(data)}
    if key.startswith("images/"):
        thing["made_for"] = data.split()[3].decode()
    return thing


def _stray(key: str, memory: Any) -> bool:
    return key.split("/")[1] not in memory.jobs


def seeded(seed: int) -> Any:
    """The seed's dice, and ids drawn from it."""
    return entropy(random.Random(seed))
