"""The one seam: whatever a process of ours does to the world outside it goes through `Process.effect`.

There it is counted, may be late, may be cut off before or after it happened, and may be the last thing that its process
does. A process that dies takes all its tasks with it, and nothing that they still try has any effect.
"""

import asyncio
import random
import secrets
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Protocol, TypeVar

from service.storage.bell import QUEUES
from tests.sim.memory import Memory

T = TypeVar("T")
When = Literal["before", "after"]

EPOCH_MS: Final = 1_800_000_000_000
CALM_S: Final = 0.001
TASKS_KEPT: Final = 100
DEADLINES_S: Final = {"store": 5.0, "bell": 5.0, "bucket": 60.0, "flux": 30.0, "pull": 60.0, "post": 15.0}


class Cut(Exception):
    """No answer came back. `happened`: the thing was done all the same; who made the call cannot know."""

    def __init__(self, happened: bool) -> None:
        super().__init__()
        self.happened = happened


@dataclass
class Weather:
    """How calls fare, by the part that they go to: `store`, `bell`, `bucket`, `flux`, `pull`. Chances are 0 to 1."""

    dice: random.Random
    lost_calls: float = 0.0  # never arrive
    lost_answers: float = 0.0
    hangs: float = 0.0  # of calls that are cut, how many take their whole deadline
    slow: float = 0.0
    away: dict[str, float] = field(default_factory=dict)  # part -> until when it answers nobody, loop seconds

    def clear(self) -> None:
        self.lost_calls = self.lost_answers = self.hangs = self.slow = 0.0
        self.away.clear()

    def latency_s(self) -> float:
        if self.slow == 0:
            return CALM_S
        return self.dice.uniform(0.1, 4.0) if self.dice.random() < self.slow else self.dice.random() * 0.02

    @property
    def foul(self) -> bool:
        return bool(self.away or self.lost_calls or self.lost_answers)

    def cut(self, part: str, now_s: float) -> When | None:
        if self.away and self.away.get(part, 0.0) > now_s:
            return "before"
        if not (self.lost_calls or self.lost_answers):
            return None
        roll = self.dice.random()
        if roll < self.lost_calls:
            return "before"
        return "after" if roll < self.lost_calls + self.lost_answers else None

    def cut_after_s(self, part: str) -> float:
        return DEADLINES_S[part] if self.hangs and self.dice.random() < self.hangs else 0.0


@dataclass(frozen=True, slots=True)
class Crash:
    """Whoever makes effect number `at`, counted over all processes from 1, dies then."""

    at: int
    when: When


class Blade(Protocol):
    """Ends a step half-way, while its process lives on (tests/sim/blade.py)."""

    async def lay(self, process: "Process", step: Coroutine[Any, Any, None]) -> None:
        """Do the step, or what of it is done before it ends."""

    async def felt(self, world: "World") -> None:
        """Somebody's effect has just happened."""


