"""What a caller sees of his notifications, and the word to send one again, over a real socket."""

import json
import os
import re
from typing import Any

import httpx
import pytest

from service.domain import events, layout
from service.domain.batch import Batch, BatchStatus
from service.domain.job import Job
from service.domain.notice import NoticeState
from service.seals import Hook, Seals
from service.storage.batches import Line
from service.storage.desk import Desk
from tests.serving import PEOPLE, Serving, move, person, settings_of

pytest_plugins = ["tests.fixtures_web"]
pytestmark = [pytest.mark.anyio, pytest.mark.processes]

URL = "https://caller.example/hook"
ORDER = {"model": "flux-dev", "prompt": "a red fox in the snow", "callback_url": URL}
FLUX = {"prompt": "a red fox in the snow", "webhook_url": URL, "webhook_secret": "canary-of-a-flux-client"}


async def ordered(alice: httpx.AsyncClient, **more: Any) -> str:
    return str((await alice.post("/v1/jobs", json=ORDER | more)).raise_for_status().json()["id"])


async def over(alice: httpx.AsyncClient, desk: Desk, **more: Any) -> str:
    job_id = await ordered(alice, **more)
    await move(desk, job_id, events.CancelAsked(), events.SidecarWritten())
    return job_id


async def told(alice: httpx.AsyncClient, id_: str, kind: str = "jobs") -> dict[str, Any]:
    answer: dict[str, Any] = (await alice.get(f"/v1/{kind}/{id_}/notifications")).raise_for_status().json()
    return answer


async def test_a_notification_waits_for_the_end_is_then_pending_and_shows_its_tries(
    alice: httpx.AsyncClient, desk: Desk
) -> None:
    job_id = await ordered(alice)
    nothing_yet: dict[str, Any] = {"webhook_id": f"msg_{job_id}", "state": "waiting", "next_at": None, "attempts": []}
    assert await told(alice, job_id) == nothing_yet
    await move(desk, job_id, events.CancelAsked(), events.SidecarWritten())
    assert (await told(alice, job_id))["state"] == "pending"
    await desk.store.notices.tell(job_id, NoticeState.PENDING, took_ms=1_500, error="timeout", again_s=60)
    failed = await told(alice, job_id)
    [attempt] = failed["attempts"]
    assert (attempt["status"], attempt["error"], attempt["duration_s"]) == (None, "timeout", 1.5)
    assert failed["next_at"] > attempt["at"]
    await desk.store.notices.tell(job_id, NoticeState.DELIVERED, took_ms=20, status=204)
    delivered = await told(alice, job_id)
    assert (delivered["state"], delivered["next_at"]) == ("delivered", None)
    assert [each["status"] for each in delivered["attempts"]] == [None, 204]


async def test_what_was_delivered_is_sent_again_on_demand(alice: httpx.AsyncClient, desk: Desk) -> None:
    job_id = await over(alice, desk)
    await desk.store.notices.tell(job_id, NoticeState.GIVEN_UP, took_ms=20, status=500)
    again = await alice.post(f"/v1/jobs/{job_id}/redeliver")
    assert (again.status_code, again.json()["state"], len(again.json()["attempts"])) == (202, "pending", 1)
    assert await desk.store.notices.take(job_id, 1.0) is not None


async def test_what_is_not_over_or_wanted_by_nobody_is_not_sent(alice: httpx.AsyncClient, desk: Desk) -> None:
    early = await alice.post(f"/v1/jobs/{await ordered(alice)}/redeliver")
    assert (early.status_code, early.json()["code"]) == (409, "not_ended")
    silent = await over(alice, desk, callback_url=None)
    assert (await told(alice, silent))["state"] == "none"
    nobody = await alice.post(f"/v1/jobs/{silent}/redeliver")
    assert (nobody.status_code, nobody.json()["code"]) == (409, "no_callback")


