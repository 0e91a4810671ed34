"""Redis hangs, dies, is full, or loses its replica under a running service: no false 202, and what was taken ends."""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

import psutil
import pytest

from deploy.local.stack import Stack
from deploy.local.valkey import Valkey
from service.api.app import REDIS_CONNECTIONS
from service.storage.connection import AsyncRedis, connect
from tests.cutting_proxy import CuttingProxy
from tests.faults.http_process import HttpProcess, bearer, serving_process
from tests.faults.wire import Answer, Wire, request
from tests.integration.house import House

pytestmark = [pytest.mark.anyio, pytest.mark.processes, pytest.mark.timeout(180)]

CALLERS: Final = 100  # more than the pool has connections
TOLD_WITHIN_S: Final = 5.0  # 1.1 on an idle machine; without deadlines it would be as long as the outage
BACK_WITHIN_S: Final = 5.0
OUTAGE_S: Final = 20.0
READERS: Final = 2  # connections beside the pool: the events reader's and RQ's greeting
ACKED_WITHIN_MS: Final = 15_000
JOBS: Final = 30
# Each cut is six orders that wait half a second for the replica: 50 are 150 s at the least.
CUTS: Final = [3, pytest.param(50, marks=[pytest.mark.soak, pytest.mark.timeout(900)])]


@dataclass(frozen=True, slots=True)
class Told:
    """Answers, and how long each took."""

    answers: list[Answer]
    took_s: list[float]

    @property
    def worst_s(self) -> float:
        return max(self.took_s)


@contextmanager
def fragile(folder: Path) -> Iterator[tuple[HttpProcess, Valkey]]:
    """A service and a Redis that the test may hurt."""
    valkey = Valkey(folder / "valkey")
    valkey.start()
    try:
        with serving_process(folder, valkey.url) as http:
            yield http, valkey
    finally:
        valkey.stop()


async def test_while_redis_hangs_everybody_is_told_in_time(tmp_path: Path) -> None:
    with fragile(tmp_path) as (http, valkey):
        await asked(http, CALLERS)
        process = psutil.Process(valkey.pid)
        process.suspend()
        try:
            first, links = await links_while(http, valkey, asyncio.create_task(asked(http, CALLERS)))
            second = await asked(http, CALLERS)
        finally:
            process.resume()
        back_s = await taken_again(http)
    worst_s = max(first.worst_s, second.worst_s)
    print(f"SIGSTOP: {2 * CALLERS} callers, worst {worst_s:.2f} s; {links} connections to Redis")
    print(f"first 202 {back_s:.2f} s after SIGCONT")
    refused(first)
    refused(second)
    assert links <= REDIS_CONNECTIONS + READERS
    assert back_s < BACK_WITHIN_S


async def test_while_redis_is_dead_everybody_is_told_in_time(tmp_path: Path) -> None:
    with fragile(tmp_path) as (http, valkey):
        accepted = [job_in(answer) for answer in (await asked(http, CALLERS)).answers if answer.status == 202]
        psutil.Process(valkey.pid).kill()
        told = await asked(http, CALLERS)
        await asyncio.to_thread(valkey.start)
        back_s = await taken_again(http)
        kept = await on_record(valkey, accepted)
    print(f"SIGKILL: {CALLERS} callers, worst {told.worst_s:.2f} s; first 202 {back_s:.2f} s after Redis answered")
    print(f"accepted before {len(accepted)}, kept {kept}")
    refused(told)
    assert back_s < BACK_WITHIN_S
    assert kept == len(accepted) > 0


async def links_while(http: HttpProcess, valkey: Valkey, work: "asyncio.Task[Told]") -> tuple[Told, int]:
    """With what it came to: the median of its connections to Redis.

    Not the most: a look takes a while, and may see a connection that closes beside the one that takes its place.
    """
    seen = []
    while not work.done():
        seen.append(await asyncio.to_thread(http.links_to, valkey.port))
    return await work, round(median(seen))


def refused(told: Told) -> None:
    assert {answer.status for answer in told.answers} == {503}
    assert all(int(answer.header("retry-after") or 0) >= 1 for answer in told.answers)
    assert told.worst_s < TOLD_WITHIN_S


async def asked(http: HttpProcess, callers: int) -> Told:
    """As many orders at once, each over a connection of its own that stands already."""

    async def ask() -> tuple[Answer, float]:
        async with Wire(http.port) as wire:
            await wire.ask(request("GET", "/healthz"))
            standing.append(1)
            if len(standing) == callers:
                go.set()
            await go.wait()
            began = time.monotonic()
            answer = await wire.ask(order())
            return answer, time.monotonic() - began

    standing: list[int] = []
    go = asyncio.Event()
    found = await asyncio.gather(*(ask() for _ in range(callers)))
    return Told([answer for answer, _ in found], [took_s for _, took_s in found])


async def taken_again(http: HttpProcess) -> float:
    """Seconds until an order is taken."""
    began = time.monotonic()
    async with Wire(http.port) as wire:
        while (await wire.ask(order())).status != 202:
            assert time.monotonic() - began < OUTAGE_S
    return time.monotonic() - began