class World:
    """Time, Redis's memory, the queues of bells, and what has been done by whom."""

    def __init__(self, dice: random.Random, *, crashes: tuple[Crash, ...] = (), redis_skew_ms: int = 0) -> None:
        self.loop = asyncio.get_running_loop()
        self.loop.set_task_factory(_adopting)
        self.dice = dice
        self.weather = Weather(dice)
        self.memory = Memory(lambda: self.ms() + redis_skew_ms)
        self.bells: dict[str, Bells] = {queue: Bells() for queue in QUEUES}
        self.effects = 0
        self.tally: Counter[str] = Counter()
        self.answers: list[dict[str, Any]] = []  # what callers and the provider were answered
        self.bugs: list[str] = []
        self.crashed: list[str] = []
        self.on_crash: Callable[[Process], None] = lambda _: None
        self.doomed = deque(crashes)
        self.blade: Blade | None = None

    def now_s(self) -> float:
        return self.loop.time()

    def ms(self) -> int:
        return EPOCH_MS + round(self.loop.time() * 1000)

    def pause(self, for_s: float) -> asyncio.Future[None]:
        """What `asyncio.sleep` does, for the many times that an effect takes its time."""
        woken: asyncio.Future[None] = asyncio.Future(loop=self.loop)
        self.loop.call_later(for_s, _wake, woken)
        return woken

    def strikes(self, when: When) -> bool:
        """Whether this effect is the next that somebody shall die of."""
        if not self.doomed or self.doomed[0] != Crash(self.effects, when):
            return False
        self.doomed.popleft()
        return True

    def silence(self) -> None:
        """All bells are lost."""
        for queue in self.bells.values():
            while not queue.ids.empty():
                queue.ids.get_nowait()

    def outside(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """A task of the world's own: no process's death ends it."""
        return spawn(None, work)


def _wake(sleeper: asyncio.Future[None]) -> None:
    if not sleeper.done():
        sleeper.set_result(None)


class Bells:
    """A queue of bells: RQ's list."""

    def __init__(self) -> None:
        self.ids: asyncio.Queue[str] = asyncio.Queue()

    def put(self, id_: str) -> None:
        self.ids.put_nowait(id_)


@dataclass
class Skewed:
    """A process's clock: its wall may be wrong, its monotonic one began anywhere."""

    world: World
    skew_ms: int = 0

    def now_ms(self) -> int:
        return self.world.ms() + self.skew_ms

    def monotonic_s(self) -> float:
        return self.world.now_s() + 1000.0


class Process:
    """What lives and dies together. `effect` is the only way out of it."""

    def __init__(self, world: World, name: str, *, skew_ms: int = 0) -> None:
        self.world = world
        self.name = name
        self.clock = Skewed(world, skew_ms)
        self.alive = True
        self.doom: When | None = None  # dies of its next effect
        self.faint: tuple[str, float] | None = None  # stops before its next effect of that name, for so many seconds
        self.tasks: list[asyncio.Task[Any]] = []  # in the order of their birth
        self.asleep = False
        self._awake = asyncio.Event()

    def start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        return spawn(self, work)

    def adopt(self, task: asyncio.Task[Any]) -> None:
        self.tasks.append(task)
        if len(self.tasks) >= TASKS_KEPT:  # those that are done mind no death
            self.tasks = [task for task in self.tasks if not task.done()]

    async def effect(self, name: str, act: Callable[[], T]) -> T:
        """What `act()` answers. Raises Cut."""
        world, part = self.world, name.partition(".")[0]
        await world.pause(world.weather.latency_s())
        if self.faint and name.startswith(self.faint[0]):
            self.stop(self.faint[1])
        if self.asleep:
            await self._awake.wait()
        if not self.alive:
            raise asyncio.CancelledError
        world.effects += 1
        world.tally[name] += 1
        if self.doom == "before" or world.strikes("before"):
            self._die(name)
        cut = world.weather.cut(part, world.now_s()) if world.weather.foul else None
        if cut == "before":
            await asyncio.sleep(world.weather.cut_after_s(part))
            raise Cut(happened=False)
        result = act()
        if self.doom == "after" or world.strikes("after"):
            self._die(name)
        if world.blade is not None:
            await world.blade.felt(world)
        if cut == "after":
            await asyncio.sleep(world.weather.cut_after_s(part))
            raise Cut(happened=True)
        return result

    def _die(self, name: str) -> None:
        self.world.crashed.append(f"{self.name} at {name}")
        self.kill()
        raise asyncio.CancelledError

    def kill(self) -> None:
        """Kill -9."""
        self.alive = False
        self.go()
        for task in self.tasks:
            task.cancel()
        self.world.on_crash(self)

    def stop(self, for_s: float) -> None:
        """SIGSTOP: timers run out meanwhile, and nothing is done until `go`."""
        self.faint = None
        self.asleep = True
        self._awake.clear()
        self.world.loop.call_later(for_s, self.go)

    def go(self) -> None:
        self.asleep = False
        self._awake.set()


_OWNER: ContextVar[Process | None] = ContextVar("owner", default=None)


def owner() -> Process | None:
    """Whose task is running."""
    return _OWNER.get()


def spawn(owner: Process | None, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    context = copy_context()
    context.run(_OWNER.set, owner)
    return asyncio.get_running_loop().create_task(work, context=context)


def _adopting(loop: asyncio.AbstractEventLoop, work: Any, context: Any = None) -> Any:
    """Tasks that a process's tasks start are that process's, too."""
    task = asyncio.Task(work, loop=loop, context=context)
    owner = (context or copy_context()).get(_OWNER)
    if owner is not None:
        owner.adopt(task)
        if not owner.alive:
            task.cancel()
    return task


@contextmanager
def entropy(dice: random.Random) -> Iterator[None]:
    """Ids are drawn from the seed, too: sorted sets order equal scores by id."""
    drawn, secrets.token_bytes = secrets.token_bytes, lambda nbytes=None: dice.randbytes(nbytes or 32)
    try:
        yield
    finally:
        secrets.token_bytes = drawn
