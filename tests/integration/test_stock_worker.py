"""RQ's own worker, as its command line starts it, serves our queues with nothing of ours but the job class."""

import subprocess
import sys
from pathlib import Path

import pytest

from service.domain.job import Queue
from service.storage.terms import Bell
from tests.steps import Bench

pytest_plugins = ["tests.fixtures_steps"]
pytestmark = [pytest.mark.anyio, pytest.mark.processes]

WITHIN_S = 60
OPTIONS = ("--burst", "--job-class", "workers.worker.ListedJob", "--serializer", "json", "--disable-job-desc-logging")


def serve(bench: Bench, queue: Queue) -> str:
    """What the worker logged, once the queue is empty."""
    rq, stack = Path(sys.executable).with_name("rq"), bench.stack
    command = [str(rq), "worker", *OPTIONS, "--url", stack.redis.url, queue]
    ran = subprocess.run(
        command, check=False, env=stack.environment, cwd=stack.folder, capture_output=True, text=True, timeout=WITHIN_S
    )
    told = ran.stdout + ran.stderr
    assert ran.returncode == 0, told
    return told


async def test_a_stock_worker_runs_our_tasks(bench: Bench) -> None:
    async with bench.steps() as at:
        job_id = await at.new("a lighthouse")
        at.house.desk.ring([Bell(Queue.SUBMIT, job_id), Bell("submit", "job_of_nobody")])
        assert await at.bells(Queue.SUBMIT) == 2
        told = serve(bench, Queue.SUBMIT)
        assert (await at.job(job_id)).status == "generating"
        assert "Job OK" in told
        assert job_id not in told
        bench.finish()
        await at.hasten(job_id)
        await at.house.sweep.round()
        assert await at.bells(Queue.COLLECT) == 1
        serve(bench, Queue.COLLECT)
        bench.audit_job(await at.job(job_id))
