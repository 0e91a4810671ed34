"""A worker that dies with a bell in its hand, before it has a lease on the job: the sweep rings for that job again."""

import asyncio
import itertools
import statistics
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from deploy.local.keeper import Keeper
from deploy.local.leash import Leash
from deploy.local.program import Program, serves_a_queue
from deploy.local.stack import Stack
from tests.cutting_proxy import CuttingProxy
from tests.faults.reaper import Moment, Reaper
from tests.integration.chronicle import lines, violations
from tests.integration.house import House

pytestmark = [pytest.mark.anyio, pytest.mark.processes, pytest.mark.timeout(3600)]

WORKERS: Final = 3  # two die in a round
STRUCK_WITHIN_S: Final = 240.0
BACK_WITHIN_S: Final = 240.0
RUNG_AGAIN_S: Final = 4.0  # the sweep rings after 5: a kill that comes later may have met the other job
ROUNDS: Final = [*itertools.product(("submit", "collect"), Moment)]
REHEARSAL: Final = ["--latency-s", "0.5", "--latency-spread-s", "0", "--max-in-flight", "24"]


@dataclass(frozen=True, slots=True)
class Death:
    """A worker's, with a bell for `job_id`; `at` in ms of the wall clock, which is Redis's here."""

    job_id: str
    worker: int
    at: float
    queue: str
    moment: Moment


@asynccontextmanager
async def watched(folder: Path) -> AsyncIterator[tuple[House, list[Keeper], Reaper]]:
    """A running system whose workers each have a proxy of their own before Redis; each starts again by itself."""
    reaper, leash, keepers = Reaper(), Leash(), list[Keeper]()
    async with AsyncExitStack() as stack:
        built = Stack(folder, workers=0, rehearsal=REHEARSAL)
        await asyncio.to_thread(built.start)
        stack.push_async_callback(asyncio.to_thread, built.stop)
        house = House(built)
        stack.callback(house.close)
        stack.callback(leash.close)
        for number in range(WORKERS):
            proxy = await stack.enter_async_context(CuttingProxy("127.0.0.1", built.redis.port))
            url = built.redis.url.replace(f":{built.redis.port}/", f":{proxy.port}/")
            env, log = built.environment | {"REDIS_URL": url}, folder / f"watched-{number}.log"
            program = Program(["workers"], env, log, serves_a_queue(built.redis.url), leash.spawn)
            proxy.witness = reaper.witness(number, program)
            keepers.append(Keeper(log.stem, program, leash, print))
            stack.push_async_callback(asyncio.to_thread, keepers[-1].stop, 3)
            await asyncio.to_thread(keepers[-1].start)
        stack.callback(leash.shut)
        yield house, keepers, reaper


@pytest.mark.soak
@pytest.mark.parametrize("kills", [100])
async def test_a_worker_killed_between_bell_and_lease_leaves_no_job_behind(tmp_path: Path, kills: int) -> None:
    """F03: at each of three moments, with bells of either kind in turn; at least one other worker lives on."""
    deaths, ids, turns = list[Death](), list[str](), itertools.cycle(ROUNDS)
    async with watched(tmp_path) as (house, keepers, reaper):
        while len(deaths) < kills:
            pids = [keeper.pid for keeper in keepers]
            pair = [await killed(house, reaper, f"pair {len(ids) + n}", *next(turns)) for n in range(2)]
            ids += [death.job_id for death in pair]
            if pair[1].at - pair[0].at < RUNG_AGAIN_S * 1000:
                deaths += pair
            await asyncio.to_thread(house.await_ended, ids[-2:], 120)
            for death in pair:
                await asyncio.to_thread(keepers[death.worker].await_next, pids[death.worker], BACK_WITHIN_S)
        jobs = await asyncio.to_thread(house.await_ended, ids)
        await asyncio.to_thread(house.audit, jobs)
        told = lines(house)
        tell(deaths, [waited_s(death, told) for death in deaths])
        assert set(house.purchases(jobs).values()) == {1}
        assert {job["attempts"] for job in jobs} == {1}
        assert violations(house, jobs, unknown_wait_s=180) == []
        assert house.fsck() == {}


async def killed(house: House, reaper: Reaper, prompt: str, queue: str, moment: Moment) -> Death:
    struck = reaper.arm(queue, moment)
    job_id = await asyncio.to_thread(house.insist, prompt)
    worker, at_s = await asyncio.wait_for(struck, STRUCK_WITHIN_S)
    return Death(job_id, worker, at_s * 1000, queue, moment)


def waited_s(death: Death, told: list[dict[str, str]]) -> float:
    """Seconds from the kill to the job's next step on record."""
    later = [int(line["at"]) for line in told if line["id"] == death.job_id and int(line["at"]) > death.at]
    return (min(later) - death.at) / 1000


def tell(deaths: list[Death], took_s: list[float]) -> None:
    print(f"{len(deaths)} kills between bell and lease: all ended, one purchase each")
    told = sorted(took_s)
    p99 = statistics.quantiles(told, n=100)[98]
    print(
        f"from the kill to the next step (s): median {statistics.median(told):.1f}, p99 {p99:.1f}, most {told[-1]:.1f}"
    )
    for queue, moment in ROUNDS:
        own = [t for death, t in zip(deaths, took_s, strict=True) if (death.queue, death.moment) == (queue, moment)]
        print(f"  {queue}, {moment.name.lower()}: {len(own)} kills, median {statistics.median(own):.1f}")
