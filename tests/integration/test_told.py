"""Callers are told by the running system: over HTTP in, over HTTP out, and through a kill -9 between the two."""

import hashlib
import hmac
import json
import os
import signal
from collections.abc import Iterator
from typing import Final

import pytest
from standardwebhooks.webhooks import Webhook

from deploy.local.ports import free_port
from tests.integration.house import House, opened
from tests.receiver import Receiver, receiving

pytestmark = [pytest.mark.processes, pytest.mark.timeout(240)]

SECRET: Final = "whsec_" + "QUJD" * 10
FLUX_SECRET: Final = "what a Flux client gave us"


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, port: int) -> Iterator[House]:
    told = {"NOTIFY_HOSTS": f"127.0.0.1:{port}", "NOTIFY_SECRETS": f"admin:{SECRET}"}
    yield from opened(tmp_path_factory.mktemp("told"), workers=1, **told)


@pytest.fixture
def receiver(port: int) -> Iterator[Receiver]:
    with receiving(port=port) as server:
        yield server


def test_a_flux_clients_own_webhook_is_called_as_the_provider_would(house: House, receiver: Receiver) -> None:
    house.control(latency_s=0.5, latency_spread_s=0)
    asked = {"prompt": "a told boat", "webhook_url": receiver.url, "webhook_secret": FLUX_SECRET}
    begun = house.http.post("/flux/v1/flux-pro-1.1", json=asked).raise_for_status().json()
    receiver.wait()
    [letter] = receiver.letters
    told = json.loads(letter.body)
    assert (told["id"], told["status"]) == (begun["id"], "Ready")
    image = house.http.get(told["result"]["sample"], headers={"Authorization": ""}).content
    assert hashlib.sha256(image).hexdigest() == house.job(begun["id"])["image"]["sha256"]
    mac = hmac.new(FLUX_SECRET.encode(), letter.body, "sha256").hexdigest()
    assert letter.headers["x-bfl-signature"] == f"sha256={mac}"


def test_a_worker_killed_before_it_notes_the_answer_has_it_sent_again_under_one_id(
    house: House, receiver: Receiver
) -> None:
    house.control(latency_s=0.5, latency_spread_s=0)
    first = house.stack.pids["workers-1"]

    def dies() -> None:
        receiver.before = lambda: None
        os.kill(first, signal.SIGKILL)

    receiver.before = dies
    job_id = house.post("a boat told of twice", callback_url=receiver.url).json()["id"]
    receiver.wait(2)
    [before, after] = receiver.letters
    assert (before.headers["webhook-id"], before.body) == (after.headers["webhook-id"], after.body)
    told = Webhook(SECRET).verify(after.body, after.headers)
    assert (told["type"], told["data"]) == ("job.succeeded", house.job(job_id))
    house.await_that(lambda: state(house, job_id) == "delivered", 30)
    again = house.http.post(f"/v1/jobs/{job_id}/redeliver")
    assert again.status_code == 202
    receiver.wait()
    assert receiver.letters[-1].body == after.body


def state(house: House, job_id: str) -> str:
    return str(house.http.get(f"/v1/jobs/{job_id}/notifications").json()["state"])
