"""The asyncio RQ worker against a real Valkey."""

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any, Final

import pytest
import rq
from rq.job import Job
from rq.results import Result
from rq.worker import BaseWorker

from service.storage.connection import AsyncRedis, Redis, connect, connect_sync
from tests.contract.chores import ChoreJob, Desk, open_desk
from tests.contract.valkey import Valkey
from workers.worker import AsyncWorker

pytestmark = pytest.mark.anyio

END_S: Final = 20.0
FAILURE_S: Final = 4  # less than the sockets' timeout
Hire = Callable[..., AsyncWorker]


@pytest.fixture
def desk() -> Iterator[Desk]:
    with open_desk() as desk:
        yield desk


@pytest.fixture
def queue(sync: Redis) -> rq.Queue:
    return rq.Queue("submit", connection=sync, serializer="json", job_class=ChoreJob)


@pytest.fixture
def hire(connection: AsyncRedis, sync: Redis) -> Hire:
    def hire(slots: int = 10, **options: Any) -> AsyncWorker:
        return AsyncWorker("submit", connection, sync, slots=slots, job_class=ChoreJob, **options)

    return hire


@asynccontextmanager
async def working(*workers: AsyncWorker) -> AsyncIterator[None]:
    """The workers run inside, and have come to their end after it."""
    async with asyncio.timeout(2 * END_S), asyncio.TaskGroup() as group:
        for worker in workers:
            group.create_task(worker.run())
        yield
        for worker in workers:
            worker.stop()


def ring(queue: rq.Queue, chore: str, *args: object, result_ttl: int | None = 0, timeout_s: int = 60) -> Job:
    task = f"tests.contract.chores.{chore}"
    return queue.enqueue(task, args=args, result_ttl=result_ttl, failure_ttl=60, job_timeout=timeout_s)


def leftovers(redis: Redis) -> list[bytes]:
    """Keys of entries, executions and registries; what a worker leaves of itself does not count."""
    own = (b"rq:queues", b"rq:worker", b"rq:clean_registries")
    return sorted(key for key in redis.scan_iter() if not key.startswith(own))


async def failure(job: Job) -> str:
    """What RQ keeps of the failure of `job`, once it has happened."""
    result = await asyncio.to_thread(job.latest_result, FAILURE_S)
    assert result
    assert result.type is Result.Type.FAILED
    assert job.failed_job_registry.get_job_ids() == [job.id]
    return result.exc_string or ""


