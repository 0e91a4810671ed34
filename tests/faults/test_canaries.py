"""Jobs of every kind on a system whose secrets are canaries; then all that anybody reads is searched for them (F62).

F47, the tokens of callbacks, a thousand of them, under deaths of every part, which is when errors are told.
"""

import base64
import json
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import httpx
import psutil
import pytest

from deploy.local.stack import Stack
from tests.faults.canaries import (
    HOOK_PATH,
    HOOK_SECRET,
    IMAGE,
    PROMPT,
    Canaries,
    Heaps,
    append_only_file,
    callback_tokens,
    command_lines,
    event_streams,
    in_redis,
    logs,
    metadata,
    sidecars,
)
from tests.integration.house import House

pytestmark = [pytest.mark.processes, pytest.mark.timeout(240)]

RECEIVER: Final = "http://127.0.0.1:9"  # nobody is there, so that each notification fails and says why
USER: Final = {
    "API_TOKENS": f"admin:canary-admin-{'a' * 32},alice:canary-alice-{'b' * 32}",
    "NOTIFY_SECRETS": ",".join(
        f"{name}:whsec_" + base64.b64encode(b"canary-notify-secret-of-" + name.encode() * 2).decode()
        for name in ("alice", "admin")
    ),
    "NOTIFY_HOSTS": RECEIVER.removeprefix("http://"),
    "LOG_LEVEL": "debug",
    "UNKNOWN_WAIT_S": "1",
}
REHEARSAL: Final = ["--latency-s", "0.5", "--latency-spread-s", "0.3", "--fresh-url", "0"]  # one signature a task
TOKENS: Final = 1000
PARTS: Final = ("redis", "store", "workers-1", "http")
KINDS: Final = ("", "[moderated]", "[error]", "[truncated]", "[private-url]", "[forged]", "[drop-answer]", "[lost]")
SAYS_SO: Final = ("prompt",)  # what records and sidecars are for
KEPT: Final = ("prompt", "image URLs' signatures")  # a record keeps its URL until the image is in the bucket


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with Stack(tmp_path_factory.mktemp("canaries"), user=USER, rehearsal=REHEARSAL) as stack:
        house = House(stack)
        yield house
        house.close()


def test_no_secret_is_where_it_must_not_be(house: House) -> None:
    canaries = Canaries(house)
    told, waiting = in_the_queues(house)
    ids = [waiting, *(ordered(house, kind, callback_url=f"{RECEIVER}/") for kind in KINDS), ordered_as_flux(house)]
    stuck = ordered(house, "[stuck]")
    told |= refusals(house, stuck)
    house.http.post(f"/v1/jobs/{stuck}/cancel").raise_for_status()
    jobs = house.await_ended([*ids, stuck])
    moderated = next(job["id"] for job in jobs if job["error"] and job["error"]["code"] == "moderated")
    retry = house.http.post(f"/v1/jobs/{moderated}/retry").raise_for_status().json()["id"]
    jobs += house.await_ended([retry])
    done = [job["id"] for job in jobs if job["status"] == "succeeded"]
    canaries.learn(house.http.get(f"/v1/jobs/{job_id}/image").headers["location"] for job_id in done)
    told |= event_streams(house, ids) | pages(house)
    house.http.delete(f"/v1/jobs/{done[0]}").raise_for_status()
    house.await_that(lambda: not any(done[0] in key for key in house.keys("")), 60)  # nothing goes while we read
    told |= logs(house) | command_lines(house) | in_redis(house, "rq:*") | metadata(house)
    records = in_redis(house, "dr1:*") | append_only_file(house)
    shown = {"jobs": house.http.get("/v1/jobs", params={"limit": 200}).text} | sidecars(house)
    sizes = {name: len(values) for name, values in canaries.secrets.items()}
    print(f"jobs: {Counter(job['status'] for job in jobs)}, of them 1 a retry and 1 deleted; canaries: {sizes}")
    print(f"searched {len(told)} texts of {sum(map(len, told.values()))} characters, and {len(records)} of Redis")
    assert all(canaries.secrets.values())
    assert canaries.found_in(told) == []
    assert canaries.found_in(records, *KEPT) == []
    assert canaries.found_in(shown, *SAYS_SO) == []
    assert canaries.found_in(shown), "what is there is found: the prompt"


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_no_token_of_a_thousand_jobs_is_in_a_log_or_in_redis(house: House) -> None:
    """F47: the provider echoes each one, a stranger who guesses says it again, and each part dies once meanwhile."""
    with ThreadPoolExecutor(1) as pool:
        posted = pool.submit(house.post_many, TOKENS, "token")
        for name in PARTS:
            house.stack.await_next(name, house.stack.kill(name), 120)
        ids = posted.result()
    jobs = house.await_ended(ids, 1800)
    tokens, told = callback_tokens(house, jobs), house.ledger()["submissions"]
    urls = [each["webhook_url"] for each in told if each["webhook_url"].split("/")[-2] in set(ids)]
    assert {url.rpartition("/")[2] for url in urls} <= set(tokens), "these are the tokens that there are"
    statuses = Counter(house.http.post(url + more, content=b"{").status_code for url in urls for more in ("", "x"))
    assert set(statuses) == {204, 404}
    canaries = Canaries(house)
    canaries.secrets = {"callback tokens": {token.rpartition(".")[2] for token in tokens}}
    heaps = logs(house) | in_redis(house, "*") | append_only_file(house)
    print(f"{len(jobs)} jobs: {Counter(job['status'] for job in jobs)}; {len(tokens)} tokens, {len(urls)} given out;")
    print(f"answered by us, of strangers' posts: {dict(statuses)}")
    print(f"searched: {len(heaps)} texts of {sum(map(len, heaps.values()))} characters")
    assert len(tokens) >= TOKENS
    assert canaries.found_in({"the provider's ledger": str(told)}), "what is there is found"
    assert canaries.found_in(heaps) == []


