"""The provider's callbacks over a real socket: what is believed, what only rings, and what is not used (F39-F47)."""

import asyncio
import base64
import hashlib
import hmac
import itertools
import json
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, Self

import httpx
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from service.api.webhooks import event
from service.domain import answers, events
from service.domain.events import Event
from service.domain.job import FoundBy, Job, Status
from service.domain.lifecycle import decide
from service.parsers import WebhookKey
from service.storage.desk import Desk
from service.tokens import CallbackKeys, Proof
from tests.contract.valkey import Valkey
from tests.serving import KEY, Serving, move, person, serving

pytest_plugins = ["tests.fixtures_web"]
pytestmark = [pytest.mark.anyio, pytest.mark.processes]

KEYS = CallbackKeys((WebhookKey("k1", base64.b64decode(KEY.partition(":")[2])),))
SAMPLE = "https://delivery.eu1.bfl.ai/a.png?se=2036-11-22T22%3A00%3A00Z&sig=s"
NEW = {"id": "task-1", "status": "Ready", "result": {"sample": SAMPLE, "seed": 7}}
OLD = {"task_id": "task-1", "status": "SUCCESS", "result": {"sample": SAMPLE, "seed": 7}}
INTENDED = events.Intended(attempt=1, delay_s=60)
ACCEPTED = events.TaskAccepted(attempt=1, provider_id="task-1", delay_s=60)


class Provider:
    """Calls back about attempts of one job."""

    def __init__(self, url: str, job_id: str) -> None:
        self.job_id = job_id
        self._http = httpx.AsyncClient(base_url=url, timeout=20, trust_env=False)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def say(self, payload: Any, *, attempt: int = 1, proof: str | None = "right", **headers: str) -> int:
        secret = KEYS.secret(self.job_id, attempt) if proof == "right" else proof
        body = payload | {"webhook_secret": secret} if isinstance(payload, dict) else payload
        return await self.send(json.dumps(body).encode(), attempt, **headers)

    async def send(self, body: bytes, attempt: int = 1, **headers: str) -> int:
        path = KEYS.callback_url("", self.job_id, attempt)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return (await self._http.post(path, content=body, headers=named)).status_code


async def order(web: Serving, desk: Desk, *told: Event) -> Job:
    async with person("alice", web.url) as alice:
        answer = await alice.post("/v1/jobs", json={"model": "flux-dev", "prompt": "a fox"})
    return await move(desk, answer.json()["id"], *told)


async def now(desk: Desk, job: Job) -> Job:
    found = await desk.store.get(job.id)
    assert found
    return found


# ---- believed ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("payload", [OLD, NEW])
async def test_a_proved_ready_is_collected_in_both_dialects(web: Serving, desk: Desk, payload: dict[str, Any]) -> None:
    job = await order(web, desk, INTENDED, ACCEPTED)
    async with Provider(web.url, job.id) as provider:
        assert await provider.say(payload) == 204
    job = await now(desk, job)
    assert (job.status, job.found_by, job.result_url, job.result_seed) == (
        Status.COLLECTING, FoundBy.WEBHOOK, SAMPLE, 7,
    )  # fmt: skip
    assert job.result_expires_at == round(datetime(2036, 11, 22, 22, tzinfo=UTC).timestamp() * 1000)


@pytest.mark.parametrize("kind", ["x_webhook_secret", "x_bfl_signature"])
async def test_the_proof_may_stand_in_a_header_or_in_a_signature(web: Serving, desk: Desk, kind: str) -> None:
    body = json.dumps(NEW).encode()
    job = await order(web, desk, INTENDED, ACCEPTED)
    secret = KEYS.secret(job.id, 1)
    mac = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
    shown = secret if kind == "x_webhook_secret" else f"sha256={mac}"
    async with Provider(web.url, job.id) as provider:
        assert await provider.send(body, 1, **{kind: shown}) == 204
    assert (await now(desk, job)).status is Status.COLLECTING


