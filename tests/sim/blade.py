"""What ends a step in the middle while its process lives on: all that RQ can do to it, and a worker that stops.

Our worker cuts a step off where it waits (`Cut`). A stock worker's alarm raises in the middle of any line (`Alarm`).
Either counts over all steps of a run, strikes once, and takes all bells away: the sweep alone must go on.
"""

import asyncio
import sys
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context, ContextVar
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType, coroutine
from typing import Any, Final, Literal

from rq.timeouts import JobTimeoutException

from tests.sim.world import Process, World, owner

OURS: Final = tuple(str(Path(__file__).parents[2] / room) for room in ("service", "workers"))
NEVER_S: Final = 3600.0
Step = tuple[Process | None, "asyncio.Task[None] | None"]
_STEP: ContextVar[Step] = ContextVar("step", default=(None, None))


def running() -> "asyncio.Task[None] | None":
    """The step that the running code belongs to, also as a task that it started; what others do upon it is not its."""
    process, task = _STEP.get()
    return task if process is not None and process is owner() else None


async def through(task: "asyncio.Task[None]") -> None:
    """Wait for its end; what it raised is raised, but for its being cut off."""
    await asyncio.wait({task})
    if not task.cancelled():
        task.result()


def is_elsewhere(frame: FrameType | None) -> bool:
    """Code of ours that the other side of an effect runs: what Redis's script does in earnest."""
    while frame is not None and frame.f_code is not Process.effect.__code__:
        frame = frame.f_back
    return frame is not None


@dataclass
class Cut:
    """Cancels a step at its await number `at`, or when its effect of that number has happened, before it hears so."""

    at: int
    where: Literal["await", "effect"]
    reached: int = 0

    async def lay(self, process: Process, step: Coroutine[Any, Any, None]) -> None:
        await through(process.start(self._counted(process, step)))

    async def felt(self, world: World) -> None:
        task = running()
        if task and self.where == "effect" and self._comes():
            world.silence()
            task.cancel()
            await asyncio.sleep(NEVER_S)

    @coroutine
    def _counted(self, process: Process, step: Coroutine[Any, Any, None]) -> Generator[Any, Any, None]:
        """The step, whose every await passes here on its way to the loop."""
        task: asyncio.Task[None] | None = asyncio.current_task()
        assert task
        _STEP.set((process, task))
        go_on: Callable[[], Any] = partial(step.send, None)
        while True:
            try:
                future = go_on()
            except StopIteration:
                return
            if self.where == "await" and self._comes():
                process.world.silence()
                task.cancel()
            try:
                yield future
            except BaseException as error:  # noqa: BLE001 whatever it is, it is the step's
                go_on = partial(step.throw, error)
            else:
                go_on = partial(step.send, None)

    def _comes(self) -> bool:
        self.reached += 1
        return self.reached == self.at


@dataclass
class Alarm:
    """Raises what RQ's alarm does, at line number `at` of ours that is run for a step."""

    at: int
    reached: int = 0
    place: str = ""
    went_off: bool = False
    children: list[tuple[Any, "asyncio.Task[Any]"]] = field(default_factory=list)  # a step, what it started beside it
    watches: bool = False

    async def lay(self, process: Process, step: Coroutine[Any, Any, None]) -> None:
        await through(process.start(self._heard(process, step)))

    async def felt(self, world: World) -> None:
        """Nothing: an alarm asks for no effect."""

    async def _heard(self, process: Process, step: Coroutine[Any, Any, None]) -> None:
        _STEP.set((process, asyncio.current_task()))
        if not self.watches:
            self._watch(process.world.loop)
        try:
            await step
        except JobTimeoutException:
            process.world.silence()
            for parent, child in self.children:  # a stock worker's step has a loop of its own, and that ends
                if parent is running():
                    child.cancel()

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        factory: Any = loop.get_task_factory()

        def make(loop: asyncio.AbstractEventLoop, work: Any, context: Context | None = None) -> Any:
            child = factory(loop, work, context=context)
            if context is None and running():
                self.children.append((running(), child))
            return child

        loop.set_task_factory(make)
        sys.settrace(self._enters)
        self.watches = True

    def _enters(self, frame: FrameType, _event: str, _arg: object) -> Any:
        ours = frame.f_code.co_filename.startswith(OURS) and running() and not is_elsewhere(frame)
        return self._passes if ours else None

    def _passes(self, frame: FrameType, event: str, _arg: object) -> Any:
        if event == "line" and not self.went_off:
            self.reached += 1
            if self.reached == self.at:
                self.went_off = True
                self.place = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
                raise JobTimeoutException(self.place)
        return self._passes