def in_the_queues(house: House) -> tuple[Heaps, str]:
    """RQ's entries as they wait, while no worker takes them."""
    workers = psutil.Process(house.stack.pids["workers-1"])
    workers.suspend()
    try:
        job_id = ordered(house, "", model="flux-kontext-pro", input_image=IMAGE)
        house.await_that(lambda: any("rq:job:" in name for name in in_redis(house, "rq:*")), 10)
        return {f"waiting {name}": text for name, text in in_redis(house, "rq:*").items()}, job_id
    finally:
        workers.resume()


def refusals(house: House, stuck: str) -> Heaps:
    """The bodies of errors whose requests were full of secrets."""
    ask, url = house.http, house.url
    forged = {"status": "Ready", "result": {"sample": "https://a.bfl.ai/x.png?sig=guess"}, "secret": "guessed"}
    house.await_that(lambda: house.job(stuck)["provider_id"] is not None, 30)
    mine = [each for each in house.ledger()["submissions"] if stuck in each["webhook_url"]]
    answers = [
        httpx.post(f"{url}/v1/jobs", json={}, headers={"Authorization": f"Bearer {PROMPT}"}, trust_env=False),
        ask.post("/v1/jobs", json={"model": PROMPT, "prompt": PROMPT, "width": PROMPT}),
        ask.post("/v1/jobs", json={"model": "flux-dev", "prompt": PROMPT, "callback_url": f"http://{PROMPT}/"}),
        ask.post("/v1/jobs", content=b"{" + PROMPT.encode()),
        ask.get("/v1/nothing", params={"prompt": PROMPT}),
        ask.get("/v1/jobs", params={"cursor": PROMPT, "status": PROMPT}),
        ask.get(f"/v1/jobs/{stuck}/image"),
        ask.post(f"/v1/jobs/{stuck}/retry"),
        *(ask.post(each["webhook_url"], content=json.dumps(forged)) for each in mine),
        *(ask.post(each["webhook_url"] + "x", content=json.dumps(forged)) for each in mine),
    ]
    assert {answer.status_code for answer in answers} == {400, 401, 404, 409, 422}
    return {f"answer {n}: {answer.status_code}": answer.text for n, answer in enumerate(answers)}


def pages(house: House) -> Heaps:
    return {path: house.http.get(path).text for path in ("/metrics", "/readyz", "/healthz", "/openapi.json", "/docs")}


def ordered_as_flux(house: House) -> str:
    """With a webhook and a secret of the client's own."""
    body = {"prompt": PROMPT, "webhook_url": f"{RECEIVER}/{HOOK_PATH}", "webhook_secret": HOOK_SECRET}
    job_id: str = house.http.post("/flux/v1/flux-pro-1.1", json=body).raise_for_status().json()["id"]
    return job_id


def ordered(house: House, kind: str, **more: Any) -> str:
    body = {"model": "flux-pro-1.1", "prompt": f"{PROMPT} {kind}"} | more
    job_id: str = house.http.post("/v1/jobs", json=body).raise_for_status().json()["id"]
    return job_id
