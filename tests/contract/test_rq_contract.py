"""What workers/worker.py and service/storage/bell.py stand on of RQ 3.0 beyond RQ's documentation.

When one of these is red after an upgrade, read the two files against the new RQ before anything else.
"""

import asyncio
import inspect
import re
from operator import attrgetter
from pathlib import Path
from typing import Final

import pytest
import rq
import rq.executions
import rq.intermediate_queue
import rq.job
import rq.results
import rq.version
import rq.worker
import rq.worker_registration
from rq.job import Job
from rq.utils import now
from rq.worker import SimpleWorker

from service.storage.connection import AsyncRedis, Redis, connect, connect_sync
from tests.contract.chores import ChoreJob, open_desk
from workers.worker import AsyncWorker

PARTS: Final = {
    "executions.Execution.create": "job, ttl, pipeline, worker_name",
    "job.Job.fetch_many": "job_ids, connection, serializer",
    "job.Job.prepare_for_execution": "self, worker_name, pipeline",
    "job.Job.refresh": "self",
    "job.Job.restore": "self, raw_data",
    "job.Job.to_dict": "self, include_meta, include_result",
    "queue.Queue.enqueue": "self, f, args, kwargs",
    "queue.Queue.get_redis_server_version": "self",
    "results.Result.get_key": "job_id",
    "worker.BaseWorker._finalize_failure": "self, job, queue, execution, exc_info",
    "worker.BaseWorker._finalize_success": "self, job, queue, execution, return_value",
    "worker.BaseWorker._set_connection": "self, connection",
    "worker.BaseWorker.clean_registries": "self",
    "worker.BaseWorker.cleanup_execution": "self, job, pipeline, execution",
    "worker.BaseWorker.handle_exception": "self, job, exc_info",
    "worker.BaseWorker.heartbeat": "self, timeout, pipeline",
    "worker.BaseWorker.increment_total_working_time": "self, job_execution_time, pipeline",
    "worker.BaseWorker.register_birth": "self",
    "worker.BaseWorker.register_death": "self",
    "worker.BaseWorker.serialize": "self",
    "worker.BaseWorker.set_state": "self, state, pipeline",
    "worker_registration.register": "worker, pipeline",
}
NOWHERE: Final = "redis://127.0.0.1:1"


def test_rq_is_the_version_that_was_read() -> None:
    assert rq.version.VERSION.split(".")[:2] == ["3", "0"]


@pytest.mark.parametrize("part", PARTS)
def test_each_part_takes_what_it_took(part: str) -> None:
    assert ", ".join(inspect.signature(attrgetter(part)(rq)).parameters) == PARTS[part]


def test_the_other_parts_are_there() -> None:
    assert rq.job.get_current_job() is rq.job._current_job.get() is None
    assert Job.redis_job_namespace_prefix == "rq:job:"
    queue = rq.Queue("submit", connection=connect_sync(NOWHERE, timeout_s=1))
    assert (queue.key, queue.intermediate_queue_key) == ("rq:queue:submit", "rq:queue:submit:intermediate")


def test_what_rq_fetches_in_bulk_it_moves_or_asks_for_its_state() -> None:
    """`ListedJob.fetch_many` judges nothing. RQ calls it of a job class that it was told in three places."""
    sources = {path.name: path.read_text() for path in Path(rq.__file__).parent.rglob("*.py")}
    callers = {name: re.findall(r"(?:self|cls)(?:\.job_class)?\.fetch_many\(", text) for name, text in sources.items()}
    assert {name: found for name, found in callers.items() if found} == {
        "job.py": ["self.fetch_many("],  # fetch_dependencies
        "queue.py": ["self.job_class.fetch_many("],  # move_dependents_to_ready
        "registry.py": ["self.job_class.fetch_many("],  # ReadyJobRegistry.enqueue_jobs
    }


def test_handed_a_pipeline_rq_sends_nothing_by_itself() -> None:
    """The loop would stand still. The clients here reach no server, so whatever is sent raises."""
    connection, sync = connect(NOWHERE, timeout_s=2), connect_sync(NOWHERE, timeout_s=1)
    worker = AsyncWorker("submit", connection, sync, slots=1, job_class=ChoreJob)
    worker.birth_date = worker.last_heartbeat = now()
    pipe = connection.pipeline()
    worker.queue.redis_server_version = (9, 1, 0)
    job = worker.queue.enqueue("tests.contract.chores.note", "a", result_ttl=0, pipeline=pipe)
    execution = worker._register(job, pipe)
    job.ended_at = now()
    worker.heartbeat(pipeline=pipe)  # type: ignore[arg-type]  # as the worker does
    rq.worker_registration.register(worker, pipe)  # type: ignore[arg-type]  # as the worker does
    worker._close(job, execution, pipe)
    assert {"HSET", "RPUSH", "ZADD", "SADD", "DEL", "ZREM", "SREM"} <= {args[0] for args, _ in pipe.command_stack}


@pytest.mark.anyio
async def test_a_bell_leaves_as_little_behind_us_as_behind_rq(connection: AsyncRedis, sync: Redis) -> None:
    """`_close` repeats what RQ deletes for a result_ttl of 0."""
    queue = rq.Queue("submit", connection=sync, serializer="json", job_class=ChoreJob)
    stock = SimpleWorker([queue], connection=sync, job_class=ChoreJob, serializer="json")
    ours = AsyncWorker("submit", connection, sync, slots=1, job_class=ChoreJob)
    with open_desk() as desk:
        queue.enqueue("tests.contract.chores.note_plainly", "a", result_ttl=0)
        stock.work(burst=True)
        left = kept(sync)
        queue.enqueue("tests.contract.chores.note_plainly", "b", result_ttl=0)
        running = asyncio.create_task(ours.run())
        queue.enqueue("tests.contract.chores.note", "c", result_ttl=0)
        await desk.until(lambda: desk.noted == ["a", "b", "c"])
        ours.stop()
        await running
    assert kept(sync) == left


def kept(redis: Redis) -> list[bytes]:
    return sorted(key for key in redis.scan_iter() if not key.startswith((b"rq:worker", b"rq:clean_registries")))
