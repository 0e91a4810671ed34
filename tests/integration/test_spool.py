"""The store is gone for longer than a URL lives: what was paid for is neither lost nor bought again."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import psutil
import pytest

from deploy.local.stack import Stack
from service.domain.job import Job
from service.storage.connection import connect
from service.storage.store import Store
from service.storage.terms import Limits
from tests.integration.house import House, JobView
from tests.steps import HOUR_S

pytestmark = [pytest.mark.processes, pytest.mark.timeout(200)]

JOBS: Final = 30
URL_LIFE_S: Final = 6.0
WITHIN_S: Final = 60.0
# Tasks end when the test says so, and a dead URL is not given anew.
PROVIDER: Final = {
    "latency_s": HOUR_S,
    "latency_spread_s": 0,
    "max_in_flight": 1000,
    "fresh_url": 0,
    "progress_events": 0,
}


@contextmanager
def opened(folder: Path, **overrides: str) -> Iterator[House]:
    with Stack(folder, workers=1, overrides={"FLUX_MAX_IN_FLIGHT": "0", "LEASE_S": "2", **overrides}) as stack:
        house = House(stack)
        house.control(**PROVIDER)
        try:
            yield house
        finally:
            house.close()


def look(house: House, ids: list[str]) -> tuple[int, list[Job]]:
    """Redis's time, and the jobs as their records are."""

    async def read() -> tuple[int, list[Job]]:
        redis = connect(house.stack.redis.url, timeout_s=5)
        try:
            store = Store(redis, Limits())
            return await store.now_ms(), [job for job_id in ids if (job := await store.get(job_id))]
        finally:
            await redis.aclose()

    return asyncio.run(read())


def all_are(house: House, ids: list[str], holds: Callable[[Job, int], bool]) -> Callable[[], bool]:
    def held() -> bool:
        now, jobs = look(house, ids)
        return all(holds(job, now) for job in jobs)

    return held


def bought(house: House, name: str) -> list[str]:
    ids = house.post_many(JOBS, name)
    house.await_that(all_are(house, ids, lambda job, _: job.status == "generating"), WITHIN_S)
    return ids


def finish(house: House) -> None:
    house.provider.post("/_finish").raise_for_status()


def live_through(house: House, ids: list[str], during: Callable[[], None]) -> list[JobView]:
    """The images are made while the store is away, which comes back when the last of their URLs has died."""
    house.provider.post("/_control", json={"url_life_s": URL_LIFE_S}).raise_for_status()
    away = house.stack.kill("store", hold=True)
    finish(house)
    house.await_that(all_are(house, ids, lambda job, _: job.status == "collecting"), WITHIN_S)
    during()
    house.await_that(all_are(house, ids, lambda job, now: (job.result_expires_at or now) < now), WITHIN_S)
    now, jobs = look(house, ids)
    dead = sum(1 for job in jobs if job.image is None and (job.result_expires_at or now) < now)
    print(f"pulled first in, first out and without a spool, {dead} of {len(ids)} would have been lost")
    assert dead == JOBS
    house.stack.release("store")
    house.stack.await_next("store", away)
    return house.await_ended(ids, WITHIN_S)


def lose_nothing(house: House, jobs: list[JobView]) -> None:
    house.audit(jobs)
    assert set(house.purchases(jobs).values()) == {1}
    house.await_that(lambda: spooled_files(house) == {"id"}, WITHIN_S)


def spooled_files(house: House) -> set[str]:
    return {path.name for path in house.stack.settings.spool_dir.iterdir()}


def test_an_outage_longer_than_a_url_lives_loses_nothing(tmp_path: Path) -> None:
    with opened(tmp_path) as house:
        ids = bought(house, "spooled")

        def all_spooled() -> None:
            house.await_that(all_are(house, ids, lambda job, _: job.spool is not None), WITHIN_S)

        lose_nothing(house, live_through(house, ids, all_spooled))


def test_nor_does_a_worker_that_is_killed_over_its_spool(tmp_path: Path) -> None:
    with opened(tmp_path) as house:
        ids = bought(house, "killed")

        def kill_it() -> None:
            # All of them: what is not pulled yet would die with its URL, which lives 6 s here and 600 in earnest.
            house.await_that(all_are(house, ids, lambda job, _: job.spool is not None), WITHIN_S)
            before = house.stack.kill("workers-1")
            house.stack.await_next("workers-1", before)  # it starts although the store is away

        lose_nothing(house, live_through(house, ids, kill_it))


def test_without_a_spool_they_are_lost(tmp_path: Path) -> None:
    with opened(tmp_path, SPOOL_MAX_BYTES="0") as house:
        jobs = live_through(house, bought(house, "unspooled"), lambda: None)
        assert {job["error"]["code"] for job in jobs} == {"result_expired"}
        assert set(house.purchases(jobs).values()) == {1}, "only the caller may buy again"


def test_a_full_disk_is_nobodys_fault(tmp_path: Path) -> None:
    """A limit on the size of its files is to the worker what a full disk is: no byte more can be written."""
    with opened(tmp_path) as house:
        ids = bought(house, "full")
        worker = psutil.Process(house.stack.pids["workers-1"])
        free = worker.rlimit(psutil.RLIMIT_FSIZE)
        worker.rlimit(psutil.RLIMIT_FSIZE, (1, free[1]))
        finish(house)
        house.await_that(all_are(house, ids, lambda job, _: job.reason == "pull_failed"), WITHIN_S)
        told = house.http.get(f"/v1/jobs/{ids[0]}").json()
        assert (told["status"], told["error"]) == ("collecting", None)
        worker.rlimit(psutil.RLIMIT_FSIZE, free)
        jobs = house.await_ended(ids, WITHIN_S)
        lose_nothing(house, jobs)
        assert {job.pulls for job in look(house, ids)[1]} == {0}, "no try was burnt"
        assert list(house.stack.settings.temp_dir.iterdir()) == [], "nothing is left of what did not fit"