class Ear(logging.Handler):
    """Hears one text in the log of our workers."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self._text, self.heard = text, asyncio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        if self._text in record.getMessage():
            self.heard.set()


async def test_bells_run_in_order_and_leave_nothing(hire: Hire, queue: rq.Queue, desk: Desk, sync: Redis) -> None:
    for number in range(250):
        ring(queue, "note", str(number))
    async with working(hire(slots=1)):
        await desk.until(lambda: len(desk.noted) == 250)
    assert desk.noted == [str(number) for number in range(250)]
    assert leftovers(sync) == []


async def test_no_more_tasks_run_at_once_than_there_are_slots(hire: Hire, queue: rq.Queue, desk: Desk) -> None:
    for number in range(7):
        ring(queue, "hold", str(number))
    async with working(hire(slots=3)):
        await desk.until(lambda: len(desk.held) == 3)
        assert queue.count == 4
        desk.gate.set()
        await desk.until(lambda: len(desk.noted) == 7)


async def test_two_workers_share_a_queue_and_each_bell_runs_once(hire: Hire, queue: rq.Queue, desk: Desk) -> None:
    async with working(hire(), hire()):
        for number in range(200):
            ring(queue, "note", str(number))
        await desk.until(lambda: len(desk.noted) >= 200)
    assert sorted(desk.noted, key=int) == [str(number) for number in range(200)]


async def test_a_plain_function_runs_in_a_thread(hire: Hire, queue: rq.Queue, desk: Desk, sync: Redis) -> None:
    ring(queue, "note_plainly", "plain")
    async with working(hire(slots=1)):
        ring(queue, "note", "after")  # the one slot is free again when this runs
        await desk.until(lambda: len(desk.noted) == 2)
    assert desk.noted == ["plain", "after"]


async def test_a_result_that_is_kept_is_kept_by_rq(hire: Hire, queue: rq.Queue, desk: Desk) -> None:
    job = ring(queue, "answer", {"caller": "alice"}, result_ttl=60)
    async with working(hire(slots=1)):
        ring(queue, "note", "after")
        await desk.until(lambda: bool(desk.noted))
    assert job.return_value(refresh=True) == {"id": job.id, "caller": "alice"}
    assert queue.finished_job_registry.get_job_ids() == [job.id]


@pytest.mark.parametrize(
    ("chore", "kept"),
    [("fail", r"TaskError: LookupError at chores\.py:\d+$"), ("leave", r"TaskError: SystemExit at chores\.py:\d+$")],
)
async def test_what_a_task_raises_is_its_own_failure_and_quotes_nothing(
    hire: Hire, queue: rq.Queue, desk: Desk, caplog: pytest.LogCaptureFixture, chore: str, kept: str
) -> None:
    job = ring(queue, chore, "canary")
    async with working(hire()):
        kept_text = await failure(job)
        ring(queue, "note", "after")
        await desk.until(lambda: desk.noted == ["after"])
    assert re.search(kept, kept_text.strip())
    assert f"({job.id}) failed" in caplog.text
    assert "canary" not in caplog.text + kept_text


async def test_a_task_over_its_time_fails(hire: Hire, queue: rq.Queue, desk: Desk) -> None:
    job = ring(queue, "hold", "for ever", timeout_s=1)
    async with working(hire()):
        assert "TimeoutError" in await failure(job)


async def test_rq_info_sees_the_worker_and_what_it_does(hire: Hire, queue: rq.Queue, desk: Desk, sync: Redis) -> None:
    job = ring(queue, "hold", "a")
    worker = hire()
    async with working(worker):
        await desk.until(lambda: desk.held == ["a"])
        (seen,) = BaseWorker.all(queue=queue)
        assert (seen.name, seen.get_state(), seen.queue_names()) == (worker.name, "busy", ["submit"])
        assert [execution.job_id for execution in seen.get_current_executions()] == [job.id]
        assert queue.started_job_registry.get_job_ids() == [job.id]
        desk.gate.set()
    assert BaseWorker.all(queue=queue) == []
    assert sync.hget(worker.key, "successful_job_count") == b"1"


async def test_a_warm_stop_lets_running_tasks_end(hire: Hire, queue: rq.Queue, desk: Desk, sync: Redis) -> None:
    ring(queue, "hold", "a")
    worker = hire(slots=1)
    async with working(worker):
        await desk.until(lambda: desk.held == ["a"])
        worker.stop()
        ring(queue, "note", "late")
        desk.gate.set()
    assert desk.noted == ["a"]
    assert queue.count == 1


async def test_a_bell_cut_off_at_the_end_of_the_grace_just_goes(
    hire: Hire, queue: rq.Queue, desk: Desk, sync: Redis
) -> None:
    ring(queue, "hold", "a")
    async with working(hire(slots=1, grace_s=0)):
        await desk.until(lambda: desk.held == ["a"])
    assert desk.noted == []
    assert leftovers(sync) == []


async def test_a_cancelled_worker_ends(hire: Hire, queue: rq.Queue, desk: Desk) -> None:
    """Not the way to stop one, but a loop that closes cancels whatever still runs."""
    ring(queue, "hold", "a")
    running = asyncio.create_task(hire().run())
    await desk.until(lambda: desk.held == ["a"])
    running.cancel()
    done, _ = await asyncio.wait([running], timeout=END_S)
    assert done
    assert running.cancelled()


async def test_fifty_warm_stops_orphan_no_bell(hire: Hire, queue: rq.Queue, desk: Desk, sync: Redis) -> None:
    """Each bell has run once or still waits in the queue; none is stuck in RQ's intermediate list or registries."""
    rung = 0
    for stop in range(50):
        for _ in range(60):
            ring(queue, "note", str(rung))
            rung += 1
        async with working(hire(slots=1 + stop % 7)):
            enough = len(desk.noted) + stop % 30
            await desk.until(lambda: len(desk.noted) > enough)  # noqa: B023 awaited here
    assert len(desk.noted) == len(set(desk.noted))
    assert len(desk.noted) + queue.count == rung
    assert sync.llen(queue.intermediate_queue_key) == 0
    assert queue.started_job_registry.get_job_ids() == queue.failed_job_registry.get_job_ids() == []


