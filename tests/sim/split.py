"""A storm in whose midst Redis fails over to a replica that was behind: the newest writes are gone, or both serve.

What is promised then (without `REDIS_REPLICAS_TO_WAIT` no more can be) is what `faults` demands: each history alone
keeps its promises, whatever was bought has its intent on record in one of them, what the bucket tells stays as it is,
and an end that comes out otherwise on the new primary is said.
"""

import asyncio
import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final

from service.domain import layout
from service.domain.view import view
from tests.sim import history
from tests.sim.bucket import Thing, digest
from tests.sim.memory import Memory, MemoryStore
from tests.sim.provider import Manners
from tests.sim.storm import Storm
from tests.sim.town import Sim, plain

SHARED: Final = frozenset({"now_ms", "watch", "parsed", "now", "cfg"})


def copied(memory: Memory) -> Memory:
    """A replica at this moment."""
    replica = Memory(memory.now_ms, parsed=memory.parsed)
    for each in fields(memory):
        if each.name not in SHARED:
            setattr(replica, each.name, deepcopy(getattr(memory, each.name)))
    return replica


@dataclass
class Taken:
    """How the takeover found things, for the judgement at the end."""

    old: Memory
    events: int  # of the history that both have
    things: Mapping[str, Thing]
    unwanted: set[str]  # whose deletion was asked for: one of the two primaries may have heard of it
    counts: Counter[str] = field(default_factory=Counter)


class Split(Storm):
    """`both`: some processes find the new primary at once, the others when the old one is gone; else all do then."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.taken: Taken | None = None
        self.unwanted: set[str] = set()
        self.chance = random.Random(seed * 31 + 7)
        self.both = self.chance.random() < 0.5

    def _manners(self) -> Manners:
        """Who owns which task is among what is forgotten: nobody here names another job's task."""
        return replace(super()._manners(), same_id=0.0, forged=0.0)

    async def _trouble(self) -> None:
        split = self.sim.world.outside(self._split())
        await super()._trouble()
        await split

    async def _delete(self, job_id: str, caller: str, dice: random.Random) -> None:
        self.unwanted.add(job_id)
        await super()._delete(job_id, caller, dice)

    async def _split(self) -> None:
        sim: Sim = self.sim
        world, chance = sim.world, self.chance
        await asyncio.sleep(chance.uniform(0, self.lasts_s * 0.8))
        old, new = world.memory, self.replica()
        shared = len(old.events)
        new.watch = ends_stay(new, world.bugs)
        early = [name for name in sim.town.stores if self.both and chance.random() < 0.5]
        sim.move(new, early)
        self.tell(f"{world.now_s():7.1f} the replica is cut off; {early or 'nobody'} takes it for the primary")
        await asyncio.sleep(chance.uniform(0, self.lasts_s - world.now_s()))
        self.taken = Taken(old, shared, dict(sim.shelf.things), self.unwanted)
        sim.move(new, list(sim.town.stores))
        world.memory, sim.store = new, MemoryStore(new, sim.town.terms.limits)
        self.tell(f"{world.now_s():7.1f} the old primary is gone")

    def replica(self) -> Memory:
        return copied(self.sim.world.memory)

    def faults(self) -> list[str]:
        assert self.taken
        return list(faults(self.sim, self.taken))


def ends_stay(memory: Memory, bugs: list[str]) -> Any:
    """Within one history an end never changes."""
    ended = {job_id: row["status"] for job_id, row in memory.jobs.items() if row["status"] in history.ENDED}

    def watch(job_id: str) -> None:
        status = memory.jobs[job_id]["status"]
        if ended.setdefault(job_id, status) != status if status in history.ENDED else job_id in ended:
            bugs.append(f"{job_id}: was {ended[job_id]}, is {status}")

    return watch


def faults(sim: Sim, taken: Taken) -> Iterable[str]:
    old, new = taken.old, sim.world.memory
    yield from sim.world.bugs
    yield from each_history(sim, taken)
    yield from purchases(sim, taken)
    yield from images(sim, taken)
    yield from bucket_stays(sim, taken)
    yield from flips(sim, taken)
    yield from (f"answered {each}" for each in sim.world.answers if each["status"] >= 500 and each["status"] != 503)
    for job_id in old.jobs.keys() - new.jobs.keys() - taken.unwanted:
        taken.counts["unheard of"] += 1
        if old.jobs[job_id]["sidecar"] == "1" and layout.sidecar_key(job_id) not in sim.shelf.things:
            yield f"{job_id}: ended and forgotten, and nothing in the bucket tells of it"
    for name in ("slots", "ripe", "due", *(name for name in new.zsets if name.startswith(("slots:", "wait:")))):
        yield from (f"{member} is left in {name}" for member in new.zsets[name])