async def test_a_callback_before_the_submit_answer_supplies_the_id(web: Serving, desk: Desk) -> None:
    job = await order(web, desk, INTENDED)
    async with Provider(web.url, job.id) as provider:
        assert await provider.say({"task_id": "task-9", "status": "processing", "progress": 0.1}) == 204
        job = await now(desk, job)
        assert (job.status, job.tasks) == (Status.GENERATING, {"1": "task-9"})
        assert await provider.say(NEW | {"id": "task-9"}) == 204
    assert (await now(desk, job)).status is Status.COLLECTING


async def test_a_url_that_does_not_say_when_it_dies_is_given_ten_minutes(web: Serving, desk: Desk) -> None:
    job = await order(web, desk, INTENDED, ACCEPTED)
    async with Provider(web.url, job.id) as provider:
        await provider.say(NEW | {"result": {"sample": "https://delivery.eu1.bfl.ai/a.png"}})
    job = await now(desk, job)
    assert job.result_expires_at
    assert job.ready_at
    assert 595_000 <= job.result_expires_at - job.ready_at <= 600_000


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        ({"id": "task-1", "status": "Request Moderated", "result": None}, "moderated"),
        ({"id": "task-1", "status": "Error"}, "provider_error"),
    ],
)
async def test_moderation_and_failure_end_the_job(web: Serving, desk: Desk, payload: dict[str, Any], code: str) -> None:
    job = await order(web, desk, INTENDED, ACCEPTED)
    async with Provider(web.url, job.id) as provider:
        assert await provider.say(payload) == 204
    job = await now(desk, job)
    assert job.error
    assert (job.status, job.error.code) == (Status.FAILED, code)


# ---- only a hint -------------------------------------------------------------------------------------------------


async def test_without_proof_nothing_is_believed_and_the_poll_comes_forward(web: Serving, desk: Desk) -> None:
    job = await order(web, desk, INTENDED, ACCEPTED)
    async with Provider(web.url, job.id) as provider:
        for secret in (None, ""):
            assert await provider.say(NEW, proof=secret) == 204
    job = await now(desk, job)
    assert (job.status, job.result_url, job.hints) == (Status.GENERATING, None, 2)
    due_ms = await desk.store._redis.zscore("dr1:due", f"job:{job.id}")
    assert due_ms is not None
    assert due_ms <= await desk.store.now_ms()


async def test_progress_without_proof_uses_up_no_hint(web: Serving, desk: Desk) -> None:
    job = await order(web, desk, INTENDED, ACCEPTED)
    async with Provider(web.url, job.id) as provider:
        for _ in range(10):
            await provider.say({"task_id": "task-1", "status": "processing", "progress": 0.5}, proof=None)
    assert (await now(desk, job)).hints == 0


async def test_a_believed_payload_with_another_id_is_a_hint(web: Serving, desk: Desk) -> None:
    job = await order(web, desk, INTENDED, ACCEPTED)
    async with Provider(web.url, job.id) as provider:
        assert await provider.say(NEW | {"id": "task-of-another"}) == 204
    job = await now(desk, job)
    assert (job.status, job.result_url, job.tasks, job.hints) == (Status.GENERATING, None, {"1": "task-1"}, 1)


async def test_a_task_that_another_job_owns_is_not_taken(web: Serving, desk: Desk) -> None:
    await order(web, desk, INTENDED, ACCEPTED)
    job = await order(web, desk, INTENDED)
    async with Provider(web.url, job.id) as provider:
        assert await provider.say(NEW) == 204
    job = await now(desk, job)
    assert (job.status, job.tasks) == (Status.SUBMITTING, {})


async def test_a_callback_to_a_retried_job_rings_the_retry(web: Serving, desk: Desk) -> None:
    job = await order(web, desk, INTENDED, ACCEPTED, events.CancelAsked())
    async with person("alice", web.url) as alice:
        new_id = (await alice.post(f"/v1/jobs/{job.id}/retry")).json()["id"]
    async with Provider(web.url, job.id) as provider:
        assert await provider.say(NEW) == 204
    new = await desk.store.get(new_id)
    assert new
    assert (new.status, new.hints) == (Status.GENERATING, 1)
    assert (await now(desk, job)).open == ()


# ---- refused -----------------------------------------------------------------------------------------------------


