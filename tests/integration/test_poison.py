"""Jobs that kill the process that works at them, among jobs that do not (F11)."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from deploy.local.keeper import Keeper
from deploy.local.leash import Leash
from deploy.local.program import Program, serves_a_queue
from deploy.local.stack import Stack
from service.storage.connection import connect_sync
from tests.integration.house import House

pytestmark = [pytest.mark.processes, pytest.mark.timeout(280)]

RECOVERY_S = 15.0
ENDED_WITHIN_S = 600.0
KINDS = ("[segfault]", "[oom]", "[spin]")
SHORT = {
    "PROCESS_LOST_S": "3",
    "WATCHDOG_S": "2",
    "SUSPECT_RETRY_S": "0.5,1",
    "LEASE_S": "6",
    "SWEEP_INTERVAL_S": "0.2",
    "UNKNOWN_WAIT_S": "20",
}
REHEARSAL = ["--latency-s", "1", "--latency-spread-s", "0.5", "--max-in-flight", "24"]


@contextmanager
def poisonable(folder: Path, workers: int) -> Iterator[tuple[House, list[Keeper]]]:
    """A running system whose workers some prompts kill; each starts again by itself."""
    with Stack(folder, workers=0, rehearsal=REHEARSAL, overrides=SHORT) as stack:
        leash, house = Leash(), House(stack)
        answers = serves_a_queue(stack.addresses.redis_url)
        programs = [
            Program(["tests.poison"], stack.environment, folder / f"poison-{number}.log", answers, leash.spawn)
            for number in range(workers)
        ]
        keepers = [Keeper(f"poison-{number}", each, leash, print) for number, each in enumerate(programs)]
        try:
            for keeper in keepers:
                keeper.start()
            yield house, keepers
        finally:
            leash.shut()
            for keeper in keepers:
                keeper.stop(3)
            leash.close()
            house.close()


def logged(folder: Path) -> list[dict[str, Any]]:
    """What the workers said, line by line; what is not of our making is left out."""
    lines = [line for log in folder.glob("poison-*.log") for line in log.read_text(errors="replace").splitlines()]
    return [json.loads(line) for line in lines if line.startswith("{")]


@pytest.mark.parametrize(
    ("count", "poisons"),
    [(30, 3), pytest.param(200, 5, marks=[pytest.mark.soak, pytest.mark.timeout(1800)])],
    ids=["small", "soak"],
)
def test_poison_jobs_fail_and_their_neighbours_are_bought_once_and_succeed(
    tmp_path: Path, count: int, poisons: int
) -> None:
    with poisonable(tmp_path, workers=2) as (house, _):
        apart = count // poisons
        prompts = [KINDS[number // apart % 3] if number % apart == apart // 2 else "fine" for number in range(count)]
        began = time.monotonic()
        ids = [house.insist(f"{prompt} {number}") for number, prompt in enumerate(prompts)]
        jobs = house.await_ended(ids, ENDED_WITHIN_S)
        print("all had ended after (s):", round(time.monotonic() - began, 1))
        poison = [job for job in jobs if "[" in job["request"]["prompt"]]
        fine = [job for job in jobs if "[" not in job["request"]["prompt"]]
        assert (len(poison), len(fine)) == (poisons, count - poisons)
        assert [(job["status"], job["error"]["code"]) for job in poison] == [("failed", "poisoned")] * poisons
        house.audit(fine)
        print(f"{count} jobs: {len(fine)} succeed, {len(poison)} are poisoned")
        assert set(house.purchases(jobs).values()) == {1}
        flagged = [job["id"] for job in jobs if job["possible_duplicate"]]
        print("outcome unknown, because a neighbour's POST died with the process:", len(flagged))
        assert {job["attempts"] for job in jobs if job["possible_duplicate"]} <= {2}
        for job in poison:
            assert json.loads(house.bytes(f"jobs/{day(job)}/{job['id']}.json"))["error"]["code"] == "poisoned"
        crashes = [line for line in logged(tmp_path) if line["message"] == "a process of suspects has crashed"]
        print("processes of suspects that crashed:", [line["jobs"] for line in crashes])
        assert suspects(house) == {}


def day(job: dict[str, Any]) -> str:
    return str(job["created_at"][:10]).replace("-", "/")


def suspects(house: House) -> dict[bytes, bytes]:
    with connect_sync(house.stack.redis.url, timeout_s=5) as client:
        found: Any = client.hgetall("dr1:suspects")
        return dict(found)


def at_rest(house: House, dead: int) -> bool:
    """The process was missed, and what it had in flight is nobody's suspect; what waits for its answer is watched."""
    with connect_sync(house.stack.redis.url, timeout_s=5) as client:
        living: Any = client.zrange("dr1:procs", 0, -1)
    missed = not any(f":{dead}:".encode() in uid for uid in living)
    return missed and set(suspects(house).values()) <= {b"submit"}


