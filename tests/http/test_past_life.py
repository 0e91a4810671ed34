"""A job's log over a real socket: every transition, also those that leave the status as it was, and what comes next."""

import httpx
import pytest

from service.api.past_life import STEPS, step
from service.domain import events
from service.domain.job import Job, Queue, Status
from service.storage.connection import connect
from service.storage.desk import Desk
from service.storage.store import Store
from service.storage.terms import Limits
from tests.serving import Serving, move, person

pytest_plugins = ["tests.fixtures_web"]
pytestmark = [pytest.mark.anyio, pytest.mark.processes]

ORDER = {"model": "flux-dev", "prompt": "a red fox in the snow"}
INTENDED = events.Intended(attempt=1, delay_s=60)
ACCEPTED = events.TaskAccepted(attempt=1, provider_id="task-1", delay_s=60)


async def ordered(alice: httpx.AsyncClient) -> str:
    return str((await alice.post("/v1/jobs", json=ORDER)).json()["id"])


async def test_a_life_is_told_with_what_changed_no_status(alice: httpx.AsyncClient, desk: Desk) -> None:
    job_id = await ordered(alice)
    polled = events.Polled(delay_s=30, detail="not found")
    await move(desk, job_id, INTENDED, ACCEPTED, polled)
    told = (await alice.get(f"/v1/jobs/{job_id}/log")).json()
    assert [line["reason"] for line in told["events"]] == ["created", "intended", "accepted", "polled"]
    assert [(line["from"], line["status"]) for line in told["events"]][-1] == ("generating", "generating")
    assert told["events"][-1]["detail"] == "not found"
    assert told["events"][0]["by"].startswith("http ")
    assert (told["next"]["what"], told["next"]["paused"]) == ("poll", [])
    assert told["next"]["at"] > told["events"][-1]["at"]


async def test_what_has_nothing_left_to_do_waits_for_nothing(alice: httpx.AsyncClient, desk: Desk) -> None:
    job_id = await ordered(alice)
    await move(desk, job_id, events.CancelAsked())
    assert (await alice.get(f"/v1/jobs/{job_id}/log")).json()["next"]["what"] == "sidecar"
    await move(desk, job_id, events.SidecarWritten())
    assert (await alice.get(f"/v1/jobs/{job_id}/log")).json()["next"] is None


async def test_a_job_that_waits_says_why_nothing_is_submitted(alice: httpx.AsyncClient, desk: Desk) -> None:
    await desk.store.hold("storage", 60)
    job_id = await ordered(alice)
    assert (await alice.get(f"/v1/jobs/{job_id}/log")).json()["next"]["paused"] == ["storage"]


async def test_a_suspect_is_told_in_its_log_and_in_the_figures(redis_url: str, alice: httpx.AsyncClient) -> None:
    """A worker process takes a job in hand and dies."""
    job_id = await ordered(alice)
    redis = connect(redis_url, timeout_s=5)
    dead = Store(redis, Limits(), uid="dead")
    assert (await alice.get(f"/v1/jobs/{job_id}/log")).json()["next"]["suspect"] is None
    assert (await dead.claim(Queue.SUBMIT, job_id, 60))[0]
    assert await dead.quarantine.reap(0) == ("dead",)
    assert (await alice.get(f"/v1/jobs/{job_id}/log")).json()["next"]["suspect"] == {"crashes": 0}
    group = await dead.quarantine.isolate(60)
    assert group
    assert (await dead.claim(Queue.SUBMIT, job_id, 60, alone=group.id))[0]
    await dead.quarantine.blame(group, [60], again_s=0)
    assert (await alice.get(f"/v1/jobs/{job_id}/log")).json()["next"]["suspect"] == {"crashes": 1}
    lines = (await alice.get("/metrics")).text.splitlines()
    assert {f"darkroom_suspect{name} 1.0" for name in ("s", "_groups", "_crashes_most")} <= set(lines)
    await redis.aclose()


async def test_a_secret_in_a_detail_is_not_told(alice: httpx.AsyncClient, desk: Desk) -> None:
    job_id = await ordered(alice)
    detail = "PUT https://store.example/x?X-Amz-Signature=abcdef0123"
    await move(desk, job_id, events.InputsAway(detail=detail, delay_s=5))
    assert "abcdef0123" not in (await alice.get(f"/v1/jobs/{job_id}/log")).text


async def test_another_callers_log_is_as_unknown_as_any_other(web: Serving, alice: httpx.AsyncClient) -> None:
    job_id = await ordered(alice)
    async with person("bob", web.url) as bob:
        answer = await bob.get(f"/v1/jobs/{job_id}/log")
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


@pytest.mark.parametrize("status", Status)
def test_every_state_has_a_next_step(status: Status) -> None:
    assert step(Job(id="job_x", caller="alice", model="flux-dev", request={}, status=status)) in STEPS