async def test_redis_may_go_away_and_come_back(
    own_valkey: Valkey, desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    away = Ear("Redis is away")
    logging.getLogger("workers").addHandler(away)
    connection, sync = connect(own_valkey.url, timeout_s=5), connect_sync(own_valkey.url, timeout_s=5)
    queue = rq.Queue("submit", connection=sync, serializer="json", job_class=ChoreJob)
    worker = AsyncWorker("submit", connection, sync, slots=5, job_class=ChoreJob)
    ring(queue, "hold", "before")
    async with working(worker):
        await desk.until(lambda: desk.held == ["before"])
        own_valkey.kill()
        desk.gate.set()
        await desk.until(lambda: desk.noted == ["before"])  # a running task goes on
        await away.heard.wait()
        own_valkey.start()
        ring(queue, "note", "after")
        await desk.until(lambda: desk.noted == ["before", "after"])
    logging.getLogger("workers").removeHandler(away)
    assert caplog.text.count("Redis is away") == caplog.text.count("Redis is back") == 1
    await connection.aclose()
    sync.close()


async def test_a_worker_that_starts_without_redis_waits_for_it(own_valkey: Valkey, desk: Desk) -> None:
    connection, sync = connect(own_valkey.url, timeout_s=5), connect_sync(own_valkey.url, timeout_s=5)
    own_valkey.kill()
    async with working(AsyncWorker("submit", connection, sync, slots=5, job_class=ChoreJob)):
        await asyncio.to_thread(own_valkey.start)
        ring(rq.Queue("submit", connection=sync, serializer="json"), "note", "a")
        await desk.until(lambda: desk.noted == ["a"])
    await connection.aclose()
    sync.close()


async def test_a_worker_that_stops_without_redis_ends(own_valkey: Valkey, desk: Desk) -> None:
    connection, sync = connect(own_valkey.url, timeout_s=5), connect_sync(own_valkey.url, timeout_s=5)
    ring(rq.Queue("submit", connection=sync, serializer="json"), "hold", "a")
    async with working(AsyncWorker("submit", connection, sync, slots=5, job_class=ChoreJob)):
        await desk.until(lambda: desk.held == ["a"])
        own_valkey.kill()
        desk.gate.set()
    assert desk.noted == ["a"]
    await connection.aclose()
    sync.close()


async def test_a_client_that_cannot_wait_for_a_bell_is_refused(redis_url: str, sync: Redis) -> None:
    hasty = connect(redis_url, timeout_s=1)
    with pytest.raises(ValueError, match="over 1 s"):
        AsyncWorker("submit", hasty, sync, slots=1)
    await hasty.aclose()


async def test_entries_left_by_a_killed_worker_are_failed_by_maintenance(
    hire: Hire, queue: rq.Queue, sync: Redis
) -> None:
    """Killed between the script and the transaction: the bell stands in the intermediate list since over a minute."""
    job = ring(queue, "note", "lost")
    sync.lmove(queue.key, queue.intermediate_queue_key, "LEFT", "RIGHT")
    sync.set(queue.intermediate_queue.get_first_seen_key(job.id), 0)
    async with working(hire(maintenance_s=1)):
        assert "stuck in intermediate queue" in await failure(job)
    assert sync.llen(queue.intermediate_queue_key) == 0
