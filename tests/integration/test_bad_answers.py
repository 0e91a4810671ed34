"""What a bad message or answer leads to: a clear code, a sidecar, and nothing of it in the bucket."""

import json
from typing import Any

import httpx
import pytest

from service.domain import layout
from tests.integration.house import House

pytestmark = [pytest.mark.processes, pytest.mark.timeout(240)]


@pytest.fixture(autouse=True)
def calm(house: House) -> None:
    house.control(latency_s=0.2, latency_spread_s=0, max_in_flight=24)


@pytest.mark.parametrize(
    ("mark", "code", "retryable"),
    [
        ("[moderated]", "moderated", False),
        ("[error]", "provider_error", True),
        ("[truncated]", "result_invalid", True),
        ("[html]", "result_invalid", True),
        ("[oversized]", "result_invalid", True),
        ("[private-url]", "result_invalid", True),
        ("[redirect]", "result_invalid", True),
    ],
)
def test_a_bad_result_ends_the_job_with_its_code(house: House, mark: str, code: str, retryable: bool) -> None:
    job = ended(house, f"a lighthouse {mark}")
    assert job["status"] == "failed"
    assert (job["error"]["code"], job["error"]["retryable"]) == (code, retryable)
    assert job["image"] is None
    sidecar = layout.sidecar_key(job["id"])
    house.await_that(lambda: house.keys(sidecar) == {sidecar}, 60)  # the record decides first, the sidecar follows
    assert json.loads(house.bytes(sidecar)) == job
    assert not any(house.keys(key) for key in layout.image_keys(job["id"]))


def ended(house: House, prompt: str) -> dict[str, Any]:
    answer = house.post(prompt)
    assert answer.status_code == 202, answer.text
    [job] = house.await_ended([answer.json()["id"]], deadline_s=90)
    return job


def test_an_unknown_model_names_itself(house: House) -> None:
    answer = house.post("a lighthouse", model="flux-nope")
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert [error["pointer"] for error in answer.json()["errors"]] == ["/model"]


def test_a_bad_token_is_refused(house: House) -> None:
    answer = httpx.post(f"{house.url}/v1/jobs", json={}, headers={"Authorization": "Bearer wrong"}, trust_env=False)
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")


def test_a_callback_with_a_wrong_proof_is_refused_and_the_job_ends_well(house: House) -> None:
    house.control(latency_s=1, latency_spread_s=0, callback_forged=1, max_in_flight=24)
    job = ended(house, "a lighthouse that is lied about")
    house.audit([job])


def test_what_a_malformed_callback_brings_is_nowhere(house: House) -> None:
    house.control(latency_s=3, latency_spread_s=0, max_in_flight=24)
    job_id = house.insist("a lighthouse with a stranger at the door")
    house.await_that(lambda: bool(house.ledger()["submissions"]), 60)
    [submission] = house.ledger()["submissions"]
    for body in (b"{", b"\xff\xfe", b"[1]", b'{"id": 1e999}', b"[" * 50_000, b'{"status": "Ready"}'):
        answer = httpx.post(submission["webhook_url"], content=body, trust_env=False)
        assert answer.status_code in (204, 401), body[:20]
    [job] = house.await_ended([job_id])
    house.audit([job])
