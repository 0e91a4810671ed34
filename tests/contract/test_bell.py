"""Bells against a real Valkey: what RQ finds in its queues."""

import asyncio
import json
from typing import Final

import pytest
import rq
from rq.job import Job

from service.storage.bell import BELL_TIMEOUT_S, DESCRIPTION, FAILED_KEPT_S, QUEUES, Bells
from service.storage.connection import AsyncRedis, Redis, RedisError, connect, connect_sync
from tests.contract.valkey import Valkey

pytestmark = pytest.mark.anyio

CANARY: Final = "job_01canary"


@pytest.fixture
def bells(connection: AsyncRedis, sync: Redis) -> Bells:
    return Bells(connection, sync)


def entry(redis: Redis, queue: str) -> Job:
    (id_,) = rq.Queue(queue, connection=redis, serializer="json").get_job_ids()
    return Job.fetch(id_, redis, "json")


@pytest.mark.parametrize("queue", QUEUES)
async def test_a_bell_is_an_rq_entry_that_names_a_task_and_an_id(bells: Bells, sync: Redis, queue: str) -> None:
    await bells.ring([(queue, CANARY)])
    job = entry(sync, queue)
    assert (job.func_name, job.args, job.kwargs) == (f"workers.tasks.{queue}", [CANARY], {})
    assert (job.result_ttl, job.failure_ttl, job.timeout) == (0, FAILED_KEPT_S, BELL_TIMEOUT_S)
    assert json.loads(job.data)[0] == f"workers.tasks.{queue}"


async def test_the_description_that_rq_logs_says_nothing_of_the_id(bells: Bells, sync: Redis) -> None:
    await bells.ring([("submit", CANARY)])
    job = entry(sync, "submit")
    assert job.description == DESCRIPTION
    assert CANARY not in job.id


async def test_bells_wait_in_the_order_they_were_rung(bells: Bells, sync: Redis) -> None:
    await bells.ring([("submit", str(number)) for number in range(50)] + [("collect", "other")])
    queue = rq.Queue("submit", connection=sync, serializer="json")
    assert [job.args[0] for job in queue.get_jobs()] == [str(number) for number in range(50)]
    assert [await bells.waiting(name) for name in QUEUES] == [50, 1, 0, 0]


async def test_many_bells_take_one_transaction(bells: Bells, sync: Redis) -> None:
    await bells.ring([("submit", "first")])  # RQ asks for the server's version once
    before = sync.info("commandstats")
    await bells.ring([("submit", str(number)) for number in range(20)])
    after = sync.info("commandstats")
    calls = {name: after[name]["calls"] - before.get(name, {"calls": 0})["calls"] for name in after}
    assert calls["cmdstat_exec"] == calls["cmdstat_multi"] == 1
    assert calls["cmdstat_rpush"] == 20


async def test_nothing_to_ring_sends_nothing(bells: Bells, sync: Redis) -> None:
    await bells.ring([])
    assert sync.keys() == []


async def test_an_unknown_queue_rings_none_of_them(bells: Bells, sync: Redis) -> None:
    with pytest.raises(KeyError):
        await bells.ring([("submit", "a"), ("sbumit", "b")])
    assert sync.keys("rq:*") == []


async def test_a_bell_that_cannot_be_rung_raises_a_redis_error(own_valkey: Valkey) -> None:
    connection, sync = connect(own_valkey.url, timeout_s=2), connect_sync(own_valkey.url, timeout_s=2)
    bells = Bells(connection, sync)
    own_valkey.kill()
    with pytest.raises(RedisError):
        await bells.ring([("submit", "a")])
    await asyncio.to_thread(own_valkey.start)
    await bells.ring([("submit", "b")])
    assert await bells.waiting("submit") == 1
    await connection.aclose()
    sync.close()
