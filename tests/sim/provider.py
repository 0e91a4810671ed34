"""The provider as a script: it accepts, refuses, lies, loses and delays as its manners say, and keeps a ledger.

What it answers are bytes, which the service's own parsers read. What it draws names the task it was drawn for.
"""

import asyncio
import json
import random
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any, Final

from tests.sim.world import World

Reply = tuple[int, str, bytes, dict[str, str]]
Post = Callable[[str, bytes], Awaitable[int | None]]

JSON: Final = "application/json"
URL_LIFE_S: Final = 600.0
CALL_AGAIN_S: Final = (1.0, 5.0, 30.0)
HOST: Final = "https://delivery.bfl.ai"
SILENCE: Final[Reply] = (0, "", b"", {})  # no answer comes, however long one waits
ODD: Final[tuple[Reply, ...]] = (
    (200, "text/html", b"<html>", {}),
    (500, JSON, b'{"status": "error"}', {}),
    (200, JSON, b"[", {}),
)
EVIL_URL: Final = "https://evil.example/image"


@dataclass
class Manners:
    """Chances, 0 to 1, unless a unit says otherwise. All zero: a provider without fault that calls back."""

    throttled: float = 0.0
    overloaded: float = 0.0  # JSON 503: surely not accepted
    held: float = 0.0  # 402
    rejected: float = 0.0
    garbled: float = 0.0  # accepted, and the answer does not say so
    same_id: float = 0.0  # accepted under the id of another task
    moderated: float = 0.0
    failed: float = 0.0
    never: float = 0.0  # accepted, and never ends
    absent: float = 0.0  # `Task not found` for a while
    odd: float = 0.0  # polls answered with something else
    flips: float = 0.0  # ready, then pending again
    gone: float = 0.0  # of dead URLs: no fresh one is given
    calls: bool = True  # the script calls back at all
    call_lost: float = 0.0
    call_twice: float = 0.0
    call_late: float = 0.0
    call_bare: float = 0.0  # without proof
    forged: float = 0.0
    cut_short: float = 0.0  # pulls that end too early
    redrawn: float = 0.0  # pulls that get other bytes of the same picture, as from a store that encodes anew
    takes_s: tuple[float, float] = (3.0, 12.0)
    cap: int = 0  # outstanding tasks; 0: any number
    silent: bool = False  # accepts, and never answers


@dataclass
class Task:
    id: str
    job_id: str
    prompt: str
    webhook_url: str | None
    secret: str | None
    born_s: float
    ends_s: float
    fate: str
    urls: list[float] = field(default_factory=list)  # when each was given out
    odd: bool = False
    late: bool = False  # posted by a process that had slept meanwhile: its job was no longer being submitted


