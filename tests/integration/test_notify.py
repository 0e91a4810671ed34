"""Telling callers step by step: over a real Redis, a real bucket, and a caller's server on a real socket."""

import base64
import hashlib
import hmac
import json
from collections.abc import Iterator
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import pytest
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from service.domain import events as e
from service.domain import layout
from service.domain.notice import LASTS_S, Notice, NoticeState
from service.parsers import WebhookKey
from service.seals import Hook, Seals
from service.secret import Secret
from service.storage.store import PREFIX
from tests.integration.test_batch_steps import lines, looked_at, sealed
from tests.receiver import Letter, Receiver, receiving
from tests.steps import Bench, Steps, order_of

pytest_plugins = ["tests.fixtures_steps"]
pytestmark = [pytest.mark.anyio, pytest.mark.processes]

OLD, NEW = ("whsec_" + base64.b64encode(letter * 32).decode() for letter in (b"o", b"n"))
KEYS = (WebhookKey("k1", b"k" * 32),)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as server:
        yield server


def settings(*receivers: Receiver, secrets: tuple[str, ...] = (NEW,)) -> dict[str, Any]:
    signing = MappingProxyType({"admin": tuple(map(Secret, secrets))})
    return {"notify_hosts": ",".join(each.host for each in receivers), "notify_secrets": signing, "webhook_keys": KEYS}


async def cancelled(at: Steps, url: str | None, **more: Any) -> str:
    """The id of a job that is over, with its sidecar; its notification is due."""
    job = replace(order_of("a lighthouse"), callback_url=url, **more)
    await at.house.desk.store.create(job)
    await at.tell(job.id, e.CancelAsked())
    await at.hasten(job.id)
    assert (await at.collect(job.id)).sidecar
    return job.id


async def notified(at: Steps, id_: str) -> Notice:
    """Its time has come, and it is sent."""
    await at.house.redis.zadd(f"{PREFIX}due", {f"notify:{id_}": 0}, xx=True)
    await at.house.notifier.run(id_)
    notice = await at.house.desk.store.notices.get(id_)
    assert notice is not None
    return notice


def verified(letter: Letter, *, secret: str = NEW) -> dict[str, Any]:
    """The body, by the public package; WebhookVerificationError: somebody else sent it."""
    told: dict[str, Any] = Webhook(secret).verify(letter.body, letter.headers)
    return told


