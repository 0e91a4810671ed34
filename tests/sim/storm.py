"""One seed, one history: everything that can go wrong does, in the order that the seed's dice say, and then it ends."""

import asyncio
import base64
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from service.storage.terms import Limits
from tests.sim.loop import run
from tests.sim.provider import Manners
from tests.sim.staff import Terms
from tests.sim.town import Sim
from tests.sim.world import entropy

JOBS: Final = 20  # of these, BATCHES times LINES come in batches
BATCHES: Final = 2
LINES: Final = 3
HEALED_WITHIN_S: Final = 7200.0  # a notification that was refused six times is tried again after an hour
IMAGE: Final = base64.b64encode(b"\x89PNG\r\n\x1a\n an input").decode()
HOOK: Final = "https://caller.example/hook"
MODELS: Final = ("flux-dev", "flux-dev", "flux-pro-1.1", "flux-kontext-max")
CALLERS: Final = ("alice", "bob")
PARTS: Final = ("store", "bell", "bucket", "flux", "pull")
# Before which a process stops.
MOMENTS: Final = ("", "flux.submit", "bucket.put_file", "bucket.put_stream", "store.apply", "store.enroll", "pull")


@dataclass(frozen=True, slots=True)
class Tale:
    """How a run went: for people, and to compare two runs of one seed."""

    seed: int
    ends: tuple[str, ...]
    purchases: int
    deaths: int
    effects: int
    took_s: float


