"""The provider's API as we speak it, over a real socket: where a client is sent to, and what it is told of a task."""

import httpx
import pytest

from service.domain import events, layout
from service.domain.job import Image
from service.storage.desk import Desk
from tests.serving import PEOPLE, Serving, move, person

pytest_plugins = ["tests.fixtures_web"]
pytestmark = [pytest.mark.anyio, pytest.mark.processes]

WISH = {"prompt": "a heron", "width": 256, "height": 256}


async def begun(client: httpx.AsyncClient, **headers: str) -> dict[str, str]:
    answer = await client.post("/flux/v1/flux-pro-1.1", json=WISH, headers=headers)
    assert answer.status_code == 200, answer.text
    told: dict[str, str] = answer.json()
    return told


@pytest.mark.parametrize(
    ("proto", "scheme"), [("https", "https"), ("HTTPS", "https"), ("http", "http"), ("ftp", "http")]
)
async def test_behind_a_proxy_that_ends_tls_a_client_polls_over_tls(
    alice: httpx.AsyncClient, web: Serving, proto: str, scheme: str
) -> None:
    told = await begun(alice, **{"X-Forwarded-Proto": proto})
    assert told["polling_url"] == f"{web.url}/flux/v1/get_result?id={told['id']}".replace("http", scheme, 1)


async def test_either_header_carries_the_token_and_no_other_caller_sees_the_task(web: Serving) -> None:
    async with httpx.AsyncClient(base_url=web.url, headers={"x-key": PEOPLE["alice"]}, trust_env=False) as client:
        told = await begun(client)
        assert (await client.get(told["polling_url"])).json()["status"] == "Pending"
    async with person("alice", web.url) as alice, person("bob", web.url) as bob:
        assert (await alice.get(told["polling_url"])).json()["status"] == "Pending"
        answer = await bob.get(told["polling_url"])
        assert (answer.status_code, answer.json()["status"]) == (404, "Task not found")


async def test_the_same_key_is_the_same_task_and_none_is_a_new_one(alice: httpx.AsyncClient) -> None:
    first, again = [await begun(alice, **{"Idempotency-Key": "mine"}) for _ in range(2)]
    assert first == again
    assert (await begun(alice))["id"] != first["id"]
    other = await alice.post("/flux/v1/flux-pro-1.1", json=WISH | {"seed": 1}, headers={"Idempotency-Key": "mine"})
    assert other.status_code == 409


async def test_a_task_that_is_ready_is_told_with_its_times(alice: httpx.AsyncClient, desk: Desk) -> None:
    told = await begun(alice)
    image = Image("nowhere", layout.image_key(told["id"], "png"), "00" * 32, 3, 1, 1, "image/png", 7)
    url = "https://delivery.bfl.ai/x"
    accepted = events.TaskAccepted(attempt=1, provider_id="task-1", delay_s=60)
    ready = events.Ready(attempt=1, provider_id="task-1", url=url, seed=7)
    intended = events.Intended(attempt=1, delay_s=60)
    await move(desk, told["id"], intended, accepted, ready, events.Sealed(image=image), events.SidecarWritten())
    state = (await alice.get(told["polling_url"])).json()
    result = state["result"]
    assert (state["status"], result["prompt"], result["seed"]) == ("Ready", "a heron", 7)
    assert result["duration"] == pytest.approx(result["end_time"] - result["start_time"])
    assert url not in str(state)


async def test_a_task_that_was_cancelled_is_an_error_and_not_pending_for_ever(alice: httpx.AsyncClient) -> None:
    told = await begun(alice)
    (await alice.post(f"/v1/jobs/{told['id']}/cancel")).raise_for_status()
    state = (await alice.get(told["polling_url"])).json()
    assert (state["status"], state["details"]["code"]) == ("Error", "cancelled")
