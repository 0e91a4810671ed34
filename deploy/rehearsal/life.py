"""The life of a task: it runs for its latency, tells its progress, ends, and calls back as its fate says."""

import asyncio
from contextlib import suppress

from deploy.rehearsal import letters
from deploy.rehearsal.callbacks import Courier
from deploy.rehearsal.gallery import Gallery
from deploy.rehearsal.letters import Letter
from deploy.rehearsal.tasks import Desk, Task


class Lives:
    """Starts lives and stops them. What the process does not live to see is taken up where the journal ends."""

    def __init__(self, desk: Desk, gallery: Gallery, courier: Courier) -> None:
        self._desk, self._gallery, self._courier = desk, gallery, courier
        self._lives: set[asyncio.Task[None]] = set()

    def begin(self, task: Task) -> None:
        life = asyncio.create_task(self._live(task))
        self._lives.add(life)
        life.add_done_callback(self._lives.discard)

    def resume(self) -> None:
        """Begin again what the end of another process has cut off. What should be over meanwhile is over at once."""
        for task in self._desk.tasks.values():
            if not task.settled:
                self.begin(task)

    async def finish_all(self) -> int:
        """End every running task now, whatever its latency. Returns how many, once they have ended."""
        running = list(self._desk.running)
        for task in running:
            task.hurry.set()
        await asyncio.gather(*(task.over.wait() for task in running))
        return len(running)

    async def stop(self) -> None:
        lives = list(self._lives)
        for life in lives:
            life.cancel()
        await asyncio.gather(*lives, return_exceptions=True)

    async def _live(self, task: Task) -> None:
        try:
            if task.ended_at is None:
                async with asyncio.TaskGroup() as telling:
                    await self._run(task, telling)
            if _calls_back(task):
                await asyncio.sleep(self._desk.control.callback_delay_s)
                await self._call_back(task)
            self._desk.settle(task)
        finally:
            task.told.set()

    async def _run(self, task: Task, telling: asyncio.TaskGroup) -> None:
        progress = self._progress(task)
        left_s = max(0.0, task.accepted_at + task.latency_s - self._desk.now())
        step_s = left_s / (len(progress) + 1)
        for letter in progress:
            await _pause(task, step_s)
            if _calls_back(task) and "callback_reorder" not in task.fate:
                telling.create_task(self._send(task, letter))
        await _pause(task, step_s)
        self._desk.end(task)

    async def _call_back(self, task: Task) -> None:
        """Forgery, truth (once or twice), and the progress events that were kept back."""
        control, gallery = self._desk.control, self._gallery
        if "callback_forged" in task.fate:
            await self._send(task, letters.forged(task, control, gallery.decoy_url(task)))
        letter = letters.final(task, control, gallery.sample_url(task))
        copies = 2 if "callback_duplicate" in task.fate else 1
        await asyncio.gather(*(self._deliver(task, letter) for _ in range(copies)))
        if "callback_reorder" in task.fate:
            for late in self._progress(task):
                await self._send(task, late)

    def _progress(self, task: Task) -> list[Letter]:
        control = self._desk.control
        events = control.progress_events
        return [letters.progress(task, control, number / (events + 1)) for number in range(1, events + 1)]

    async def _deliver(self, task: Task, letter: Letter) -> None:
        for wait_s in (0.0, *self._courier.retry_after_s):
            await asyncio.sleep(wait_s)
            taken = await self._send(task, letter)
            task.told.set()
            if taken:
                return

    async def _send(self, task: Task, letter: Letter) -> bool:
        task.callbacks_sent += 1
        taken = await self._courier.post(task.asked.webhook_url or "", letter)
        task.callbacks_taken += taken
        return taken


def _calls_back(task: Task) -> bool:
    return task.asked.webhook_url is not None and "callback_loss" not in task.fate


async def _pause(task: Task, wait_s: float) -> None:
    """`wait_s`, for ever if the task is stuck, or until it is hurried."""
    with suppress(TimeoutError):
        async with asyncio.timeout(None if "stuck" in task.fate else wait_s):
            await task.hurry.wait()
