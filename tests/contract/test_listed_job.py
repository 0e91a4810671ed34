"""Hostile entries in a queue, under our worker and RQ's own: none runs, none kills, the honest one behind them runs."""

import asyncio
import json
import pickle
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
import rq
from rq.exceptions import DeserializationError
from rq.job import Job

from service.storage.connection import AsyncRedis, Redis
from tests.contract.chores import ChoreJob, open_desk
from workers.worker import AsyncWorker

RUN_S: Final = 60
WRITE: Final = "tests.contract.chores.write"
Fields = dict[Any, Any]


class Bomb:
    """Unpickling it writes a file."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.write_text, (Path(self._path), "unpickled")


def call(function: str, *args: Any, instance: Any = None) -> bytes:
    return zlib.compress(json.dumps([function, instance, args, {}]).encode())


def hostile(path: str) -> dict[str, Fields]:
    """Each would write `path` if it ran, or is no entry at all."""
    honest = call(WRITE, path)
    pickled = pickle.dumps(Bomb(path))
    return {
        "a function of the system": {"data": call("os.mkdir", path)},
        "a module that must not be imported": {"data": call("tests.contract.trap.spring", path)},
        "a builtin": {"data": call("open", path, "w")},
        "a neighbour of a listed function": {"data": call("tests.contract.chores.Path.touch", path)},
        "a listed name with a tail": {"data": call(WRITE + ".__call__", path)},
        "a method": {"data": call(WRITE, path, instance="x")},
        "a pickled call": {"data": zlib.compress(pickled)},
        "a pickled call in the plain": {"data": pickled},
        "a pickled meta": {"data": call("os.mkdir", path), "meta": pickled},
        "a callback when it succeeds": {"data": honest, "success_callback_name": "tests.contract.trap.spring"},
        "a callback when it fails": {"data": honest, "failure_callback_name": "tests.contract.trap.spring"},
        "a callback when it is stopped": {"data": honest, "stopped_callback_name": "tests.contract.trap.spring"},
        "a request to a third party": {
            "data": honest,
            "webhooks": '[{"url": "http://127.0.0.1:1/", "job_status": "x"}]',
        },
        "a bell that rings itself": {"data": honest, "repeats_left": "1000"},
        "a bomb": {"data": zlib.compress(b"[" * 2**26)},
        "brackets": {"data": b"[" * 100_000},
        "data cut short": {"data": honest[:-3]},
        "data that is no call": {"data": b'{"func": "os.mkdir"}'},
        "no data": {"created_at": "2026-11-22T00:00:00Z"},
        "a date that is none": {"data": honest, "created_at": "yesterday"},
        "a time that is none": {"data": honest, "timeout": "long"},
        "a status that is none": {"data": honest, "status": "owned"},
        "a field that is no text": {"data": honest, b"\xff\xfe": "x"},
    }


def plant(redis: Redis, path: str) -> list[str]:
    """Every hostile entry in front of an honest one; the names of the hostile."""
    names = []
    for number, (name, fields) in enumerate(hostile(path + ".hostile").items()):
        redis.hset(f"rq:job:hostile-{number}", mapping=fields)
        redis.rpush("rq:queue:submit", f"hostile-{number}")
        names.append(name)
    redis.rpush("rq:job:a-list", "x")
    redis.rpush("rq:queue:submit", "a-list", "not-there")
    rq.Queue("submit", connection=redis, serializer="json").enqueue(WRITE, path, result_ttl=0, job_id="honest")
    return names


def files(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


@pytest.mark.anyio
async def test_no_hostile_entry_runs_under_our_worker(
    connection: AsyncRedis, sync: Redis, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = plant(sync, str(tmp_path / "honest"))
    sync.rpush("rq:queue:submit", b"\xff not an id", "and neither: this")
    before = ChoreJob.refused
    worker = AsyncWorker("submit", connection, sync, slots=3, job_class=ChoreJob)
    with open_desk() as desk:
        running = asyncio.create_task(worker.run())
        await desk.until(lambda: bool(desk.noted))
        worker.stop()
        await running
    assert files(tmp_path) == {"honest": "honest"}
    assert "tests.contract.trap" not in sys.modules
    assert ChoreJob.refused - before == caplog.text.count("refused an entry") == len(names)
    assert str(tmp_path) not in caplog.text
    assert sync.keys("rq:job:*") == sync.lrange("rq:queue:submit:intermediate", 0, -1) == []


@pytest.mark.parametrize("worker", ["rq.worker.SimpleWorker", "rq.worker.Worker"])
def test_no_hostile_entry_runs_under_a_stock_worker(sync: Redis, redis_url: str, tmp_path: Path, worker: str) -> None:
    names = plant(sync, str(tmp_path / "honest"))
    command = [sys.executable, "-m", "rq.cli", "worker", "--burst", "--url", redis_url, "--worker-class", worker]
    guard = ["--job-class", "tests.contract.chores.ChoreJob", "--serializer", "json", "submit"]
    ended = subprocess.run([*command, *guard], check=True, timeout=RUN_S, capture_output=True, text=True)
    assert files(tmp_path) == {"honest": "honest"}
    assert ended.stderr.count("refused an entry") == len(names)
    assert str(tmp_path) not in ended.stderr + ended.stdout
    assert sync.keys("rq:job:hostile*") == []


def wait_for_honest(redis: Redis, path: str) -> Fields:
    """An honest entry, and behind it what waits for it: another service's call, a hostile one, and what is no entry."""
    queue = rq.Queue("submit", connection=redis, serializer="json")
    honest = queue.create_job(WRITE, (path,), job_id="honest")
    honest.save()
    rq.Queue("theirs", connection=redis).enqueue(
        "theirs.after", Bomb(path + ".call"), job_id="after", depends_on=honest, meta={"for": Bomb(path + ".meta")}
    )
    queue.enqueue("os.mkdir", path + ".mkdir", job_id="mkdir", depends_on=honest)
    redis.hset("rq:job:unreadable", "created_at", "yesterday")
    redis.rpush("rq:job:no-hash", "x")
    redis.sadd(honest.dependents_key, "unreadable", "no-hash", "not-there")
    waiting = redis.hgetall("rq:job:after")
    queue.enqueue_job(honest)
    return waiting


