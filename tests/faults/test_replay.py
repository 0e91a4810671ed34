"""The same callback again and again, in every order, early and late: one image, and the first last word stands."""

import asyncio
import itertools
import json
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import pytest

from deploy.local.stack import Stack
from deploy.local.valkey import Valkey
from deploy.rehearsal.pictures import Picture, draw
from service.domain import events, layout
from service.domain.job import Job, Status
from service.storage.connection import connect
from service.storage.desk import Desk
from service.storage.store import Store
from service.storage.terms import Limits
from service.tokens import CallbackKeys
from tests.faults.bodies import SAMPLE
from tests.faults.http_process import KEYS, HttpProcess, bearer, desk_at
from tests.faults.wire import Wire, request
from tests.integration.house import House
from tests.serving import move

pytestmark = [pytest.mark.anyio, pytest.mark.processes]

COPIES: Final = 50
GALLERY_WITHIN_S: Final = 10.0
INTENDED: Final = events.Intended(attempt=1, delay_s=60)
FIVE: Final[tuple[tuple[str, dict[str, Any]], ...]] = (
    ("progress", {"status": "processing", "progress": 0.2}),
    ("progress", {"status": "Generating", "progress": 0.8}),
    ("ready", {"status": "Ready", "result": {"sample": SAMPLE, "seed": 7}}),
    ("ready", {"status": "SUCCESS", "result": {"sample": SAMPLE, "seed": 7}}),
    ("failed", {"status": "Error", "details": {"error": "generation failed"}}),
)
ENDS: Final = {"ready": Status.COLLECTING, "failed": Status.FAILED}
RANKS: Final = {Status.SUBMITTING: 0, Status.GENERATING: 1, Status.COLLECTING: 2, Status.FAILED: 2}
PLACES: Final = [(0, 5), pytest.param(tuple(range(6)), marks=pytest.mark.soak)]


class Gallery(ThreadingHTTPServer):
    """Serves one image and counts who fetches it."""

    def __init__(self, image: bytes) -> None:
        super().__init__(("127.0.0.1", 0), _Hanger)
        self.image = image
        self.pulls = Counter[str]()


class _Hanger(BaseHTTPRequestHandler):
    server: Gallery

    def do_GET(self) -> None:
        self.server.pulls[self.path] += 1
        self.send_response(200)
        self.send_header("Content-Type", "image/jpeg")
        self.send_header("Content-Length", str(len(self.server.image)))
        self.end_headers()
        self.wfile.write(self.server.image)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- the base class's own name
        pass