async def on_record(server: Valkey, ids: list[str]) -> int:
    redis = connect(server.url, timeout_s=5.0)
    found = [await redis.exists(f"dr1:job:{job_id}") for job_id in ids]
    await redis.aclose()
    return sum(found)


def order(key: str | None = None) -> bytes:
    named = {"Idempotency-Key": key} if key else {}
    return request("POST", "/v1/jobs", b'{"model":"flux-dev","prompt":"x"}', {**bearer("alice"), **named})


def job_in(answer: Answer) -> str:
    job_id: str = json.loads(answer.body)["id"]
    return job_id


# ---- full --------------------------------------------------------------------------------------------------------


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with Stack(tmp_path, rehearsal=["--latency-s", "1", "--latency-spread-s", "0.5"]) as stack:
        house = House(stack)
        yield house
        house.close()


async def test_a_full_redis_takes_no_job_and_loses_none(house: House) -> None:
    redis = connect(house.stack.redis.url, timeout_s=5.0)
    ids = await asyncio.to_thread(house.post_many, JOBS, "full")
    await redis.config_set("maxmemory", "1")
    answers = [await asyncio.to_thread(house.post, f"too many {number}") for number in range(5)]
    await asyncio.to_thread(house.await_that, lambda: house.http.get("/readyz").status_code == 503, 10.0)
    before = house.statuses(ids)
    await redis.config_set("maxmemory", "0")
    began = time.monotonic()
    jobs = await asyncio.to_thread(house.await_ended, ids, 90.0)
    await redis.aclose()
    print(f"full: {[answer.status_code for answer in answers]}; then {dict(before)}")
    print(f"with space again: {len(jobs)} of {JOBS} ended within {time.monotonic() - began:.1f} s")
    assert {answer.status_code for answer in answers} == {503}
    assert all(answer.headers["retry-after"] for answer in answers)
    house.audit(jobs)


# ---- replicas ----------------------------------------------------------------------------------------------------


@asynccontextmanager
async def replicated(folder: Path) -> AsyncIterator[tuple[Valkey, Valkey, CuttingProxy]]:
    """A primary, its replica, and the link between them."""
    primary = Valkey(folder / "primary")
    primary.start()
    async with CuttingProxy("127.0.0.1", primary.port) as link:
        behind = {
            "replicaof": f"127.0.0.1 {link.port}",
            "masterauth": primary.password,
            "repl-diskless-sync-delay": "0",
        }
        replica = Valkey(folder / "replica", options=behind)
        try:
            await asyncio.to_thread(replica.start)
            yield primary, replica, link
        finally:
            replica.stop()
            primary.stop()


async def caught_up(primary: Valkey) -> None:
    """The replica has what the primary had."""
    redis: AsyncRedis = connect(primary.url, timeout_s=ACKED_WITHIN_MS / 1000 + 1, max_connections=1)
    await redis.set("caught-up", secrets.token_hex(4))
    confirmed: Any = await redis.wait(1, ACKED_WITHIN_MS)
    await redis.aclose()
    assert confirmed == 1


@pytest.mark.parametrize("cuts", CUTS)
async def test_no_202_without_the_replica(cuts: int, tmp_path: Path) -> None:
    acked: list[str] = []
    unconfirmed: dict[str, str] = {}
    async with replicated(tmp_path) as (primary, replica, link):
        await caught_up(primary)
        with serving_process(tmp_path, primary.url, REDIS_REPLICAS_TO_WAIT="1") as http:
            async with Wire(http.port) as wire:
                for cut in range(cuts):
                    acked += [await taken(wire, f"whole {cut} {number}") for number in range(10)]
                    link.stall()
                    for number in range(3):
                        unconfirmed |= await doubted(wire, f"cut {cut} {number}")
                    link.resume()
                    await caught_up(primary)
                again = {key: await taken(wire, key) for key in unconfirmed}
        await link.refuse()
        kept = await on_record(replica, [*acked, *again.values()])
    print(f"{cuts} cuts: {len(acked)} confirmed, {len(unconfirmed)} times 503; on the replica {kept}")
    assert again == unconfirmed, "the key finds the very job that the 503 named"
    assert kept == len(acked) + len(unconfirmed)


async def taken(wire: Wire, key: str) -> str:
    answer = await wire.ask(order(key))
    assert answer.status in (200, 202), answer.body
    return job_in(answer)


async def doubted(wire: Wire, key: str) -> dict[str, str]:
    """The job's id as the 503 names it; the key alone, asked again meanwhile, is no confirmation either."""
    first, again = await wire.ask(order(key)), await wire.ask(order(key))
    for answer in (first, again):
        assert answer.status == 503, answer.body
        assert json.loads(answer.body)["code"] == "durability_unconfirmed"
        assert answer.header("retry-after")
    told, retold = (json.loads(answer.body)["job_id"] for answer in (first, again))
    assert told == retold
    return {key: told}