async def test_a_caller_is_told_what_the_bucket_tells_signed_as_standard_webhooks_are(
    bench: Bench, receiver: Receiver
) -> None:
    async with bench.steps(**settings(receiver)) as at:
        job_id = await cancelled(at, receiver.url)
        notice = await notified(at, job_id)
    [letter] = receiver.letters
    sidecar = json.loads(bench.bytes(layout.sidecar_key(job_id)))
    assert verified(letter) == {"type": "job.cancelled", "timestamp": sidecar["finished_at"], "data": sidecar}
    assert letter.path == "/hook?token=of-the-caller"
    assert letter.headers["webhook-id"] == f"msg_{job_id}"
    assert letter.headers["content-type"] == "application/json"
    assert (notice.state, [each.status for each in notice.attempts]) == (NoticeState.DELIVERED, [204])
    with pytest.raises(WebhookVerificationError):
        Webhook(OLD).verify(letter.body, letter.headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(NEW).verify(letter.body.replace(b"cancelled", b"succeeded"), letter.headers)


async def test_a_receiver_that_is_down_and_then_up_is_told_the_same_under_the_same_id(bench: Bench) -> None:
    with receiving(500, 404, 302, 200, Location="/elsewhere") as receiver:
        async with bench.steps(**settings(receiver)) as at:
            job_id = await cancelled(at, receiver.url)
            states = [(await notified(at, job_id)).state for _ in range(4)]
            notice = await notified(at, job_id)
    assert states == [NoticeState.PENDING] * 3 + [NoticeState.DELIVERED]
    assert [each.status for each in notice.attempts] == [500, 404, 302, 200]
    assert len(receiver.letters) == 4, "nothing was followed, and what is delivered is not sent again"
    assert len({(letter.headers["webhook-id"], letter.body) for letter in receiver.letters}) == 1
    assert {letter.path for letter in receiver.letters} == {"/hook?token=of-the-caller"}


async def test_nobody_there_is_a_try_too(bench: Bench, receiver: Receiver) -> None:
    with receiving() as gone:
        pass
    async with bench.steps(**settings(gone)) as at:
        notice = await notified(at, await cancelled(at, gone.url))
    assert notice.due_at
    assert (notice.state, [each.error for each in notice.attempts]) == (NoticeState.PENDING, ["unreachable"])
    assert 4_000 <= notice.due_at - notice.attempts[0].at <= 6_000


async def test_410_turns_it_off(bench: Bench) -> None:
    with receiving(410) as receiver:
        async with bench.steps(**settings(receiver)) as at:
            job_id = await cancelled(at, receiver.url)
            assert (await notified(at, job_id)).state is NoticeState.OFF
            await notified(at, job_id)
    assert len(receiver.letters) == 1


async def test_a_receiver_says_when_to_come_again(bench: Bench) -> None:
    with receiving(429, Retry_After="3600") as receiver:
        async with bench.steps(**settings(receiver)) as at:
            notice = await notified(at, await cancelled(at, receiver.url))
    assert notice.due_at
    assert notice.due_at - notice.attempts[0].at == 3_600_000


async def test_after_72_hours_it_is_given_up(bench: Bench) -> None:
    with receiving(500) as receiver:
        async with bench.steps(**settings(receiver)) as at:
            job_id = await cancelled(at, receiver.url)
            began = await notified(at, job_id)
            key = f"{PREFIX}notice:{job_id}"
            await at.house.redis.hset(key, "since", str(began.since - (LASTS_S - 60) * 1000))
            last = await notified(at, job_id)
            assert last.state is NoticeState.PENDING
            assert last.due_at
            assert last.due_at - last.attempts[-1].at <= 60_000, "the last try is at the end of them"
            await at.house.redis.hset(key, "since", str(began.since - LASTS_S * 1000))
            assert (await notified(at, job_id)).state is NoticeState.GIVEN_UP


async def test_an_address_that_is_not_public_is_not_dialled(bench: Bench, receiver: Receiver) -> None:
    async with bench.steps(**settings()) as at:
        literal = await notified(at, await cancelled(at, f"https://{receiver.host}/"))
        named = await notified(at, await cancelled(at, f"https://localhost:{receiver.port}/"))
    assert [each.attempts[0].error for each in (literal, named)] == ["address_not_public", "address_refused"]
    assert receiver.letters == []


async def test_a_redirect_to_a_private_address_is_not_followed(bench: Bench, receiver: Receiver) -> None:
    with receiving(307, Location=receiver.url) as public:
        async with bench.steps(**settings(public)) as at:
            notice = await notified(at, await cancelled(at, public.url))
    assert (notice.state, notice.attempts[0].status) == (NoticeState.PENDING, 307)
    assert receiver.letters == []


async def test_while_a_secret_is_changed_both_sign(bench: Bench, receiver: Receiver) -> None:
    async with bench.steps(**settings(receiver, secrets=(NEW, OLD))) as at:
        await notified(at, await cancelled(at, receiver.url))
    [letter] = receiver.letters
    assert verified(letter) == verified(letter, secret=OLD)
    assert letter.headers["webhook-signature"].count("v1,") == 2


async def test_a_caller_whose_secret_was_taken_away_is_told_once_it_is_back(bench: Bench, receiver: Receiver) -> None:
    async with bench.steps(**settings(receiver, secrets=())) as at:
        job_id = await cancelled(at, receiver.url)
        assert (await notified(at, job_id)).attempts[0].error == "no_secret"
    async with bench.steps(**settings(receiver)) as at:
        assert (await notified(at, job_id)).state is NoticeState.DELIVERED


async def test_who_dies_between_the_post_and_the_record_leaves_it_due(bench: Bench) -> None:
    with receiving(500, 204) as receiver:
        async with bench.steps(**settings(receiver)) as at:
            job_id = await cancelled(at, receiver.url)

            async def dies(*_: object, **__: object) -> None:
                raise ConnectionAbortedError

            at.house.desk.store.notices.tell = dies  # type: ignore[method-assign]
            with pytest.raises(ConnectionAbortedError):
                await at.house.notifier.run(job_id)
        async with bench.steps(**settings(receiver)) as at:
            assert (await notified(at, job_id)).state is NoticeState.DELIVERED
    first, second = receiver.letters
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
    assert first.body == second.body


async def test_a_deleted_job_is_told_of_no_more(bench: Bench, receiver: Receiver) -> None:
    async with bench.steps(**settings(receiver)) as at:
        job_id = await cancelled(at, receiver.url)
        await at.house.desk.store.bury(await at.job(job_id), busy_s=0)
        await at.house.notifier.run(job_id)
    assert receiver.letters == []


async def test_what_is_in_neither_the_bucket_nor_redis_any_more_is_told_to_nobody(
    bench: Bench, receiver: Receiver
) -> None:
    async with bench.steps(**settings(receiver)) as at:
        job_id = await cancelled(at, receiver.url)
        await at.house.redis.delete(f"{PREFIX}job:{job_id}")
        bench.s3.delete_object(Bucket=bench.bucket, Key=layout.sidecar_key(job_id))
        notice = await notified(at, job_id)
    assert (notice.state, notice.attempts[0].error) == (NoticeState.OFF, "deleted")
    assert receiver.letters == []


async def test_the_callers_of_a_batch_are_told_what_its_marker_tells(bench: Bench, receiver: Receiver) -> None:
    async with bench.steps(**settings(receiver)) as at:
        upload_id = await sealed(at, lines("a boat"))
        await at.house.desk.store.batches.cancel(upload_id)
        await at.house.redis.hset(
            f"{PREFIX}batch:{upload_id}", "body", json.dumps({"metadata": {}, "callback_url": receiver.url})
        )
        await looked_at(at, upload_id)
        for job_id in await at.house.desk.store.members(upload_id, None, 10):
            await at.hasten(job_id)
            await at.collect(job_id)
        assert (await looked_at(at, upload_id)).marked
        await notified(at, upload_id)
    [letter] = receiver.letters
    marker = json.loads(bench.bytes(layout.marker_key(upload_id, ok=False)))
    del marker["idempotency"]
    assert verified(letter) == {"type": "batch.cancelled", "timestamp": marker["finished_at"], "data": marker}


async def test_a_flux_client_is_told_in_the_providers_words_with_both_proofs(bench: Bench, receiver: Receiver) -> None:
    seals = Seals(KEYS)
    async with bench.steps(**settings(receiver, secrets=())) as at:
        job_id = await bench_succeeded(bench, at, seals.seal(Hook(receiver.url, "their secret-\N{SNOWMAN}")))
        assert (await notified(at, job_id)).state is NoticeState.DELIVERED
        job = await at.job(job_id)
        await notified(at, await cancelled(at, None, hook=seals.seal(Hook(receiver.url, "plain"))))
    ready, error = receiver.letters
    told = json.loads(ready.body)
    assert (told["id"], told["status"], told["result"]["prompt"]) == (job_id, "Ready", "a lighthouse")
    assert job.image
    bench.audit_job(job)
    image = bench.http.get(told["result"]["sample"], headers={"Authorization": ""}).content
    assert hashlib.sha256(image).hexdigest() == job.image.sha256
    mac = hmac.new("their secret-\N{SNOWMAN}".encode(), ready.body, "sha256").hexdigest()
    assert ready.headers["x-bfl-signature"] == f"sha256={mac}"
    assert "x-webhook-secret" not in ready.headers, "no header can carry it"
    assert (json.loads(error.body)["status"], error.headers["x-webhook-secret"]) == ("Error", "plain")


async def bench_succeeded(bench: Bench, at: Steps, hook: str) -> str:
    """The id of a job that has its image."""
    job = replace(order_of("a lighthouse"), hook=hook)
    await at.house.desk.store.create(job)
    await at.submit(job.id)
    bench.finish()
    await at.hasten(job.id)
    await at.collect(job.id)
    for _ in range(3):
        if (await at.job(job.id)).status != "succeeded":
            await at.hasten(job.id)
            await at.collect(job.id)
    return job.id


async def test_a_seal_whose_key_is_gone_is_not_guessed_at(bench: Bench, receiver: Receiver) -> None:
    sealed_before = Seals((WebhookKey("k0", b"0" * 32),)).seal(Hook(receiver.url, "s"))
    async with bench.steps(**settings(receiver)) as at:
        notice = await notified(at, await cancelled(at, None, hook=sealed_before))
    assert notice.attempts[0].error == "key_removed"
    assert receiver.letters == []