@pytest.fixture
def gallery() -> Iterator[Gallery]:
    with Gallery(draw(Picture("fifty", 1, 256, 256, "jpeg"))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join(GALLERY_WITHIN_S)


@pytest.fixture
def house(tmp_path: Path, gallery: Gallery) -> Iterator[House]:
    """Two worker processes, so that both could be rung for the same job."""
    hosts = f"127.0.0.1:{gallery.server_port}"
    with Stack(tmp_path, workers=2, overrides={"FLUX_RESULT_HOSTS": hosts}) as stack:
        house = House(stack)
        yield house
        house.close()


async def test_fifty_copies_at_once_make_one_download_and_one_object(house: House, gallery: Gallery) -> None:
    job_id = await asyncio.to_thread(house.insist, "a fox that is told fifty times [stuck] [lost]")
    await asyncio.to_thread(house.await_that, lambda: bool(house.job(job_id)["provider_id"]))
    [bought] = house.ledger()["submissions"]
    keys = CallbackKeys(house.stack.settings.webhook_keys)
    sample = f"http://127.0.0.1:{gallery.server_port}/image.jpeg?sig=x"
    body = json.dumps({"id": bought["id"], "status": "Ready", "result": {"sample": sample}}).encode()
    path = "/" + bought["webhook_url"].split("/", 3)[3]
    copy = request("POST", path, body, {"X-Webhook-Secret": keys.secret(job_id, 1)})
    port = int(house.url.rpartition(":")[2])
    found = Counter(await asyncio.gather(*(status(port, copy) for _ in range(COPIES))))
    [job] = await asyncio.to_thread(house.await_ended, [job_id])
    found.update(await asyncio.gather(*(status(port, copy) for _ in range(COPIES))))
    objects = house.keys("images/")
    print(f"{COPIES} copies at once, {COPIES} after the end: {dict(found)}; pulls {sum(gallery.pulls.values())}")
    print(f"objects {sorted(objects)}")
    assert found == {204: 2 * COPIES}
    assert gallery.pulls == {"/image.jpeg?sig=x": 1}
    assert objects == {layout.image_key(job_id, "jpeg")}
    assert (job["status"], job["found_by"]) == ("succeeded", "webhook")
    assert house.bytes(job["image"]["key"]) == gallery.image


async def status(port: int, sent: bytes) -> int:
    async with Wire(port) as wire:
        return (await wire.ask(sent)).status


@pytest.mark.parametrize("places", PLACES, ids=lambda places: f"{len(places)} places")
async def test_no_order_of_five_events_takes_a_job_back(
    places: tuple[int, ...], http: HttpProcess, valkey: Valkey
) -> None:
    """All 120 orders, with the submit answer before, after or (soak) anywhere between them."""
    ends: Counter[Status] = Counter()
    async with desk_at(valkey.url) as desk, Wire(http.port) as wire:
        for number, (order, place) in enumerate(itertools.product(itertools.permutations(FIVE), places)):
            job = await move(desk, await ordered(wire), INTENDED)
            ends[await play(desk, wire, job, f"task-{len(places)}-{number}", order, place)] += 1
    print(f"{sum(ends.values())} runs of 5 events ended {dict(ends)}; steps back 0")
    assert sum(ends.values()) == 120 * len(places)
    assert ends[Status.COLLECTING] == 2 * ends[Status.FAILED], "two of the three last words are Ready"


async def play(
    desk: Desk, wire: Wire, job: Job, task: str, order: tuple[tuple[str, dict[str, Any]], ...], place: int
) -> Status:
    """Say all of it; the status in the end."""
    answer = events.TaskAccepted(attempt=1, provider_id=task, delay_s=60)
    for at, (_, payload) in enumerate(order):
        if at == place:
            await desk.tell(job.id, answer)
        assert await heard(wire, job.id, payload | {"id": task}) == 204
        job = await later(desk, job)
    if place == len(order):
        await desk.tell(job.id, answer)
        job = await later(desk, job)
    first = next(word for word, _ in order if word in ENDS)
    assert job.status is ENDS[first], (order, place)
    assert job.tasks == {"1": task}
    return job.status


async def test_a_replay_after_the_end_changes_nothing(http: HttpProcess, valkey: Valkey) -> None:
    """Also once the record is gone: that is how a replay after days looks."""
    async with desk_at(valkey.url) as desk, Wire(http.port) as wire:
        job = await move(desk, await ordered(wire), INTENDED)
        ready = FIVE[2][1] | {"id": "task-replayed"}
        assert await heard(wire, job.id, ready) == 204
        job = await move(desk, job.id, events.CancelAsked(), events.SidecarWritten())
        assert [await heard(wire, job.id, ready) for _ in range(3)] == [204, 204, 204]
        assert await later(desk, job) == job
        await forget(valkey.url)
        assert await desk.store.get(job.id) is None
        assert [await heard(wire, job.id, ready) for _ in range(3)] == [204, 204, 204]
        assert await desk.store.get(job.id) is None, "nor does it come back"
    assert http.lines() == []


async def forget(redis_url: str) -> None:
    """What the sweep does once the retention is over."""
    redis = connect(redis_url, timeout_s=5.0)
    while await Store(redis, Limits(retention_s=0)).expire():
        pass
    await redis.aclose()


async def ordered(wire: Wire) -> str:
    made = await wire.ask(request("POST", "/v1/jobs", b'{"model":"flux-dev","prompt":"x"}', bearer("alice")))
    return (made.header("location") or "").rpartition("/")[2]


async def heard(wire: Wire, job_id: str, payload: dict[str, Any]) -> int:
    body = json.dumps(payload | {"webhook_secret": KEYS.secret(job_id, 1)}).encode()
    return (await wire.ask(request("POST", KEYS.callback_url("", job_id, 1), body))).status


async def later(desk: Desk, before: Job) -> Job:
    """The job now; never further back."""
    job = await desk.store.get(before.id)
    assert job
    assert RANKS.get(job.status, 3) >= RANKS.get(before.status, 3)
    assert before.status not in ENDS.values() or job.status is before.status, "the first last word stands"
    return job