async def test_a_wrong_proof_is_401_and_brings_the_poll_forward_once(web: Serving, desk: Desk) -> None:
    job = await order(web, desk, INTENDED, ACCEPTED)
    async with Provider(web.url, job.id) as provider:
        assert [await provider.say(NEW, proof="guessed") for _ in range(3)] == [401, 401, 401]
    job = await now(desk, job)
    assert (job.status, job.result_url, job.hints) == (Status.GENERATING, None, 1)


async def test_an_altered_body_under_a_signature_is_401(web: Serving, desk: Desk) -> None:
    job = await order(web, desk, INTENDED, ACCEPTED)
    mac = hmac.new(KEYS.secret(job.id, 1).encode(), json.dumps(NEW).encode(), hashlib.sha256).hexdigest()
    async with Provider(web.url, job.id) as provider:
        assert await provider.send(json.dumps(NEW | {"x": 1}).encode(), x_bfl_signature=f"sha256={mac}") == 401
    assert (await now(desk, job)).result_url is None


async def test_a_wrong_token_is_answered_like_an_unknown_path(web: Serving, desk: Desk) -> None:
    job, other = await order(web, desk, INTENDED, ACCEPTED), await order(web, desk, INTENDED)
    token = KEYS.token(job.id, 1)
    async with httpx.AsyncClient(base_url=web.url, headers={"X-Request-ID": "same"}, trust_env=False) as forger:
        unknown = await forger.post("/nothing/here", json=NEW)
        for job_id, tried in (
            (other.id, token),
            (job.id, token[:-1] + ("B" if token.endswith("A") else "A")),
            (job.id, "k1.2." + token[5:]),
            (job.id, "x"),
            (job.id, token + "/"),
            ("job_x", token),
        ):
            answer = await forger.post(f"/webhooks/flux/{job_id}/{tried}", json=NEW)
            assert (answer.status_code, answer.content) == (404, unknown.content)
            assert answer.headers.multi_items()[1:] == unknown.headers.multi_items()[1:]  # but for the date
    assert (await now(desk, job)).version == job.version


async def test_a_right_token_for_a_job_no_longer_kept_is_204(web: Serving) -> None:
    async with Provider(web.url, "job_01JD0000000000000000000000") as provider:
        assert await provider.say(NEW) == 204
        assert await provider.say(NEW, proof="wrong") == 204


# ---- nothing breaks it -------------------------------------------------------------------------------------------


async def test_fifty_at_once_count_as_one(web: Serving, desk: Desk) -> None:
    job = await order(web, desk, INTENDED, ACCEPTED)
    async with Provider(web.url, job.id) as provider:
        assert set(await asyncio.gather(*(provider.say(NEW) for _ in range(50)))) == {204}
    log = await desk.store.log(job.id)
    assert [entry.data["reason"] for entry in log].count("ready") == 1


async def test_hostile_bodies_are_never_a_5xx(web: Serving, desk: Desk) -> None:
    job = await order(web, desk, INTENDED, ACCEPTED)
    secret = KEYS.secret(job.id, 1)
    bodies = [b"", b"\xff\xfe", b"[" * 10_000, b"[]", b"null", b'{"id": NaN}', b'{"id": "\\ud800", "status": 7}',
              b'{"status": "Ready", "result": {"sample": "\\ud800"}}', b"x" * 65_536]  # fmt: skip
    async with Provider(web.url, job.id) as provider:
        for body in bodies:
            assert await provider.send(body) == 204
            assert await provider.send(body, x_webhook_secret=secret) == 204
            assert await provider.send(body, x_bfl_signature="sha256=zz") == 401
        assert await provider.send(b"x" * 65_537) == 413
    job = await now(desk, job)
    assert (job.status, job.result_url) == (Status.GENERATING, None)


async def test_while_redis_is_away_the_provider_is_asked_to_come_again(own_valkey: Valkey) -> None:
    with serving(own_valkey.url, SERVE="webhooks") as web:
        own_valkey.kill()
        async with Provider(web.url, "job_01JD0000000000000000000000") as provider:
            assert await provider.say(NEW) == 503
            assert await provider.send(b"{}", 2) == 503