async def test_a_batch_is_told_of_alike(web: Serving, alice: httpx.AsyncClient, desk: Desk) -> None:
    batch_id = layout.new_id("batch", 1_000_000_000_000, os.urandom(10))
    job_id = layout.new_id("job", 1_000_000_000_000, os.urandom(10))
    assert (await alice.get("/v1/batches/batch_unknown/notifications")).status_code == 404
    store = desk.store.batches
    await store.open(batch_id, "alice", None)
    await store.stage(batch_id, "alice", None, [Line(Job(id=job_id, caller="alice", model="flux-dev", request={}))])
    assert (await alice.post(f"/v1/batches/{batch_id}/redeliver")).status_code == 404, "an upload is no batch yet"
    await store.enroll(Batch(batch_id, "alice", BatchStatus.RUNNING, total=1, callback_url=URL, hash="h"))
    assert (await told(alice, batch_id, "batches"))["state"] == "waiting"
    assert (await alice.post(f"/v1/batches/{batch_id}/redeliver")).json()["code"] == "not_ended"
    await store.mark(batch_id, URL)
    assert (await told(alice, batch_id, "batches"))["state"] == "pending"
    assert (await alice.post(f"/v1/batches/{batch_id}/redeliver")).status_code == 202
    async with person("bob", web.url) as bob:
        assert (await bob.get(f"/v1/batches/{batch_id}/notifications")).status_code == 404


async def test_anothers_notification_is_as_unknown_as_his_job(
    web: Serving, alice: httpx.AsyncClient, desk: Desk
) -> None:
    job_id = await over(alice, desk)
    async with person("bob", web.url) as bob:
        assert (await bob.get(f"/v1/jobs/{job_id}/notifications")).status_code == 404
        assert (await bob.post(f"/v1/jobs/{job_id}/redeliver")).status_code == 404
    assert (await alice.get("/v1/jobs/job_nothing/notifications")).status_code == 404


async def test_figures_of_them_are_told(web: Serving, alice: httpx.AsyncClient, desk: Desk) -> None:
    job_id = await over(alice, desk)
    await desk.store.notices.tell(job_id, NoticeState.PENDING, took_ms=1, status=500, again_s=60)
    page = (await alice.get("/metrics")).text
    assert "darkroom_notifications_pending 1.0" in page
    assert 'darkroom_notification_tries{outcome="failed"} 1.0' in page
    assert re.search(r"darkroom_notifications_oldest_age_seconds [0-9]", page)


async def test_a_flux_clients_hook_is_sealed_and_shown_nowhere(web: Serving, desk: Desk) -> None:
    async with person("alice", web.url) as alice:
        answer = (await alice.post("/flux/v1/flux-dev", json=FLUX)).raise_for_status().json()
        shown = (await alice.get(f"/v1/jobs/{answer['id']}")).text
    assert (answer["status"], answer["webhook_url"]) == ("Pending", URL)
    assert URL not in shown
    job = await desk.store.get(answer["id"])
    assert job
    assert job.hook
    assert Seals(settings_of("redis://127.0.0.1").webhook_keys).open(job.hook) == Hook(URL, FLUX["webhook_secret"])
    kept = [await desk.store._redis.dump(key) async for key in desk.store._redis.scan_iter("*")]
    assert kept
    assert not any(FLUX["webhook_secret"].encode() in (each or b"") for each in kept)
    await move(desk, job.id, events.CancelAsked(), events.SidecarWritten())
    notice = await desk.store.notices.get(job.id)
    assert notice
    assert (notice.url, notice.hook) == (None, job.hook)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("webhook_url", "http://10.0.0.1/"),
        ("webhook_url", ""),
        ("webhook_url", 7),
        ("webhook_secret", ["no"]),
        ("webhook_secret", "x" * 1_025),
    ],
)
async def test_a_flux_clients_hook_that_cannot_be_names_itself(
    alice: httpx.AsyncClient, field: str, value: Any
) -> None:
    answer = await alice.post("/flux/v1/flux-dev", json=FLUX | {field: value})
    assert (answer.status_code, answer.json()["detail"][0]["loc"]) == (422, ["body", field])
    assert PEOPLE["alice"] not in json.dumps(answer.json())