class Provider:
    def __init__(self, world: World, dice: random.Random, manners: Manners) -> None:
        self.world = world
        self.manners = manners
        self.tasks: dict[str, Task] = {}
        self.ledger: list[dict[str, Any]] = []  # what was accepted: job_id, provider_id, at_s
        self.asked: list[tuple[float, int]] = []  # each submission: when, and with which status it was answered
        self.post: Post | None = None  # how to call back
        self.first: deque[dict[str, Any]] = deque()  # other manners, one set a submission, before these begin
        self.pulls = 0
        self._dice = dice

    # ---- what is asked of it ------------------------------------------------------------------------------------

    def submit(self, job_id: str, body: dict[str, Any]) -> Reply:
        reply = self._submitted(job_id, body)
        self.asked.append((self.world.now_s(), reply[0]))
        return reply

    def _submitted(self, job_id: str, body: dict[str, Any]) -> Reply:
        m = replace(self.manners, **self.first.popleft()) if self.first else self.manners
        if self._roll(m.held):
            return _reply(402, {"detail": "insufficient credits"})
        if self._roll(m.throttled) or 0 < m.cap <= self.outstanding():
            return 429, JSON, b'{"detail": "too many"}', {"Retry-After": "2"}
        if self._roll(m.overloaded):
            return _reply(503, {"detail": "overloaded"})
        if self._roll(m.rejected):
            return _reply(422, {"detail": [{"loc": ["body", "prompt"], "msg": "no", "input": "x"}]})
        task = self._accept(job_id, body, m)
        if m.silent:
            return SILENCE
        if self._roll(m.garbled):
            return self._dice.choice([(200, "text/html", b"<html>", {}), (500, JSON, b"{}", {}), (200, JSON, b"{", {})])
        if self._roll(m.same_id) and (known := self._owned()):
            return _reply(200, {"id": self._dice.choice(known), "cost": 4})
        return _reply(200, {"id": task.id, "polling_url": "https://api.bfl.ai/x", "cost": 4})

    def result(self, provider_id: str) -> Reply:
        task = self.tasks.get(provider_id)
        if task is None or self._roll(self.manners.absent):
            return _reply(404, {"detail": "Task not found"})
        if self._roll(self.manners.odd):
            odd: list[Reply] = [
                (200, "text/html", b"<html>", {}),
                (500, JSON, b'{"status": "error"}', {}),
                (200, JSON, b"[", {}),
            ]
            return self._dice.choice([*odd, _reply(200, {"id": task.id, "status": "Reasoning", "result": None})])
        if self.world.now_s() < task.ends_s or task.fate == "never" or self._roll(self.manners.flips):
            return _reply(200, {"id": task.id, "status": "Pending", "progress": self._dice.uniform(-1, 2)})
        return _reply(200, self._ending(task))

    def pull(self, url: str) -> bytes | None:
        """The image at the URL; None: it is dead."""
        if not url.startswith(HOST):
            raise AssertionError(f"an address that a stranger named was pulled: {url}")
        _, _, _, task_id, n = url.split("/")
        task = self.tasks[task_id]
        if self.world.now_s() - task.urls[int(n)] > URL_LIFE_S:
            return None
        self.pulls += 1
        encoded = self.pulls if self._roll(self.manners.redrawn) else 0
        image = f"image of {task.job_id} {task.id} {n} {encoded}.".encode()
        return image[:-3] if self._roll(self.manners.cut_short) else image

    def outstanding(self) -> int:
        now_s = self.world.now_s()
        return sum(1 for task in self.tasks.values() if task.ends_s > now_s)

    # ---- what it does -------------------------------------------------------------------------------------------

    def _accept(self, job_id: str, body: dict[str, Any], m: Manners) -> Task:
        now_s = self.world.now_s()
        fates = [fate for fate in ("moderated", "failed", "never") if self._roll(getattr(m, fate))]
        task = Task(
            id=f"task-{len(self.ledger)}",
            job_id=job_id,
            prompt=body["prompt"],
            webhook_url=body.get("webhook_url"),
            secret=body.get("webhook_secret"),
            born_s=now_s,
            ends_s=now_s + self._dice.uniform(*m.takes_s),
            fate=fates[0] if fates else "ready",
        )
        row = self.world.memory.jobs.get(job_id)
        task.late = row is None or row["status"] != "submitting"
        self.tasks[task.id] = task
        self.ledger.append({"job_id": job_id, "provider_id": task.id, "at_s": now_s})
        if m.calls and task.webhook_url and task.fate != "never":
            self.world.outside(self._call_back(task))
        return task

    def _ending(self, task: Task) -> dict[str, Any]:
        if task.fate == "ready":
            return {"id": task.id, "status": "Ready", "result": {"sample": self._url(task), "seed": 7}}
        status = "Request Moderated" if task.fate == "moderated" else "Error"
        return {"id": task.id, "status": status, "result": None}

    def _url(self, task: Task) -> str:
        now_s = self.world.now_s()
        dead = bool(task.urls) and now_s - task.urls[-1] > URL_LIFE_S
        if not task.urls or (dead and not self._roll(self.manners.gone)):
            task.urls.append(now_s)
        return f"{HOST}/{task.id}/{len(task.urls) - 1}"

    async def _call_back(self, task: Task) -> None:
        m = self.manners
        if self._roll(m.forged):
            await asyncio.sleep(self._dice.uniform(0, 20))
            await self._forge(task)
        await asyncio.sleep(max(0.0, task.ends_s - self.world.now_s()))
        if self._roll(m.call_late):
            await asyncio.sleep(self._dice.uniform(20, 400))
        if self._roll(m.call_lost):
            return
        for _ in range(2 if self._roll(m.call_twice) else 1):
            proof = None if self._roll(m.call_bare) else task.secret
            await self._insist(task, self._ending(task) | {"webhook_secret": proof})

    async def _insist(self, task: Task, body: dict[str, Any]) -> None:
        for wait_s in (*CALL_AGAIN_S, None):
            status = await self._tell(task.webhook_url or "", body)
            if (status is not None and 200 <= status < 300) or wait_s is None:
                return
            await asyncio.sleep(wait_s)

    async def _forge(self, task: Task) -> None:
        """A stranger, who may know the address but not the secret, says where he would like us to look.

        He names the task itself, one that never was, or one that another job owns. One that is real and that nobody
        owns yet would be adopted: that is what a hint is for, and only the provider can know of it.
        """
        lie: dict[str, Any] = {
            "id": self._dice.choice([task.id, "task-forged", *self._owned()[-1:]]),
            "status": "Ready",
        }
        lie |= {"result": {"sample": EVIL_URL}, "webhook_secret": self._dice.choice([None, "guessed"])}
        url = task.webhook_url or ""
        await self._tell(self._dice.choice([url, url[:-1] + "!"]), lie)

    def _owned(self) -> list[str]:
        return [task_id for task_id in self.tasks if task_id in self.world.memory.tasks]

    async def _tell(self, url: str, body: dict[str, Any]) -> int | None:
        assert self.post is not None
        return await self.post(url, json.dumps(body).encode())

    def _roll(self, chance: float) -> bool:
        return chance > 0 and self._dice.random() < chance


def _reply(status: int, body: dict[str, Any]) -> Reply:
    return status, JSON, json.dumps(body).encode(), {}