# The deaf one burns half a minute of a core; tests/unit/test_watchdog.py ends such a process at every run.
@pytest.mark.parametrize("prompt", ["[spin]", pytest.param("[deaf spin]", marks=pytest.mark.soak)])
def test_a_loop_that_never_yields_is_ended_by_the_watchdog(tmp_path: Path, prompt: str) -> None:
    with poisonable(tmp_path, workers=1) as (house, [keeper]):
        before = keeper.pid
        job_id = house.insist(prompt)
        keeper.await_next(before, 30)
        [job] = house.await_ended([job_id], 120)
        assert job["error"]["code"] == "poisoned"
    apart = [line for line in logged(tmp_path) if line["message"] == "suspects run apart"]
    assert [(line["job"], line["jobs"], line["crashes"]) for line in apart] == [(job_id, 1, n) for n in range(3)]
    if prompt == "[spin]":
        stuck = [line["stack"] for line in logged(tmp_path) if line["message"].startswith("the loop does not turn")]
        assert len(stuck) == 4, "once among others, three times alone"
        assert all("poison.py" in stack and "strike" in stack for stack in stuck)
        assert not any("{" in stack or "'" in stack for stack in stuck), "places, no values"


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_a_poison_job_that_takes_its_whole_container_along_is_judged_too(tmp_path: Path) -> None:
    """Nobody is left who could say how the process of the suspect ended."""
    with poisonable(tmp_path, workers=2) as (house, _):
        began = time.monotonic()
        fine, poison = house.post_many(20, "neighbour"), house.insist("[container]")
        [job] = house.await_ended([poison], ENDED_WITHIN_S)
        assert job["error"]["code"] == "poisoned"
        print("poisoned after (s):", round(time.monotonic() - began, 1))
        house.audit(house.await_ended(fine))
        assert set(house.purchases([job]).values()) == {1}
        assert suspects(house) == {}
    apart = [line["crashes"] for line in logged(tmp_path) if line["message"] == "suspects run apart"]
    crashed = [line for line in logged(tmp_path) if line["message"] == "a process of suspects has crashed"]
    print("runs apart:", apart)
    assert len(apart) >= 9, "three times three: a container may die for reasons of its own"
    assert crashed == [], "its keeper never lived to see one"


@pytest.mark.soak
def test_a_job_that_had_ended_and_still_crashes_costs_one_worker_process_and_no_more(tmp_path: Path) -> None:
    with poisonable(tmp_path, workers=1) as (house, [keeper]):
        before = keeper.pid
        job_id = house.insist("[moderated] [deadly end]")
        keeper.await_next(before, 30)
        after, fine = keeper.pid, house.post_many(20, "neighbour")
        house.await_that(lambda: len(adjourned(tmp_path)) == 2, 120)
        house.audit(house.await_ended(fine))
        assert keeper.pid == after
        assert house.job(job_id)["error"]["code"] == "moderated", "what it ended with stands"
        assert house.http.get(f"/v1/jobs/{job_id}/log").json()["next"]["suspect"] == {"crashes": 4}
    assert [(line["job"], line["crashes"], line["again_s"]) for line in adjourned(tmp_path)] == [
        (job_id, 3, 10.0),
        (job_id, 4, 20.0),
    ]


def adjourned(folder: Path) -> list[dict[str, Any]]:
    return [line for line in logged(folder) if line["message"].startswith("a job has ended, and what is left")]


def test_a_killed_worker_makes_nobody_poisoned_and_its_jobs_go_on_soon(tmp_path: Path) -> None:
    with poisonable(tmp_path, workers=2) as (house, [first, second]):
        ids = house.post_many(40, "killed")
        recoveries = []
        for keeper in (first, second):
            house.await_that(lambda: house.statuses(ids)["collecting"] + house.statuses(ids)["succeeded"] > 0, 60)
            before = keeper.kill()
            killed_at = time.monotonic()
            keeper.await_next(before, 30)
            house.await_that(lambda dead=before: at_rest(house, dead), 60)  # type: ignore[misc]  # bound at once
            recoveries.append(round(time.monotonic() - killed_at, 1))
        house.audit(house.await_ended(ids))
        print("missed, and nobody suspect any more, after (s):", recoveries)
        assert max(recoveries) < RECOVERY_S
