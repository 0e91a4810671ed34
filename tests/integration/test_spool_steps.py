"""The spool, step by step: who puts what lies in it, what if its machine is gone, what is cleared away."""

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from service.domain import events
from service.domain.job import Job
from service.storage.bell import Bells
from service.storage.store import PREFIX
from tests.steps import HOUR_S, Bench, Steps
from workers import sweep
from workers.close import Closer
from workers.flux import Flux
from workers.sweep import Sweep
from workers.tend import CLEAR_GAP_S, Tender

pytest_plugins = ["tests.fixtures_steps"]
pytestmark = [pytest.mark.anyio, pytest.mark.processes]

NOWHERE = "http://127.0.0.1:9"
A_MINUTE_MS = 60_000


class Far:
    """A clock that makes every round clear away."""

    def __init__(self) -> None:
        self._now_s = 0.0

    def now_ms(self) -> int:
        return 0

    def monotonic_s(self) -> float:
        self._now_s += CLEAR_GAP_S + 1
        return self._now_s


@asynccontextmanager
async def machine(bench: Bench, directory: Path, **settings: Any) -> AsyncIterator[Steps]:
    """A worker process of a machine of its own."""
    async with bench.steps(spool_dir=directory, **settings) as steps:
        yield steps


async def ready(bench: Bench, at: Steps, prompt: str = "a lighthouse") -> Job:
    job_id = await at.bought(prompt)
    bench.finish()
    return await at.collect(job_id)


async def spooled(bench: Bench, directory: Path, prompt: str = "a lighthouse") -> Job:
    """A job whose image lies in this directory, since the store could not be reached; it is due again."""
    async with machine(bench, directory, s3_endpoint_url=NOWHERE) as cut_off:
        job = await cut_off.collect((await ready(bench, cut_off, prompt)).id)
        assert (job.status, job.reason, job.spool) == ("collecting", "spooled", cut_off.house.spool.id)
        await cut_off.hasten(job.id)
        return job


async def silence(at: Steps) -> None:
    """No process has shown for years that it serves any spool."""
    await at.house.redis.delete(f"{PREFIX}spools")