class Storm:
    """`seed` decides all. `tell` hears what happens, for who wants to read along; `sabotage` takes something out."""

    def __init__(
        self,
        seed: int,
        *,
        tell: Callable[[str], None] = lambda _: None,
        sabotage: Callable[[Sim], None] = lambda _: None,
    ) -> None:
        self.seed = seed
        self.tell = tell
        self.sabotage = sabotage
        self.dice = random.Random(seed)
        self.lasts_s = self.dice.choices([20.0, 60.0, 200.0, 900.0], [8, 8, 3, 0.5])[0]
        self.sim: Any = None

    def run(self) -> Tale:
        """AssertionError: a promise was broken."""
        with entropy(random.Random(self.seed)):
            return run(self._main)

    async def _main(self) -> Tale:
        dice = self.dice
        sim = self.sim = Sim(
            dice,
            self._manners(),
            self._terms(),
            workers=dice.choice([1, 2, 2, 3]),
            skews_ms=dice.choice([(0,), (-300_000, 0, 300_000), (-3_600_000, 3_600_000)]),
        )
        self.sabotage(sim)
        self._brew()
        callers = [sim.world.outside(self._call(number)) for number in range(JOBS - BATCHES * LINES)]
        callers += [sim.world.outside(self._send(number)) for number in range(BATCHES)]
        trouble = sim.world.outside(self._trouble())
        await asyncio.sleep(self.lasts_s)
        await trouble
        self._clear()
        await asyncio.gather(*callers)
        await sim.until(sim.quiet, HEALED_WITHIN_S)
        faults = self.faults()
        assert not faults, faults
        ends = tuple(str(sim.job(job_id).status) for job_id in sim.world.memory.jobs)
        world = sim.world
        return Tale(self.seed, ends, len(sim.provider.ledger), len(world.crashed), world.effects, world.now_s())

    def faults(self) -> list[str]:
        """What the run broke, once it is quiet."""
        found: list[str] = self.sim.faults()
        return found

    def _terms(self) -> Terms:
        dice = self.dice
        limits = Limits(max_in_flight=dice.choice([0, 2, 8, 24]), caps={"flux-kontext-max": 2})
        return Terms(
            unknown_outcome="fail" if dice.random() < 0.2 else "resubmit",
            callbacks=dice.random() < 0.8,
            sweep_s=dice.choice([5.0, 15.0, 30.0]),
            limits=limits,
        )

    def _manners(self) -> Manners:
        """Each vice is there or not, so that some runs are about one alone."""
        dice = self.dice
        names = [name for name, value in vars(Manners()).items() if value == 0.0 and isinstance(value, float)]
        vices: dict[str, Any] = {name: dice.choice([0.05, 0.2, 0.5]) for name in names if dice.random() < 0.3}
        vices["held"] = min(vices.get("held", 0.0), 0.05)
        vices["redrawn"] = 0.5
        return Manners(
            **vices, takes_s=dice.choice([(0.0, 0.05), (2.0, 12.0), (5.0, 60.0)]), cap=dice.choice([0, 0, 3])
        )

    def _brew(self) -> None:
        dice, weather = self.dice, self.sim.world.weather
        weather.slow = dice.choice([0.0, 0.02, 0.2])
        weather.lost_calls = dice.choice([0.0, 0.0, 0.02, 0.1])
        weather.lost_answers = dice.choice([0.0, 0.0, 0.02, 0.1])
        weather.hangs = dice.choice([0.0, 0.3])
        town = self.sim.town
        town.receiver.refuses = (0.0, 0.3, 1.0)[self.seed % 3]
        town.bells_lost, town.bells_doubled, town.bells_late = (dice.choice([0.0, 0.1, 0.5]) for _ in range(3))

    def _clear(self) -> None:
        """From here on nothing goes wrong any more, but what has begun goes on."""
        sim = self.sim
        sim.world.weather.clear()
        sim.town.bells_lost = sim.town.bells_doubled = sim.town.bells_late = 0.0
        sim.town.receiver.refuses = 0.0
        sim.provider.manners = Manners(takes_s=(2.0, 6.0), cap=sim.provider.manners.cap)
        for worker in sim.workers.values():
            worker.doom = worker.faint = None
            worker.go()
        self.tell(f"{sim.world.now_s():7.1f} all is well again")

    # ---- what people do -----------------------------------------------------------------------------------------

    async def _call(self, number: int) -> None:
        sim, dice = self.sim, random.Random(self.seed * 1000 + number)
        await asyncio.sleep(dice.uniform(0, self.lasts_s / 2))
        caller = dice.choice(CALLERS)
        more: dict[str, Any] = {"priority": dice.choice(["high", "normal", "normal", "low"])}
        if dice.random() < 0.2:
            more["deadline_s"] = dice.choice([5, 30, 200])
        if number % 3 == 0:
            more["callback_url"] = HOOK
        job_id = await sim.order(f"picture {number}", caller=caller, model=dice.choice(MODELS), **more)
        if dice.random() < 0.1:
            await sim.order(f"picture {number}", caller=caller, **more)
        if job_id is None or dice.random() < 0.6:
            return
        await asyncio.sleep(dice.uniform(0, 60))
        act = dice.choice([self._cancel, self._retry, self._delete])
        await act(job_id, caller, dice)

    async def _cancel(self, job_id: str, caller: str, dice: random.Random) -> None:
        await self.sim.cancel(job_id, caller=caller)
        if dice.random() < 0.5:
            await self.sim.retry(job_id, caller=caller, rerun=dice.random() < 0.5)

    async def _retry(self, job_id: str, caller: str, dice: random.Random) -> None:
        again = await self.sim.retry(job_id, caller=caller, rerun=dice.random() < 0.5)
        if again and dice.random() < 0.3:
            await self._retry(again, caller, dice)

    async def _delete(self, job_id: str, caller: str, dice: random.Random) -> None:
        for _ in range(30):
            if await self.sim.delete(job_id, caller=caller) != 409:
                return
            await asyncio.sleep(dice.uniform(1, 30))

    async def _send(self, number: int) -> None:
        """A batch, sometimes twice; then somebody changes his mind about it, or about one of its jobs."""
        sim, dice = self.sim, random.Random(self.seed * 1000 + JOBS + number)
        await asyncio.sleep(dice.uniform(0, self.lasts_s / 2))
        caller = dice.choice(CALLERS)
        prompts = [f"batch {number}, line {line}" for line in range(LINES)]
        more = {"image_prompt": IMAGE} if dice.random() < 0.2 else {"model": dice.choice(MODELS)}
        more |= {"callback_url": HOOK} if number % 2 else {}
        batch_id = await sim.upload(f"batch {number}", *prompts, caller=caller, **more)
        if dice.random() < 0.2:
            await sim.upload(f"batch {number}", *prompts, caller=caller, **more)
        await asyncio.sleep(dice.uniform(0, 60))
        act = dice.choice([None, self._cancel_batch, self._retry_batch, self._meddle])
        if act:
            await act(batch_id, caller, dice)

    async def _cancel_batch(self, batch_id: str, caller: str, dice: random.Random) -> None:
        await self.sim.cancel_batch(batch_id, caller=caller)
        if dice.random() < 0.5:
            await self._retry_batch(batch_id, caller, dice)

    async def _retry_batch(self, batch_id: str, caller: str, dice: random.Random) -> None:
        for _ in range(30):
            again, refusal = await self.sim.retry_batch(batch_id, caller=caller)
            if again and dice.random() < 0.3:
                await self._cancel_batch(again, caller, dice)
            if refusal != "not_ended":
                return
            await asyncio.sleep(dice.uniform(1, 30))

    async def _meddle(self, batch_id: str, caller: str, dice: random.Random) -> None:
        for job_id in self.sim.members(batch_id):
            act = dice.choice([self._cancel, self._retry, self._delete])
            await act(job_id, caller, dice)

    # ---- what happens to machines -------------------------------------------------------------------------------

    async def _trouble(self) -> None:
        world, dice = self.sim.world, self.dice
        gap_s = dice.choice([2.0, 10.0, 60.0])
        while world.now_s() < self.lasts_s:
            await asyncio.sleep(dice.expovariate(1 / gap_s))
            dice.choice([self._kill, self._kill, self._pause, self._part, self._jump])()

    def _kill(self) -> None:
        """At its next effect, before or after it."""
        process = self._somebody()
        process.doom = self.dice.choice(["before", "after"])
        self.tell(f"{self.sim.world.now_s():7.1f} {process.name} dies {process.doom} its next effect")

    def _pause(self) -> None:
        process, for_s = self._somebody(), self.dice.choice([5.0, 40.0, 100.0])
        process.faint = self.dice.choice(MOMENTS), for_s
        self.tell(f"{self.sim.world.now_s():7.1f} {process.name} stops before {process.faint[0]} for {for_s:.0f} s")

    def _part(self) -> None:
        """One part of the world answers nobody for a while."""
        part = self.dice.choice(PARTS)
        for_s = self.dice.choice([2.0, 15.0, 60.0] if part == "store" else [2.0, 30.0, 120.0, 720.0])
        now_s = self.sim.world.now_s()
        self.sim.world.weather.away[part] = min(now_s + for_s, self.lasts_s)
        self.tell(f"{now_s:7.1f} {part} is away for {for_s:.0f} s")

    def _jump(self) -> None:
        """A process's wall clock is set."""
        self._somebody().clock.skew_ms += self.dice.choice([-3_600_000, 3_600_000])

    def _somebody(self) -> Any:
        return self.dice.choice([self.sim.front, *self.sim.workers.values()])