def moved(redis: Redis, was: Fields) -> bool:
    """Whether the other service's entry is in its own queue, as it was."""
    names, now = {b"status", b"enqueued_at", b"timeout"}, redis.hgetall("rq:job:after")
    assert {key: now.get(key) for key in was.keys() - names} == {key: was[key] for key in was.keys() - names}
    return (now[b"status"], redis.lrange("rq:queue:theirs", 0, -1)) == (b"queued", [b"after"])


@pytest.mark.anyio
async def test_what_waits_for_an_entry_is_moved_and_not_read(
    connection: AsyncRedis, sync: Redis, tmp_path: Path
) -> None:
    waiting = wait_for_honest(sync, str(tmp_path / "honest"))
    rq.Queue("submit", connection=sync, serializer="json").enqueue(WRITE, str(tmp_path / "last"), job_id="last")
    worker = AsyncWorker("submit", connection, sync, slots=1, job_class=ChoreJob)
    with open_desk() as desk:
        running = asyncio.create_task(worker.run())
        await desk.until(lambda: len(desk.noted) == 2)
        worker.stop()
        await running
    assert Job.fetch("honest", sync, "json").is_finished
    assert moved(sync, waiting)
    assert files(tmp_path) == {"honest": "honest", "last": "last"}


@pytest.mark.parametrize("worker", ["rq.worker.SimpleWorker", "rq.worker.Worker"])
def test_a_stock_worker_too_moves_what_waits_and_does_not_read_it(
    sync: Redis, redis_url: str, tmp_path: Path, worker: str
) -> None:
    waiting = wait_for_honest(sync, str(tmp_path / "honest"))
    command = [sys.executable, "-m", "rq.cli", "worker", "--burst", "--url", redis_url, "--worker-class", worker]
    guard = ["--job-class", "tests.contract.chores.ChoreJob", "--serializer", "json", "submit"]
    ended = subprocess.run([*command, *guard], check=True, timeout=RUN_S, capture_output=True, text=True)
    assert Job.fetch("honest", sync, "json").is_finished
    assert moved(sync, waiting)
    assert files(tmp_path) == {"honest": "honest"}
    assert "refused an entry: function 'os.mkdir'" in ended.stderr
    assert sync.keys("rq:job:mkdir") == []


def test_what_is_fetched_in_bulk_cannot_be_run(sync: Redis, tmp_path: Path) -> None:
    plant(sync, str(tmp_path / "honest"))
    packed = [job for job in ChoreJob.fetch_many(["hostile-0", "honest", "a-list"], sync) if job]
    assert [job.id for job in packed] == ["hostile-0", "honest"]
    for job in packed:
        with pytest.raises(DeserializationError):
            job.perform()
    assert files(tmp_path) == {}


def test_every_hostile_entry_would_run_or_fail_under_rq_alone(sync: Redis, tmp_path: Path) -> None:
    """The guard is what refuses: RQ's own Job, JSON or not, calls whatever is named."""
    plant(sync, str(tmp_path / "honest"))
    Job.fetch("hostile-0", sync, "json").perform()
    assert (tmp_path / "honest.hostile").is_dir()
