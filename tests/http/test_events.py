"""Server-sent events over a real socket: every change of status once, and none lost between two connections."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from service.domain import events
from service.storage.connection import connect
from service.storage.desk import Desk
from tests.contract.valkey import Valkey
from tests.serving import Serving, move, person, serving

pytest_plugins = ["tests.fixtures_web"]
pytestmark = [pytest.mark.anyio, pytest.mark.processes]

WITHIN_S = 15.0
Event = dict[str, Any]


@asynccontextmanager
async def streamed(client: httpx.AsyncClient, path: str, after: str = "") -> AsyncIterator[AsyncIterator[Event]]:
    """The stream has begun once this is entered: what happens from then on is in it."""
    headers = {"Last-Event-ID": after} if after else {}
    async with client.stream("GET", path, headers=headers) as answer:
        assert (answer.status_code, answer.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
        yield parsed(answer)


async def parsed(answer: httpx.Response) -> AsyncIterator[Event]:
    event: Event = {}
    async for line in answer.aiter_lines():
        if line == "" and event:
            yield event
            event = {}
        elif line and not line.startswith(":"):
            name, _, value = line.partition(": ")
            event[name] = json.loads(value) if name == "data" else value


async def first(stream: AsyncIterator[Event], count: int) -> list[Event]:
    async with asyncio.timeout(WITHIN_S):
        return [await anext(stream) for _ in range(count)]


async def all_of(stream: AsyncIterator[Event]) -> list[Event]:
    async with asyncio.timeout(WITHIN_S):
        return [event async for event in stream]


async def order(client: httpx.AsyncClient) -> str:
    return str((await client.post("/v1/jobs", json={"model": "flux-dev", "prompt": "a fox"})).json()["id"])


INTENDED = events.Intended(attempt=1, delay_s=60)
ACCEPTED = events.TaskAccepted(attempt=1, provider_id="task-1", delay_s=60)
POLLED = events.Polled(delay_s=60)
CANCELLED = events.CancelAsked()
FUTURE = "9999999999999-0"
LOST = "1763848005123-0"  # of a Redis that came back empty
BEGINNING = "0-0"


async def test_a_jobs_stream_tells_every_change_and_closes_after_the_last(alice: httpx.AsyncClient, desk: Desk) -> None:
    job_id = await order(alice)
    async with streamed(alice, f"/v1/jobs/{job_id}/events") as stream:
        told = await first(stream, 1)
        await move(desk, job_id, INTENDED, ACCEPTED, POLLED, CANCELLED)
        told += await all_of(stream)
    assert [event["event"] for event in told] == [
        "job.queued", "job.submitting", "job.generating", "job.cancelled",
    ]  # fmt: skip
    assert [event["data"]["reason"] for event in told] == ["created", "intended", "accepted", "cancel_asked"]
    assert {event["data"]["id"] for event in told} == {job_id}
    assert told[0]["data"]["at"].endswith("Z")
    assert told[0]["data"]["batch_id"] is None


async def test_a_stream_goes_on_where_the_last_one_ended(alice: httpx.AsyncClient, desk: Desk) -> None:
    job_id = await order(alice)
    await move(desk, job_id, INTENDED, ACCEPTED, CANCELLED)
    async with streamed(alice, f"/v1/jobs/{job_id}/events") as stream:
        told = await all_of(stream)
    async with streamed(alice, f"/v1/jobs/{job_id}/events", told[1]["id"]) as stream:
        assert await all_of(stream) == told[2:]
    answer = await alice.get(f"/v1/jobs/{job_id}/events", headers={"Last-Event-ID": told[-1]["id"]})
    assert answer.status_code == 204  # an EventSource comes no more


async def test_a_caller_hears_of_own_jobs_alone_and_admin_of_all(web: Serving, alice: httpx.AsyncClient) -> None:
    async with (
        person("bob", web.url) as bob,
        person("admin", web.url) as admin,
        streamed(alice, "/v1/events") as hers,
        streamed(admin, "/v1/events") as everybodys,
    ):
        theirs, hers_1, hers_2 = await order(bob), await order(alice), await order(alice)
        assert [event["data"]["id"] for event in await first(hers, 2)] == [hers_1, hers_2]
        assert [event["data"]["id"] for event in await first(everybodys, 3)] == [theirs, hers_1, hers_2]


async def test_what_happened_between_two_connections_is_told(alice: httpx.AsyncClient) -> None:
    async with streamed(alice, "/v1/events") as stream:
        await order(alice)
        (seen,) = await first(stream, 1)
    missed = [await order(alice) for _ in range(600)]  # more than one page of the stream
    async with streamed(alice, "/v1/events", seen["id"]) as stream:
        assert [event["data"]["id"] for event in await first(stream, 600)] == missed
        late = await order(alice)
        assert (await first(stream, 1))[0]["data"]["id"] == late


async def test_from_before_the_first_event_all_are_told_while_none_was_dropped(own_valkey: Valkey) -> None:
    with serving(own_valkey.url) as web:
        async with person("alice", web.url) as alice:
            async with streamed(alice, "/v1/events", LOST) as stream:
                (reset,) = await first(stream, 1)
            assert (reset["event"], reset["id"]) == ("reset", BEGINNING)  # there is no event yet
            ordered = [await order(alice) for _ in range(2)]
            async with streamed(alice, "/v1/events", BEGINNING) as stream:
                assert [event["data"]["id"] for event in await first(stream, 2)] == ordered
            async with streamed(alice, "/v1/events", LOST) as stream:
                assert [event["event"] for event in await first(stream, 1)] == ["reset"]
            redis = connect(own_valkey.url, timeout_s=5.0)
            await redis.xtrim("dr1:events", maxlen=1, approximate=False)
            await redis.aclose()
            async with streamed(alice, "/v1/events", BEGINNING) as stream:
                assert [event["event"] for event in await first(stream, 1)] == ["reset"]


async def test_what_is_no_longer_kept_is_a_reset(alice: httpx.AsyncClient, desk: Desk) -> None:
    async with streamed(alice, "/v1/events") as stream:
        await order(alice)
        (seen,) = await first(stream, 1)
    await order(alice)
    await desk.store._redis.xtrim("dr1:events", maxlen=1, approximate=False)
    async with streamed(alice, "/v1/events", seen["id"]) as stream:
        late = await order(alice)
        told = await first(stream, 2)
    assert [event["event"] for event in told] == ["reset", "job.queued"]
    assert told[1]["data"]["id"] == late


async def test_an_id_from_the_future_is_a_reset(alice: httpx.AsyncClient) -> None:
    """A primary that was ahead is lost, and an older replica took over."""
    await order(alice)
    async with streamed(alice, "/v1/events", FUTURE) as stream:
        late = await order(alice)
        told = await first(stream, 2)
    assert [event["event"] for event in told] == ["reset", "job.queued"]
    assert told[1]["data"]["id"] == late
    assert told[0]["id"] < told[1]["id"] < FUTURE


async def test_a_jobs_stream_resets_an_id_from_the_future(alice: httpx.AsyncClient, desk: Desk) -> None:
    job_id = await order(alice)
    path = f"/v1/jobs/{job_id}/events"
    async with streamed(alice, path, FUTURE) as stream:
        told = await first(stream, 1)
        await move(desk, job_id, CANCELLED)
        told += await all_of(stream)
    assert [event["event"] for event in told] == ["reset", "job.cancelled"]
    async with streamed(alice, path, FUTURE) as stream:
        (told_late,) = await all_of(stream)
    assert (told_late["event"], told_late["id"]) == ("reset", told[1]["id"])
    answer = await alice.get(path, headers={"Last-Event-ID": told_late["id"]})
    assert answer.status_code == 204


async def test_streams_share_one_connection_and_many_hear_the_same(
    web: Serving, alice: httpx.AsyncClient, desk: Desk
) -> None:
    job_id = await order(alice)

    async def hear() -> list[str]:
        async with person("alice", web.url) as client, streamed(client, f"/v1/jobs/{job_id}/events") as stream:
            heard = await first(stream, 1)
            listening.release()
            return [event["event"] for event in heard + await all_of(stream)]

    listening = asyncio.Semaphore(0)
    hearing = [asyncio.create_task(hear()) for _ in range(30)]
    for _ in hearing:
        await listening.acquire()
    blocked = [client for client in await desk.store._redis.client_list() if client["cmd"] == "xread"]
    await move(desk, job_id, CANCELLED)
    assert {tuple(heard) for heard in await asyncio.gather(*hearing)} == {("job.queued", "job.cancelled")}
    assert len(blocked) == 1


async def test_at_shutdown_streams_close_in_peace(redis_url: str) -> None:
    with serving(redis_url) as web:
        async with person("alice", web.url) as alice:
            job_id = await order(alice)
            async with streamed(alice, f"/v1/jobs/{job_id}/events") as one, streamed(alice, "/v1/events") as all_jobs:
                await first(one, 1)
                web.server.should_exit = True
                assert await all_of(one) == []
                assert await all_of(all_jobs) == []


async def test_with_redis_away_a_stream_is_503(own_valkey: Valkey) -> None:
    with serving(own_valkey.url) as web:
        async with person("alice", web.url) as alice:
            own_valkey.kill()
            for path in ("/v1/events", "/v1/jobs/job_01JD0000000000000000000000/events"):
                answer = await alice.get(path)
                assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")


async def test_a_stream_survives_that_redis_was_away(own_valkey: Valkey) -> None:
    """The Valkey here keeps nothing: the stream ends, so that its client comes again and learns what was lost."""
    with serving(own_valkey.url) as web:
        async with person("alice", web.url) as alice:
            await order(alice)
            async with streamed(alice, "/v1/events") as stream:
                own_valkey.kill()
                own_valkey.start()
                assert await all_of(stream) == []
            async with streamed(alice, "/v1/events") as stream:
                job_id = await order(alice)
                assert (await first(stream, 1))[0]["data"]["id"] == job_id


@pytest.mark.parametrize("after", [LOST, FUTURE])
async def test_after_redis_came_back_empty_every_id_is_a_reset(own_valkey: Valkey, after: str) -> None:
    with serving(own_valkey.url) as web:
        async with person("alice", web.url) as alice:
            await order(alice)
            async with streamed(alice, "/v1/events") as stream:
                own_valkey.kill()
                own_valkey.start()
                assert await all_of(stream) == []
            async with streamed(alice, "/v1/events", after) as stream:
                job_id = await order(alice)
                told = await first(stream, 2)
    assert [event["event"] for event in told] == ["reset", "job.queued"]
    assert told[1]["data"]["id"] == job_id


@pytest.mark.parametrize("left", [[], [LOST]])
async def test_listeners_hear_of_a_store_whose_ids_went_back(own_valkey: Valkey, left: list[str]) -> None:
    """The reader stood at an id that the new primary, empty or not, reaches only in years."""
    redis = connect(own_valkey.url, timeout_s=5.0)
    row: dict[Any, Any] = {"id": "job_x", "caller": "bob", "status": "queued", "at": "0"}
    await redis.xadd("dr1:events", row, FUTURE)
    with serving(own_valkey.url) as web:
        async with person("alice", web.url) as alice:
            async with streamed(alice, "/v1/events") as stream:
                await redis.delete("dr1:events")
                for eid in left:
                    await redis.xadd("dr1:events", row, eid)
                await redis.client_kill_filter(_type="normal", skipme=True)
                assert await all_of(stream) == []
            async with streamed(alice, "/v1/events") as stream:
                job_id = await order(alice)
                assert (await first(stream, 1))[0]["data"]["id"] == job_id
    await redis.aclose()