def stories(lines: Iterable[Any], batches: Mapping[str, Any]) -> dict[str, list[Mapping[str, str]]]:
    found: defaultdict[str, list[Mapping[str, str]]] = defaultdict(list)
    for entry in lines:
        if entry.data["id"] not in batches:
            found[entry.data["id"]].append(entry.data)
    return found


def each_history(sim: Sim, taken: Taken) -> Iterable[str]:
    wait_ms = round(sim.town.terms.unknown_wait_s * 1000)
    for memory in (taken.old, sim.world.memory):
        for job_id, story in stories(memory.events, memory.batches).items():
            yield from (f"{job_id}: {fault}" for fault in history.story_faults(story))
            yield from (f"{job_id}: {fault}" for fault in history.haste(story, wait_ms))


def purchases(sim: Sim, taken: Taken) -> Iterable[str]:
    """Each has its intent on record in one of the two histories, and those of the new one are as ever."""
    lost, kept = Counter(intents(taken.old.events[taken.events :])), Counter(intents(sim.world.memory.events))
    for job_id, count in Counter(row["job_id"] for row in sim.provider.ledger).items():
        if count > lost[job_id] + kept[job_id]:
            yield f"{job_id}: bought {count} times, intended {lost[job_id]} and {kept[job_id]} times"
        own = count - min(count, lost[job_id])
        flagged = job_id not in sim.world.memory.jobs or sim.job(job_id).possible_duplicate
        if own > history.PURCHASES_MOST or (own > 1 and not flagged):
            yield f"{job_id}: P4 bought {own} times for the new primary, possible_duplicate={flagged}"
        taken.counts["bought twice, once for each primary"] += count > own > 0


def intents(lines: Iterable[Any]) -> Iterable[str]:
    return (entry.data["id"] for entry in lines if entry.data["reason"] == "intended")


def images(sim: Sim, taken: Taken) -> Iterable[str]:
    shown = {job_id: view(sim.job(job_id)) for job_id in sim.world.memory.jobs}
    things = {key: plain(key, thing.data, thing.metadata) for key, thing in sim.shelf.things.items()}
    since = {key: thing for key, thing in things.items() if key not in taken.things}
    for job_id, job in shown.items():
        if job_id in taken.unwanted:  # it was on record once more, without its image: `fsck` tells
            continue
        # What the lost history had put for a job that ends without success in the new one, `fsck` tells as well.
        there = things if job["status"] == "succeeded" else since
        own = history.images_of(there)[job_id]
        yield from (f"{job_id}: {it}" for it in history.image_faults(job, shown, sim.provider.ledger, there, own))


def told(things: Mapping[str, Thing], job_id: str) -> str | None:
    """The end that the bucket tells of the job."""
    thing = things.get(layout.sidecar_key(job_id))
    return json.loads(thing.data)["status"] if thing else None


def bucket_stays(sim: Sim, taken: Taken) -> Iterable[str]:
    """What told of ended jobs when the old primary went tells the same at the end, with the same images."""
    for key, thing in taken.things.items():
        job_id = next((name for name in (*taken.old.jobs, *sim.world.memory.jobs) if name in key), None)
        if job_id is None or job_id in taken.unwanted:
            continue
        told_before = told(taken.things, job_id)
        if key.startswith("jobs/") or (key.startswith("images/") and told_before == "succeeded"):
            there = sim.shelf.things.get(key)
            if there is None or digest(there.data) != digest(thing.data):
                yield f"{key} told of {job_id} ({told_before}), and is {'gone' if there is None else 'another'}"


def flips(sim: Sim, taken: Taken) -> Iterable[str]:
    """Who was told of an end by the bucket (and callers are notified after it alone) is not told another in silence."""
    for job_id in sim.world.memory.jobs.keys() & taken.old.jobs.keys():
        was, now = taken.old.jobs[job_id]["status"], str(sim.job(job_id).status)
        if was in history.ENDED and was != now:
            witness = told(taken.things, job_id)
            taken.counts["ended otherwise" if witness else "ended otherwise, before the bucket had told"] += 1
            said = [entry.data for entry in sim.world.memory.logs[job_id] if "the bucket tells" in str(entry.data)]
            if witness not in (None, now) and not said:
                yield f"{job_id}: was {was}, is {now}, and nothing says so"
