"""Clients that nobody here wrote, with nothing changed but their base URL: the images are stored, and bought once."""

import base64
import json
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from tests.integration.house import House

pytestmark = pytest.mark.processes

ROOT: Final = Path(__file__).parents[2]
PYTHON: Final = ROOT / ".venv-clients" / "bin" / "python"
WITHIN_S: Final = 150.0


def client(script: str, *arguments: str) -> Any:
    """What the last line says that it printed."""
    run = subprocess.run(
        [str(PYTHON), "-I", str(ROOT / "tests" / "clients" / script), *arguments],
        env={"NO_PROXY": "*"},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=WITHIN_S,
        check=False,
    )
    assert run.stdout, run.stderr
    return json.loads(run.stdout.strip().splitlines()[-1])


def openai(house: House, prompt: str, **told: Any) -> Any:
    asked = {"prompt": prompt, "model": "flux-pro-1.1", "size": "256x256"} | told
    return client("openai_images.py", f"{house.url}/v1", house.stack.caller[1], json.dumps(asked))


def flux(house: House, prompt: str, model: str = "flux-pro-1.1", **told: Any) -> Any:
    asked = json.dumps({"prompt": prompt, "width": 256, "height": 256} | told)
    return client("blackforest_flux.py", house.url, house.stack.caller[1], model, asked)


def bought(house: House, prompt: str) -> int:
    return sum(row["prompt"] == prompt for row in house.ledger()["submissions"])


def stored(house: House, prompt: str) -> list[dict[str, Any]]:
    jobs: list[dict[str, Any]] = house.http.get("/v1/jobs", params={"limit": 200}).json()["jobs"]
    return [job for job in jobs if job["request"]["prompt"] == prompt]


def test_an_openai_client_gets_links_that_can_be_read(house: House) -> None:
    house.control(latency_s=1, latency_spread_s=0)
    told = openai(house, "two boats", n=2)
    assert len(told["data"]) == 2
    jobs = stored(house, "two boats")
    house.audit(jobs)
    seen = {httpx.get(image["url"], trust_env=False).content for image in told["data"]}
    assert seen == {house.bytes(job["image"]["key"]) for job in jobs}
    assert bought(house, "two boats") == 2


def test_an_openai_client_gets_the_bytes_themselves(house: House) -> None:
    house.control(latency_s=1, latency_spread_s=0)
    told = openai(house, "a heron", response_format="b64_json", output_format="png")
    [job] = stored(house, "a heron")
    assert job["image"]["content_type"] == "image/png"
    assert base64.b64decode(told["data"][0]["b64_json"]) == house.bytes(job["image"]["key"])


def test_an_asynchronous_openai_client_may_use_the_models_own_parameters(house: House) -> None:
    house.control(latency_s=1, latency_spread_s=0)
    own = {"steps": 20, "seed": 41, "metadata": {"shop": 7}}
    asked: dict[str, Any] = {"model": "flux-dev", "n": 2, "output_format": "webp", "user": "u-1", "extra_body": own}
    told = openai(house, "two herons", **{"async": True}, **asked)
    assert len(told["data"]) == 2
    jobs = stored(house, "two herons")
    assert {job["image"]["seed"] for job in jobs} == {41, 42}, "one seed would have drawn one picture twice"
    assert {job["request"]["steps"] for job in jobs} == {20}
    assert [job["metadata"] for job in jobs] == [{"shop": 7, "user": "u-1"}] * 2
    assert {job["image"]["content_type"] for job in jobs} == {"image/webp"}


def test_an_openai_client_that_gives_up_and_tries_again_by_itself_buys_once(house: House) -> None:
    house.control(latency_s=8, latency_spread_s=0)
    told = openai(house, "a slow boat", client={"timeout": 3.0, "max_retries": 8})
    assert len(told["data"]) == 1
    assert bought(house, "a slow boat") == 1


def test_the_same_request_of_a_client_that_was_killed_joins_what_it_began(house: House) -> None:
    house.control(latency_s=6, latency_spread_s=0)
    assert openai(house, "a lost boat", client={"timeout": 2.0, "max_retries": 0}) == {"status": None}
    assert len(openai(house, "a lost boat")["data"]) == 1
    assert bought(house, "a lost boat") == 1


