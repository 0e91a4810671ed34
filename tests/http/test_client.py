"""The client against the service itself, on real sockets that are cut, refused and full."""

import ast
import asyncio
import inspect
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

import service.client
from service.client import AsyncClient, Client, Event, Patience, ServiceError, Unfinished, Unreachable
from service.domain import events
from service.storage.desk import Desk
from tests.contract.valkey import Valkey
from tests.cutting_proxy import CuttingProxy
from tests.serving import PEOPLE, Serving, move, serving

pytest_plugins = ["tests.fixtures_web"]
pytestmark = [pytest.mark.anyio, pytest.mark.processes]

ORDER = {"model": "flux-dev", "prompt": "a red fox in the snow"}
INTENDED = events.Intended(attempt=1, delay_s=60)
ACCEPTED = events.TaskAccepted(attempt=1, provider_id="task-1", delay_s=60)
WITHIN_S = 20.0


class Pauses:
    """Takes no time: notes how long it should have been, and lets the test mend what is broken meanwhile."""

    def __init__(self, mend: Callable[[], Awaitable[object]] | None = None) -> None:
        self.asked_s: list[float] = []
        self._mend = mend

    async def __call__(self, seconds: float) -> None:
        if seconds:
            self.asked_s.append(seconds)
            if self._mend is not None:
                await self._mend()


def at(url: str, pauses: Pauses | None = None, **more: Any) -> AsyncClient:
    return AsyncClient(url, PEOPLE["alice"], patience=Patience(**more), sleep=pauses or Pauses())


@pytest.fixture
async def darkroom(web: Serving) -> AsyncIterator[AsyncClient]:
    async with at(web.url) as client:
        yield client


@pytest.fixture
async def proxy(web: Serving) -> AsyncIterator[CuttingProxy]:
    async with CuttingProxy("127.0.0.1", int(web.url.rpartition(":")[2])) as made:
        yield made


async def all_of(client: AsyncClient, **how: Any) -> list[str]:
    return [job["id"] async for job in client.jobs(**how)]


# ---- jobs --------------------------------------------------------------------------------------------------------


async def test_a_job_is_ordered_waited_for_retried_and_listed(darkroom: AsyncClient, desk: Desk) -> None:
    job = await darkroom.submit(ORDER)
    waiting = asyncio.create_task(darkroom.wait(job["id"]))
    await move(desk, job["id"], INTENDED, ACCEPTED, events.CancelAsked())
    ended = await asyncio.wait_for(waiting, WITHIN_S)
    assert (ended["status"], ended["attempts"]) == ("cancelled", 1)
    again = await darkroom.retry(job["id"])
    assert (again["retry_of"], again["status"]) == (job["id"], "generating")
    assert await darkroom.get(job["id"]) == ended | {"unsettled": False}, "what it had bought is its retry's"
    assert await all_of(darkroom) == [again["id"], job["id"]]
    assert await all_of(darkroom, status="generating") == [again["id"]]
    assert [moment["reason"] for moment in (await darkroom.log(job["id"]))["events"]][:2] == ["created", "intended"]


async def test_a_deleted_job_is_unknown(darkroom: AsyncClient) -> None:
    job = await darkroom.submit(ORDER)
    assert (await darkroom.cancel(job["id"]))["status"] == "cancelled"
    await darkroom.delete(job["id"])
    with pytest.raises(ServiceError) as told:
        await darkroom.get(job["id"])
    assert (told.value.status, told.value.code) == (404, "not_found")


def test_the_client_without_asyncio_does_the_same(web: Serving) -> None:
    with Client(web.url, PEOPLE["alice"]) as darkroom:
        job = darkroom.submit(ORDER, wait_s=0.5)
        assert darkroom.cancel(job["id"])["status"] == darkroom.wait(job["id"])["status"] == "cancelled"
        assert [event.type for event in darkroom.events(job["id"])] == ["job.queued", "job.cancelled"]
        assert [listed["id"] for listed in darkroom.jobs()] == [job["id"]]


async def test_a_list_is_walked_over_its_pages(darkroom: AsyncClient) -> None:
    made = [(await darkroom.submit(ORDER))["id"] for _ in range(201)]
    assert await all_of(darkroom) == sorted(made, reverse=True)


async def test_a_mistake_names_its_field(darkroom: AsyncClient) -> None:
    with pytest.raises(ServiceError) as told:
        await darkroom.submit(ORDER | {"width": 1})
    assert (told.value.code, told.value.errors[0]["pointer"]) == ("invalid_request", "/width")
    assert told.value.request_id


async def test_a_wait_that_is_over_says_how_far_the_job_is(darkroom: AsyncClient) -> None:
    job = await darkroom.submit(ORDER)
    with pytest.raises(Unfinished) as told:
        await darkroom.wait(job["id"], timeout_s=0)
    assert told.value.job["status"] == "queued"


@pytest.mark.parametrize("id_", ["../jobs", "a/b?c", "%2e%2e"])
async def test_an_id_is_one_segment_of_a_path_whatever_is_in_it(darkroom: AsyncClient, id_: str) -> None:
    with pytest.raises(ServiceError) as told:
        await darkroom.get(id_)
    assert told.value.status == 404