async def test_no_token_of_a_callback_reaches_redis(web: Serving, desk: Desk) -> None:
    job = await order(web, desk, INTENDED, ACCEPTED)
    async with Provider(web.url, job.id) as provider:
        await provider.say(NEW | {"webhook_url": KEYS.callback_url("https://x.example", job.id, 1)})
    mac = KEYS.token(job.id, 1).rpartition(".")[2].encode()
    redis = desk.store._redis
    async for key in redis.scan_iter():
        assert mac not in (await redis.dump(key) or b"")


# ---- the mapping itself ------------------------------------------------------------------------------------------

JOB = Job(
    id="job_01JD0000000000000000000000", caller="alice", model="flux-dev", request={}, status=Status.GENERATING,
    version=3, attempt=1, open=(1,), tasks={"1": "task-1"}, provider_id="task-1",
)  # fmt: skip
FIVE = ({"task_id": "task-1", "status": "processing", "progress": 0.2}, {"id": "task-1", "status": "Pending"}, OLD, NEW,
        {"id": "task-1", "status": "Ready", "result": None})  # fmt: skip


def test_a_callback_of_a_job_that_was_retried_too_early_puts_its_task_on_record() -> None:
    """Its outcome was not known when it was retried, so the retry has no task to ask for."""
    lost = replace(JOB, status=Status.CANCELLED, tasks={}, provider_id=None, retried_by="job_new")
    callback = answers.callback_payload(json.dumps(NEW).encode())
    said = partial(event, attempt=1, callback=callback, ready_until=1)
    assert said(lost, proof=Proof.RIGHT) == events.TaskAccepted(attempt=1, provider_id="task-1")
    assert said(lost, proof=Proof.NONE) is None
    assert said(replace(lost, tasks={"1": "task-1"}), proof=Proof.RIGHT) is None, "handed over already"


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("ended", [False, True])
def test_no_order_of_callbacks_takes_a_job_back(early: bool, ended: bool) -> None:
    """All 120 permutations, before and after the submit answer and the end."""
    ranks = [Status.SUBMITTING, Status.GENERATING, Status.COLLECTING, Status.CANCELLED]
    for permutation in itertools.permutations(FIVE):
        job = replace(JOB, status=Status.SUBMITTING, tasks={}, provider_id=None) if early else JOB
        job = replace(job, status=Status.CANCELLED) if ended else job
        for payload in permutation:
            callback = answers.callback_payload(json.dumps(payload).encode())
            said = event(job, attempt=1, proof=Proof.RIGHT, callback=callback, ready_until=1)
            change = decide(job, said) if said else None
            if change is not None:
                assert ranks.index(change.to) >= ranks.index(job.status)
                patch: dict[str, Any] = {
                    name: 1 if repr(value) == "NOW" else value for name, value in change.patch.items()
                }
                job = replace(job, status=change.to, **patch)
        assert job.status is (Status.CANCELLED if ended else Status.COLLECTING)


@hypothesis_settings(deadline=None)  # no test depends on speed
@given(body=st.binary(max_size=300) | st.builds(lambda x: json.dumps(x).encode(), st.dictionaries(
    st.sampled_from(["id", "task_id", "status", "result", "progress", "data", "code"]),
    st.none() | st.integers() | st.text(max_size=8) | st.sampled_from(["Ready", "task-1", "Error", "Pending"])
    | st.fixed_dictionaries({"sample": st.just(SAMPLE)}),
)), proof=st.sampled_from(Proof), tasks=st.sampled_from([{}, {"1": "task-1"}]), status=st.sampled_from(Status),
    attempt=st.integers(1, 3))  # fmt: skip
def test_every_body_has_a_verdict(
    body: bytes, proof: Proof, tasks: dict[str, str], status: Status, attempt: int
) -> None:
    job = replace(JOB, status=status, tasks=tasks, attempt=2)
    said = event(job, attempt=attempt, proof=proof, callback=answers.callback_payload(body), ready_until=1)
    if said is not None:
        decide(job, said)
    if proof is not Proof.RIGHT:
        assert said is None or isinstance(said, events.Hinted | events.Disproved)