def test_an_openai_client_whose_server_is_killed_in_between_buys_once(house: House) -> None:
    house.control(latency_s=5, latency_spread_s=0)
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(openai, house, "a wrecked boat", client={"max_retries": 8})
        house.await_that(lambda: bought(house, "a wrecked boat") == 1, WITHIN_S)
        house.stack.await_next("http", house.stack.kill("http"))
        assert len(asking.result()["data"]) == 1
    assert bought(house, "a wrecked boat") == 1
    assert len(stored(house, "a wrecked boat")) == 1


def test_two_at_once_that_ask_the_same_get_an_image_each(house: House) -> None:
    house.control(latency_s=3, latency_spread_s=0)
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda _: openai(house, "a pair"), range(2)))
    assert len({image["url"] for told in both for image in told["data"]}) == 2
    assert bought(house, "a pair") == 2
    assert len(openai(house, "a pair")["data"]) == 1
    assert bought(house, "a pair") == 3


def test_what_another_try_cannot_help_says_so(house: House) -> None:
    house.control(latency_s=0.5, latency_spread_s=0, moderated=1)
    told = openai(house, "a bad boat")
    assert (told["status"], told["retry"], told["body"]["code"]) == (400, "false", "moderation_blocked")
    told = openai(house, "a boat", size="17x17")
    assert (told["status"], told["retry"], told["body"]["param"]) == (400, "false", "size")
    told = openai(house, "a boat", model="gpt-image-1")
    assert (told["status"], told["retry"], told["body"]["code"]) == (400, "false", "model_not_found")
    assert "flux-pro-1.1" in told["body"]["message"]
    told = openai(house, "a boat", n=11)
    assert (told["status"], told["body"]["param"]) == (400, "n")
    wrong = client("openai_images.py", f"{house.url}/v1", "no-such-token-at-all", json.dumps({"prompt": "a boat"}))
    assert (wrong["status"], wrong["retry"]) == (401, "false")


def test_a_flux_client_gets_a_link_that_is_new_at_each_read(house: House) -> None:
    house.control(latency_s=1, latency_spread_s=0)
    told = flux(house, "a lighthouse")
    [job] = stored(house, "a lighthouse")
    house.audit([job])
    assert httpx.get(told["result"]["sample"], trust_env=False).content == house.bytes(job["image"]["key"])
    assert (told["result"]["prompt"], told["result"]["seed"]) == ("a lighthouse", job["image"]["seed"])
    key = {"x-key": house.stack.caller[1]}
    again = house.http.get(f"/flux/v1/get_result?id={job['id']}", headers=key).json()
    assert again["status"] == "Ready"
    assert httpx.get(again["result"]["sample"], trust_env=False).status_code == 200
    assert bought(house, "a lighthouse") == 1


def test_a_flux_client_is_told_what_is_wrong_in_the_providers_words(house: House) -> None:
    house.control(latency_s=0.5, latency_spread_s=0, moderated=1)
    answer = house.http.post("/flux/v1/flux-pro-1.1", json={"prompt": "x", "width": 1})
    assert (answer.status_code, answer.json()["detail"][0]["loc"]) == (422, ["body", "width"])
    assert house.http.post("/flux/v1/no-such-model", json={"prompt": "x"}).json()["detail"] == "Not Found."
    assert httpx.post(f"{house.url}/flux/v1/flux-dev", json={}, trust_env=False).status_code == 403
    assert house.http.get("/flux/v1/get_result?id=unknown").json()["status"] == "Task not found"
    begun = house.http.post("/flux/v1/flux-pro-1.1", json={"prompt": "a bad thing", "seed": None}).json()
    until = time.monotonic() + WITHIN_S
    while (told := house.http.get(begun["polling_url"]).json())["status"] == "Pending":
        assert time.monotonic() < until
    assert (told["status"], told["result"]) == ("Content Moderated", None)