# ---- asking again ------------------------------------------------------------------------------------------------


async def test_an_order_whose_answer_was_cut_is_one_job(proxy: CuttingProxy, darkroom: AsyncClient) -> None:
    async def mend() -> None:
        proxy.cut_down_bytes = None

    pauses = Pauses(mend)
    proxy.cut_down_bytes = 40
    async with at(proxy.url, pauses) as client:
        job = await client.submit(ORDER)
    assert (proxy.cuts, len(pauses.asked_s)) == (1, 1)
    assert await all_of(darkroom) == [job["id"]]


async def test_a_cancel_whose_answer_was_cut_is_a_cancel(proxy: CuttingProxy, darkroom: AsyncClient) -> None:
    async def mend() -> None:
        proxy.cut_down_bytes = None

    job = await darkroom.submit(ORDER)
    proxy.cut_down_bytes = 40
    async with at(proxy.url, Pauses(mend)) as client:
        assert (await client.cancel(job["id"]))["status"] == "cancelled"
    with pytest.raises(ServiceError, match="already_ended"):
        await darkroom.cancel(job["id"])


async def test_a_full_backlog_is_tried_again_not_before_it_is_welcome(redis_url: str) -> None:
    with serving(redis_url, BACKLOG_MAX="1", FLUX_MAX_IN_FLIGHT="1") as web:
        async with at(web.url) as first:
            jobs = [await first.submit(ORDER)]

            async def mend() -> None:
                await first.cancel(jobs[0]["id"])

            pauses = Pauses(mend)
            async with at(web.url, pauses) as client:
                assert (await client.submit(ORDER))["status"] == "queued"
    assert pauses.asked_s[0] >= 10


async def test_an_outage_of_the_database_is_sat_out(own_valkey: Valkey) -> None:
    async def mend() -> None:
        if len(pauses.asked_s) == 1:
            await asyncio.to_thread(own_valkey.start)

    pauses = Pauses(mend)
    with serving(own_valkey.url) as web:
        async with at(web.url, pauses) as client:
            await client.submit(ORDER)
            own_valkey.kill()
            job = await client.submit(ORDER)
            assert await all_of(client) == [job["id"]]  # the tests' Valkey keeps nothing on disk
    assert pauses.asked_s[0] >= 1


async def test_the_patience_has_an_end(web: Serving, proxy: CuttingProxy) -> None:
    await proxy.refuse()
    async with at(proxy.url, total_s=0.0) as client:
        with pytest.raises(Unreachable, match="after 1 tries"):
            await client.submit(ORDER)
    assert proxy.connections == 0


# ---- events ------------------------------------------------------------------------------------------------------


async def heard(stream: AsyncIterator[Event], count: int) -> list[str]:
    async with asyncio.timeout(WITHIN_S):
        return [(await anext(stream)).type for _ in range(count)]


async def test_events_go_on_where_they_were_cut(proxy: CuttingProxy, darkroom: AsyncClient, desk: Desk) -> None:
    job = await darkroom.submit(ORDER)
    async with at(proxy.url) as client:
        stream = client.events(job["id"])
        told = await heard(stream, 1)
        await proxy.drop()
        await move(desk, job["id"], INTENDED, ACCEPTED, events.CancelAsked())
        async with asyncio.timeout(WITHIN_S):
            told += [event.type async for event in stream]
    assert told == ["job.queued", "job.submitting", "job.generating", "job.cancelled"]
    assert proxy.connections == 2


async def test_all_jobs_are_heard_and_a_gap_is_told(darkroom: AsyncClient) -> None:
    await darkroom.submit(ORDER)
    stream = darkroom.events(after="9999999999999-0")
    assert await heard(stream, 1) == ["reset"]
    job = await darkroom.submit(ORDER)
    async with asyncio.timeout(WITHIN_S):
        assert (await anext(stream)).data["id"] == job["id"]
    await stream.aclose()  # type: ignore[attr-defined]  # an async generator, promised as an iterator


# ---- the package -------------------------------------------------------------------------------------------------


def test_both_clients_take_the_same_calls() -> None:
    def calls(kind: type[Any]) -> dict[str, list[str]]:
        public = inspect.getmembers(kind, inspect.isfunction)
        return {name: [*inspect.signature(call).parameters] for name, call in public if not name.startswith("_")}

    assert calls(Client) == calls(AsyncClient)


def test_it_stands_on_httpx_and_the_standard_library_alone() -> None:
    folder = Path(str(service.client.__file__)).parent
    trees = [ast.walk(ast.parse(path.read_bytes())) for path in folder.glob("*.py")]
    nodes = [node for tree in trees for node in tree]
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    froms = [node for node in nodes if isinstance(node, ast.ImportFrom)]
    assert {node.level for node in froms} <= {0, 1}
    used = plain | {str(node.module) for node in froms if node.level == 0}
    assert {name.partition(".")[0] for name in used} - sys.stdlib_module_names == {"httpx"}