def files(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def image_in(directory: Path) -> Path:
    [image] = directory.glob("*.jpeg")
    return image


async def test_what_lies_in_our_spool_is_put_without_the_network(bench: Bench, tmp_path: Path) -> None:
    job = await spooled(bench, tmp_path)
    async with machine(bench, tmp_path, flux_result_hosts="nowhere.example", flux_api_base_url=NOWHERE) as at:
        done = await at.collect(job.id)
        bench.audit_job(done)
        assert files(tmp_path) == {"id"}


async def test_another_machine_leaves_it_and_pulls_it_again_once_that_spool_is_lost(
    bench: Bench, tmp_path: Path
) -> None:
    job = await spooled(bench, tmp_path / "a")
    async with machine(bench, tmp_path / "b") as other:
        assert (await other.collect(job.id)).version == job.version
        await silence(other)
        bench.audit_job(await other.collect(job.id))
        assert len(bench.submissions()) == 1


async def test_a_silent_spool_that_may_come_back_is_waited_for_even_when_the_url_is_dead(
    bench: Bench, tmp_path: Path
) -> None:
    job = await spooled(bench, tmp_path / "a")
    async with machine(bench, tmp_path / "b", generation_timeout_s=0.0) as other:
        now = await other.house.desk.store.now_ms()
        dead = events.Refreshed(url=f"{job.result_url}0", expires_at=now + A_MINUTE_MS)
        asked = events.PullFailed(counts=False, serves=False)
        await other.tell(job.id, dead, events.Spooled(spool=str(job.spool), delay_s=0), asked)
        await other.house.redis.zadd(f"{PREFIX}spools", {str(job.spool): now - A_MINUTE_MS})
        bench.turn(not_found=1)
        waiting = await other.collect(job.id)
        [*_, last] = await other.house.desk.store.log(job.id)
        assert (waiting.status, waiting.error) == ("collecting", None)
        assert last.data["detail"].startswith("its bytes lie in a spool that may come back")
    async with machine(bench, tmp_path / "a") as back:
        await back.hasten(job.id)
        bench.audit_job(await back.collect(job.id))


async def test_a_damaged_spool_file_is_never_stored_and_pulled_again(bench: Bench, tmp_path: Path) -> None:
    job = await spooled(bench, tmp_path)
    image = image_in(tmp_path)
    image.write_bytes(image.read_bytes()[:-1])
    async with machine(bench, tmp_path) as at:
        bench.audit_job(await at.collect(job.id))
        assert at.house.spool.corrupt == 1


async def test_with_neither_spool_nor_url_it_is_lost_and_not_bought_again(bench: Bench, tmp_path: Path) -> None:
    bench.turn(url_life_s=0, fresh_url=0)
    async with machine(bench, tmp_path, s3_endpoint_url=NOWHERE) as cut_off:
        job = await ready(bench, cut_off)
        await cut_off.tell(job.id, events.Spooled(spool="of a machine that is gone", delay_s=0))
    async with machine(bench, tmp_path) as at:
        lost = await at.collect(job.id)
        assert lost.error
        assert (lost.status, lost.error.code) == ("failed", "result_expired")
        assert len(bench.submissions()) == 1


async def test_while_the_store_is_away_only_one_in_a_while_tries_it(bench: Bench, tmp_path: Path) -> None:
    async with machine(bench, tmp_path, s3_endpoint_url=NOWHERE) as cut_off:
        details = []
        for number in range(3):
            job = await cut_off.collect((await ready(bench, cut_off, f"picture {number}")).id)
            assert job.spool
            [*_, last] = await cut_off.house.desk.store.log(job.id)
            details.append(last.data["detail"] == "the store is away")
        assert details == [False, True, True]


async def test_a_cancelled_job_leaves_nothing_in_the_spool(bench: Bench, tmp_path: Path) -> None:
    job = await spooled(bench, tmp_path / "a")
    async with machine(bench, tmp_path / "b") as other:
        await other.tell(job.id, events.CancelAsked())
        await other.hasten(job.id)
        assert (await other.collect(job.id)).sidecar
    assert len(files(tmp_path / "a")) == 3, "the machine that has it was not asked"
    async with machine(bench, tmp_path / "a") as at:
        await tended(at)
        assert files(tmp_path / "a") == {"id"}


async def test_what_is_still_wanted_or_may_come_back_is_not_cleared_away(bench: Bench, tmp_path: Path) -> None:
    await spooled(bench, tmp_path)
    async with machine(bench, tmp_path) as at:
        await tended(at)
        assert len(files(tmp_path)) == 3
        await at.house.redis.flushdb()
        await tended(at)
        assert len(files(tmp_path)) == 3, "a record may be away for a while"


async def tended(at: Steps) -> None:
    await Tender(at.house.desk, at.house.spool, Far()).round()


async def test_a_spool_that_is_half_full_stops_submissions_and_room_lets_them_go_on(
    bench: Bench, tmp_path: Path
) -> None:
    job = await spooled(bench, tmp_path)
    async with machine(bench, tmp_path, spool_max_bytes=image_in(tmp_path).stat().st_size * 2 - 2) as at:
        await tended(at)
        figures = await at.house.desk.store.figures()
        assert set(figures.closed) == {"storage"}
        await at.new("waits")
        assert (await at.house.desk.store.figures()).slots == 0
        await at.collect(job.id)
        await at.house.redis.hset(f"{PREFIX}gate", "storage_until", "1")
        await tended(at)
        await at.house.sweep.round()
        assert (await at.house.desk.store.figures()).slots == 1


async def test_pulls_that_cannot_keep_up_stop_submissions_but_one_bad_url_does_not(
    bench: Bench, tmp_path: Path
) -> None:
    terms = sweep.Terms(interval_s=1, again_s=HOUR_S, behind_s=-1, behind_most=2)
    async with machine(bench, tmp_path) as at:
        desk, bucket = at.house.desk, at.house.bucket
        closer = Closer(desk, cast("Flux", None), bucket, random.Random(), unknown_wait_s=1, generation_timeout_s=1)
        watch = Sweep(desk, Bells(at.house.redis, at.house.sync), bucket, closer, Far(), terms)
        for number in range(2):
            assert set((await desk.store.figures()).closed) == set()
            job = await at.job(await at.bought(f"picture {number}"))
            await at.tell(job.id, events.Ready(attempt=1, provider_id=job.tasks["1"], url=NOWHERE, expires_at=1))
            await watch.round()
        assert set((await desk.store.figures()).closed) == {"storage"}
