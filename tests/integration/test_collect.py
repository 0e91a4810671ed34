"""Looking, keeping and closing, step by step: whose image is kept, what is put when, and what is left behind."""

import asyncio
import copy
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from service.domain import events, layout
from service.domain.job import FoundBy, Image, Job, Queue
from service.domain.successor import successor
from service.domain.view import view
from service.storage.store import PREFIX
from tests.cutting_proxy import CuttingProxy
from tests.steps import HOUR_S, Bench, Steps, comes, order_of, picture
from workers.download import DownloadFailure, FailureKind
from workers.fetch import Fetcher

pytest_plugins = ["tests.fixtures_steps"]
pytestmark = [pytest.mark.anyio, pytest.mark.processes]

NOWHERE = "http://127.0.0.1:9"
ENDINGS = pytest.mark.parametrize(
    ("event", "status"), [(events.CancelAsked(), "cancelled"), (events.DeadlinePassed(), "failed")]
)


def code(job: Job) -> str | None:
    return job.error.code if job.error else None


async def ready(bench: Bench, at: Steps, prompt: str = "a lighthouse") -> Job:
    """A job whose image waits to be pulled."""
    job_id = await at.bought(prompt)
    bench.finish()
    job = await at.collect(job_id)
    assert (job.status, await at.slots()) == ("collecting", 0)
    return job


def sidecar(bench: Bench, job: Job) -> object:
    return json.loads(bench.bytes(layout.sidecar_key(job.id)))


def images(bench: Bench, job: Job) -> set[str]:
    """What lies under the job's image keys."""
    return {key for key in layout.image_keys(job.id) if bench.keys(key)}


@asynccontextmanager
async def held_at_the_bucket(bench: Bench, job: Job) -> AsyncIterator[tuple[CuttingProxy, asyncio.Task[None]]]:
    """A worker that has pulled the job's image and is stopped while it puts it, until the way is free again."""
    async with CuttingProxy("127.0.0.1", int(bench.stack.store.endpoint_url.rpartition(":")[2])) as way:
        way.stall()
        async with bench.steps(s3_endpoint_url=way.url) as slow:
            step = asyncio.create_task(slow.house.collector.run(job.id))
            await comes(lambda: way.connections == 1)
            yield way, step
            way.resume()
            await step


# ---- hints ---------------------------------------------------------------------------------------------------------


async def hinted(bench: Bench, at: Steps, task: str | None) -> Job:
    """A job in `submitting` for which a callback without proof names a task; None: the true one."""
    bench.turn(drop_answer=1)
    job_id = await at.new("a lighthouse")
    await at.submit(job_id)
    *_, bought = bench.submissions()
    lie = {"sample": "http://127.0.0.1/a-lie.png"}
    bench.call_back(bought, task_id=task or bought["id"], status="SUCCESS", result=lie)
    job = await at.job(job_id)
    assert (job.status, job.candidate, job.tasks) == ("submitting", task or bought["id"], {})
    return job


async def test_a_hint_is_looked_up_and_its_task_adopted(bench: Bench) -> None:
    async with bench.steps() as at:
        job = await at.collect((await hinted(bench, at, None)).id)
        assert (job.status, job.provider_id) == ("generating", bench.submissions()[0]["id"])
        bench.finish()
        await at.hasten(job.id)
        job = await at.collect(job.id)
        assert (job.status, job.found_by) == ("collecting", FoundBy.WEBHOOK), "it rang, and `get_result` confirmed it"
        bench.audit_job(await at.collect(job.id))
        assert len(bench.submissions()) == 1


@pytest.mark.parametrize("fate", ["moderated", "failed"])
async def test_a_hint_at_another_jobs_bad_end_is_dropped_and_the_wait_goes_on(bench: Bench, fate: str) -> None:
    """A stranger who knows a callback's address and the id of a task that ended badly must not end the job with it."""
    async with bench.steps() as at:
        bench.turn(**{fate: 1})
        other = await at.bought("another")
        bench.finish()
        await at.hasten(other)
        assert (await at.collect(other)).status == "failed"
        job = await at.collect((await hinted(bench, at, (await at.job(other)).tasks["1"])).id)
        assert (job.status, job.candidate, job.tasks) == ("submitting", None, {})


@pytest.mark.parametrize("fate", ["moderated", "failed"])
async def test_a_hint_at_its_own_bad_end_ends_the_job(bench: Bench, fate: str) -> None:
    async with bench.steps() as at:
        bench.turn(**{fate: 1})
        waiting = await hinted(bench, at, None)
        bench.finish()
        job = await at.collect(waiting.id)
        assert (job.status, job.tasks) == ("generating", {"1": bench.submissions()[0]["id"]})
        assert (await at.collect(job.id)).status == "failed"


async def test_a_hint_that_nobody_knows_is_dropped_and_the_wait_goes_on(bench: Bench) -> None:
    async with bench.steps() as at:
        job = await at.collect((await hinted(bench, at, "task-of-nobody")).id)
        assert (job.status, job.candidate, job.tasks) == ("submitting", None, {})
        assert abs((await at.due(job.id) or 0) - (job.intent_at or 0) - 180_000) < 10_000
        await at.hasten(job.id)
        assert (await at.submit(job.id)).possible_duplicate


async def test_a_hint_for_an_earlier_attempt_is_adopted_as_that_ones(bench: Bench) -> None:
    """While the second POST is under way: its own answer finds its own place on the record."""
    async with bench.steps() as at:
        bench.turn(drop_answer=1)
        job_id = await at.new("a lighthouse")
        await at.submit(job_id)
        await at.hasten(job_id)
        await at.submit(job_id)
        first, second = bench.submissions()
        bench.call_back(first, task_id=first["id"], status="SUCCESS", result={"sample": "http://127.0.0.1/x.png"})
        job = await at.collect(job_id)
        assert job.tasks == {"1": first["id"]}
        second_known = events.TaskAccepted(attempt=2, provider_id=second["id"])
        assert (await at.house.desk.tell(job_id, second_known)).changed
        assert (await at.job(job_id)).open == (1, 2)


# ---- looking -------------------------------------------------------------------------------------------------------


async def test_a_collect_bell_means_take_the_most_urgent(bench: Bench) -> None:
    async with bench.steps() as at:
        late, soon = await at.bought("late"), await at.bought("soon")
        for job_id, life_ms in ((late, 9_000_000), (soon, 1_000)):
            task, now = (await at.job(job_id)).tasks["1"], await at.house.desk.store.now_ms()
            fact = events.Ready(attempt=1, provider_id=task, url=f"{NOWHERE}/x.png", expires_at=now + life_ms)
            await at.tell(job_id, fact)
        claim, _ = await at.house.desk.store.claim(Queue.COLLECT, late, 12)
        assert claim
        assert claim.job.id == soon


async def test_a_task_that_is_not_found_is_asked_for_again_and_never_bought_again(bench: Bench) -> None:
    async with bench.steps() as at:
        job_id = await at.bought()
        bench.turn(not_found=1)
        for polls in (1, 2, 3):
            job = await at.collect(job_id)
            assert (job.status, job.polls) == ("generating", polls)
            await at.hasten(job_id)
        bench.turn(not_found=0)
        bench.finish()
        await at.collect(job_id)
        bench.audit_job(await at.collect(job_id))
        assert len(bench.submissions()) == 1


async def retried(at: Steps, end: events.Event) -> tuple[Job, Steps]:
    """The retry of a job that was bought and has ended so; a worker to which both are older than a minute."""
    job_id = await at.bought()
    old = await at.tell(job_id, end)
    new = successor(old, order_of("").id)
    assert new
    await at.house.desk.store.create(new, takes_over=old)
    collector = copy.copy(at.house.collector)
    collector._terms = replace(collector._terms, not_found_s=-1.0)
    return await at.job(new.id), Steps(replace(at.house, collector=collector))


async def test_a_retried_jobs_task_that_still_runs_may_be_not_found_in_passing(bench: Bench) -> None:
    async with bench.steps() as at:
        job, later = await retried(at, events.CancelAsked())
        assert job.open == (1,)
        bench.turn(not_found=1)
        assert (await later.collect(job.id)).status == "generating"
        bench.turn(not_found=0)
        bench.finish()
        await at.hasten(job.id)
        await later.collect(job.id)
        bench.audit_job(await later.collect(job.id))


async def test_a_retried_jobs_task_that_was_over_and_is_not_found_has_expired(bench: Bench) -> None:
    async with bench.steps() as at:
        job, later = await retried(at, events.TimedOut())
        assert job.open == ()
        bench.turn(not_found=1)
        job = await at.collect(job.id)
        assert (job.status, job.polls) == ("generating", 1), "not within its first minute"
        await at.hasten(job.id)
        assert code(await later.collect(job.id)) == "result_expired"
        assert len(bench.submissions()) == 1


async def test_a_task_that_never_ends_is_given_up_after_the_generation_timeout(bench: Bench) -> None:
    async with bench.steps() as at, bench.steps(generation_timeout_s=0.0) as impatient:
        job_id = await at.bought()
        assert (await at.collect(job_id)).status == "generating"
        await at.hasten(job_id)
        job = await impatient.collect(job_id)
        assert (job.status, code(job)) == ("failed", "deadline_exceeded")
        assert await at.slots() == 0


async def test_an_attempt_that_was_given_up_may_still_bring_the_image(bench: Bench) -> None:
    async with bench.steps() as at:
        job_id = await at.new("a lighthouse [drop-answer]")
        await at.submit(job_id)
        await at.hasten(job_id)
        await at.submit(job_id)
        first, second = bench.submissions()
        await at.tell(job_id, events.TaskAccepted(attempt=2, provider_id=second["id"]))
        await at.tell(job_id, events.TaskAccepted(attempt=1, provider_id=first["id"]))
        bench.finish()
        await at.hasten(job_id)
        await at.collect(job_id)
        bench.audit_job(await at.collect(job_id))


async def test_of_an_attempt_that_failed_nobody_hears_twice_while_the_other_is_waited_for(bench: Bench) -> None:
    """Each poll finds it failed once more, and must go on to the other, or the job would never time out."""
    async with bench.steps() as at, bench.steps(generation_timeout_s=0.0) as impatient:
        job_id = await at.new("a lighthouse [drop-answer]")
        await at.submit(job_id)
        bench.turn(failed=1.0, latency_s=0.0)
        await at.hasten(job_id)
        await at.submit(job_id)
        await comes(lambda: bench.submissions()[1]["outcome"] == "failed")
        for attempt, task in enumerate(bench.submissions(), 1):
            await at.tell(job_id, events.TaskAccepted(attempt=attempt, provider_id=task["id"]))
        await at.hasten(job_id)
        assert (await at.collect(job_id)).open == (1,)
        await at.hasten(job_id)
        assert (await at.collect(job_id)).reason == "polled"
        await at.hasten(job_id)
        assert code(await impatient.collect(job_id)) == "deadline_exceeded"


async def test_a_step_that_takes_longer_than_its_lease_renews_it(bench: Bench) -> None:
    async with bench.steps() as at, CuttingProxy("127.0.0.1", bench.stack.addresses.rehearsal_port or 0) as way:
        job_id = await at.bought()
        way.stall()
        async with bench.steps(lease_s=0.5, flux_api_base_url=f"{way.url}/flux/v1") as slow:
            polling = asyncio.create_task(slow.house.collector.run(job_id))
            await comes(lambda: way.connections == 1)
            first = await at.due(job_id) or 0
            while (await at.house.desk.store.now_ms()) <= first + 500:
                assert (await at.house.desk.store.claim(Queue.COLLECT, job_id, 12))[0] is None
            assert (await at.due(job_id) or 0) > first
            way.resume()
            await polling
        assert (await at.job(job_id)).polls == 1


# ---- the image, once -----------------------------------------------------------------------------------------------


async def test_two_workers_that_pull_the_same_job_leave_one_image_and_one_seal(bench: Bench) -> None:
    async with bench.steps() as at:
        job = await ready(bench, at)
        async with held_at_the_bucket(bench, job) as (way, step):
            assert (await at.collect(job.id)).status == "collecting", "the other's lease holds"
            done = await at.take_over(job.id)
            bench.audit_job(done)
            way.resume()
            await step
        assert await at.job(job.id) == done
        bench.audit_job(done)
        sealed = [entry for entry in await at.house.desk.store.log(job.id) if entry.data["reason"] == "sealed"]
        assert len(sealed) == 1


async def test_an_image_put_before_a_crash_is_adopted_with_its_own_facts(bench: Bench) -> None:
    async with bench.steps() as at:
        job = await ready(bench, at)
        earlier = picture("what an earlier try put")
        bench.put(layout.image_key(job.id, "jpeg"), earlier, **{"job-id": job.id})
        done = await at.collect(job.id)
        assert done.status == "succeeded"
        assert done.image
        assert (done.image.sha256, done.image.bytes) == (hashlib.sha256(earlier).hexdigest(), len(earlier))
        assert bench.bytes(done.image.key) == earlier
        assert sidecar(bench, done) == view(done)


async def test_an_object_of_somebody_else_is_left_alone_and_ends_the_job(bench: Bench) -> None:
    async with bench.steps() as at:
        job = await ready(bench, at)
        key = layout.image_key(job.id, "jpeg")
        bench.put(key, b"not yours", **{"job-id": "job_of_another"})
        lost = await at.collect(job.id)
        assert (lost.status, code(lost), lost.image) == ("failed", "storage_conflict", None)
        assert bench.bytes(key) == b"not yours"
        assert sidecar(bench, lost) == view(lost)


@ENDINGS
async def test_of_a_job_that_ended_between_put_and_seal_no_image_stays(
    bench: Bench, event: events.Event, status: str
) -> None:
    async with bench.steps() as at:
        job = await ready(bench, at)
        claim, _ = await at.house.desk.store.claim(Queue.COLLECT, job.id, HOUR_S)
        assert claim
        bench.put(layout.image_key(job.id, "jpeg"), bench.true_image(job), **{"job-id": job.id})
        await at.tell(job.id, event)
        assert not (await at.collect(job.id)).sidecar, "the step that put it may still run"
        await at.hasten(job.id)
        ended = await at.collect(job.id)
        assert ended.status == status
        assert images(bench, job) == set()
        assert sidecar(bench, ended) == view(ended)
        assert await at.due(job.id) is None


@ENDINGS
async def test_a_put_that_comes_after_the_end_takes_its_image_away_again(
    bench: Bench, event: events.Event, status: str
) -> None:
    async with bench.steps() as at:
        job = await ready(bench, at)
        async with held_at_the_bucket(bench, job) as (way, step):
            await at.tell(job.id, event)
            ended = await at.take_over(job.id)
            assert (ended.status, ended.sidecar, await at.due(job.id)) == (status, True, None)
            way.resume()
            await step
        assert images(bench, job) == set()
        assert await at.job(job.id) == ended


@ENDINGS
async def test_an_image_that_lands_long_after_its_job_has_ended_goes(
    bench: Bench, event: events.Event, status: str
) -> None:
    """A put that was given up on, at a store that hung, and then went on."""
    async with bench.steps() as at:
        job = await ready(bench, at)
        await at.tell(job.id, event)
        await at.hasten(job.id)
        ended = await at.collect(job.id)
        assert (ended.status, ended.sidecar, ended.scrub) == (status, True, False)
        bench.put(layout.image_key(job.id, "jpeg"), bench.true_image(job), **{"job-id": job.id})
        await at.house.redis.zadd(f"{PREFIX}due", {f"scrub:{job.id}": 0}, xx=True)
        await at.house.sweep.round()
        assert images(bench, job) == set()
        assert sidecar(bench, ended) == view(ended)


# ---- the order: image, seal, sidecar, succeeded --------------------------------------------------------------------


async def test_while_the_store_is_away_nothing_is_burnt_and_nothing_is_told(bench: Bench) -> None:
    async with bench.steps() as at, bench.steps(s3_endpoint_url=NOWHERE) as cut_off:
        job = await ready(bench, at)
        for _ in range(4):
            waiting = await cut_off.collect(job.id)
            assert (waiting.status, waiting.pulls, waiting.image) == ("collecting", 0, None)
            await at.hasten(job.id)
        bench.audit_job(await at.collect(job.id))


async def test_while_the_store_refuses_our_keys_nothing_is_burnt_and_right_ones_end_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F26: what the operator has to mend is no fault of a job."""
    async with bench.steps() as at:
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-key")
        async with bench.steps() as refused:
            job = await ready(bench, at)
            for _ in range(4):
                waiting = await refused.collect(job.id)
                assert (waiting.status, waiting.pulls, waiting.image) == ("collecting", 0, None)
                await at.hasten(job.id)
            bench.audit_job(await at.collect(job.id))


async def test_no_job_has_succeeded_before_its_sidecar_is_written(bench: Bench) -> None:
    async with bench.steps() as at, bench.steps(s3_endpoint_url=NOWHERE) as cut_off:
        job = await ready(bench, at)
        image = await _put_by_hand(bench, at, job)
        sealed = await at.tell(job.id, image)
        await at.hasten(job.id)
        waiting = await cut_off.collect(job.id)
        assert (waiting.status, waiting.sealed, waiting.finished_at) == ("collecting", True, sealed.finished_at)
        assert bench.keys(layout.sidecar_key(job.id)) == set()
        await at.hasten(job.id)
        bench.audit_job(await at.collect(job.id))


async def test_a_sidecar_written_before_a_crash_is_kept(bench: Bench) -> None:
    async with bench.steps() as at:
        job = await ready(bench, at)
        await at.tell(job.id, await _put_by_hand(bench, at, job))
        bench.put(layout.sidecar_key(job.id), b"{}", **{"job-id": job.id})
        await at.hasten(job.id)
        assert (await at.collect(job.id)).status == "succeeded"
        assert sidecar(bench, job) == {}


async def test_a_sealed_job_is_neither_cancelled_nor_late(bench: Bench) -> None:
    async with bench.steps() as at:
        job = await ready(bench, at)
        await at.tell(job.id, await _put_by_hand(bench, at, job))
        for event in (events.CancelAsked(), events.DeadlinePassed()):
            assert not (await at.house.desk.tell(job.id, event)).changed
        await at.hasten(job.id)
        bench.audit_job(await at.collect(job.id))


async def _put_by_hand(bench: Bench, at: Steps, job: Job) -> events.Sealed:
    """What a worker did that died right after it had put the image."""
    data, key = bench.true_image(job), layout.image_key(job.id, "jpeg")
    bench.put(key, data, **{"job-id": job.id})
    digest = hashlib.sha256(data).hexdigest()
    return events.Sealed(image=Image(bench.bucket, key, digest, len(data), 256, 256, "image/jpeg", job.result_seed))


# ---- bad images and dead URLs --------------------------------------------------------------------------------------


async def test_an_image_that_is_cut_twice_and_then_whole_is_kept(bench: Bench) -> None:
    bench.turn(image_truncated=1, image_fault_times=2)
    async with bench.steps() as at:
        job = await ready(bench, at)
        for pulls in (1, 2):
            assert (await at.collect(job.id)).pulls == pulls
            await at.hasten(job.id)
        bench.audit_job(await at.collect(job.id))


async def test_an_image_that_is_cut_three_times_is_given_up(bench: Bench) -> None:
    bench.turn(image_truncated=1, image_fault_times=3)
    async with bench.steps() as at:
        job = await ready(bench, at)
        for _ in range(2):
            assert (await at.collect(job.id)).status == "collecting"
            await at.hasten(job.id)
        lost = await at.collect(job.id)
        assert (lost.status, code(lost), lost.sidecar) == ("failed", "result_invalid", True)
        assert images(bench, job) == set()


async def test_an_expired_url_is_asked_for_again(bench: Bench) -> None:
    bench.turn(url_life_s=0)
    async with bench.steps() as at:
        job = await ready(bench, at)
        bench.turn(url_life_s=600)
        fresh = await at.collect(job.id)
        assert fresh.status == "collecting"
        assert fresh.result_url != job.result_url
        bench.audit_job(await at.collect(job.id))
        assert len(bench.submissions()) == 1


async def test_however_long_ago_an_image_was_ready_a_fresh_url_is_tried(bench: Bench) -> None:
    """The patience is with who gives no good URL, not with a store that was away until now."""
    bench.turn(url_life_s=0)
    async with bench.steps(generation_timeout_s=0.0) as impatient:
        job = await ready(bench, impatient)
        bench.turn(url_life_s=600)
        assert (await impatient.collect(job.id)).status == "collecting"
        bench.audit_job(await impatient.collect(job.id))


async def test_fresh_urls_that_give_nothing_are_not_asked_for_for_ever(bench: Bench) -> None:
    bench.turn(url_life_s=0)
    async with bench.steps() as at, bench.steps(generation_timeout_s=0.0) as impatient:
        job = await ready(bench, at)
        dead = events.Refreshed(url=f"{job.result_url}0", expires_at=1)
        for _ in range(2):
            await at.tell(job.id, dead)
            assert (await at.collect(job.id)).reason == "refreshed"
        await at.tell(job.id, dead)
        lost = await impatient.collect(job.id)
        assert (lost.status, code(lost)) == ("failed", "result_expired")
        assert len(bench.submissions()) == 1


@pytest.mark.parametrize("room", [0, 1 << 20], ids=["no room in the spool", "spooled"])
async def test_a_url_that_gave_the_image_was_not_asked_for_in_vain(bench: Bench, room: int) -> None:
    bench.turn(url_life_s=0)
    async with bench.steps() as at, bench.steps(s3_endpoint_url=NOWHERE, spool_max_bytes=room) as cut_off:
        job = await ready(bench, at)
        bench.turn(url_life_s=600)
        assert (await at.collect(job.id)).asked_at
        waiting = await cut_off.collect(job.id)
        assert (waiting.status, waiting.spool is None, waiting.asked_at) == ("collecting", room == 0, None)


async def test_an_image_at_a_long_signed_url_is_pulled(bench: Bench) -> None:
    async with bench.steps() as at:
        job = await ready(bench, at)
        long = f"{job.result_url}&x-amz-security-token={'a' * 4_000}"
        await at.tell(job.id, events.Refreshed(url=long, expires_at=job.result_expires_at))
        bench.audit_job(await at.collect(job.id))


async def overdue(bench: Bench, at: Steps) -> Job:
    """A job whose URL should have died two minutes ago, as we had guessed, and which the provider gives once more."""
    bench.turn(fresh_url=0)
    job = await ready(bench, at)
    two_minutes_ago = await at.house.desk.store.now_ms() - 120_000
    return await at.tell(job.id, events.Refreshed(url=job.result_url or "", expires_at=two_minutes_ago))


async def test_a_url_that_outlives_our_guess_gives_the_image(bench: Bench) -> None:
    async with bench.steps() as at:
        bench.audit_job(await at.collect((await overdue(bench, at)).id))


async def test_a_last_fresh_url_is_tried_after_any_patience(bench: Bench) -> None:
    """All workers were away for long after the provider was first asked."""
    async with bench.steps() as at, bench.steps(generation_timeout_s=0.0) as impatient:
        job = await ready(bench, at)
        await at.tell(job.id, events.Refreshed(url=f"{job.result_url}0", expires_at=1))
        bench.audit_job(await impatient.collect(job.id))


class Unreachable(Fetcher):
    async def fetch(self, url: str) -> DownloadFailure:
        return DownloadFailure(FailureKind.UNAVAILABLE, "no route")


@pytest.mark.parametrize(("patience_s", "status"), [(900.0, "collecting"), (0.0, "failed")])
async def test_a_url_beyond_our_guess_that_cannot_be_reached_is_waited_for_within_the_patience(
    bench: Bench, patience_s: float, status: str
) -> None:
    async with bench.steps(generation_timeout_s=patience_s) as at:
        job = await overdue(bench, at)
        puller = at.house.collector._puller
        puller._fetcher = Unreachable(puller._fetcher._shards, puller._fetcher._hosts, puller._fetcher._directory)
        assert (await at.collect(job.id)).status == status


async def test_an_image_whose_url_died_for_good_is_lost(bench: Bench) -> None:
    bench.turn(url_life_s=0, fresh_url=0)
    async with bench.steps() as at:
        job = await ready(bench, at)
        lost = await at.collect(job.id)
        assert (lost.status, code(lost), lost.sidecar) == ("failed", "result_expired", True)
        assert len(bench.submissions()) == 1, "only the caller may buy again"


async def test_an_image_put_before_its_url_died_is_found(bench: Bench) -> None:
    bench.turn(url_life_s=0, fresh_url=0)
    async with bench.steps() as at:
        job = await ready(bench, at)
        bench.put(layout.image_key(job.id, "jpeg"), bench.true_image(job), **{"job-id": job.id})
        bench.audit_job(await at.collect(job.id))


# ---- ended, but not settled ----------------------------------------------------------------------------------------


async def test_a_cancelled_task_keeps_its_slot_until_the_provider_is_done_with_it(bench: Bench) -> None:
    async with bench.steps() as at:
        job_id = await at.bought()
        cost = (await at.job(job_id)).costs
        await at.tell(job_id, events.CancelAsked())
        cancelled = await at.collect(job_id)
        assert (cancelled.status, cancelled.sidecar, await at.slots()) == ("cancelled", True, 1)
        await at.hasten(job_id)
        assert (await at.collect(job_id)).open == (1,)
        bench.finish()
        await at.hasten(job_id)
        settled = await at.collect(job_id)
        assert (settled.status, settled.open, await at.slots(), await at.due(job_id)) == ("cancelled", (), 0, None)
        assert settled.costs == cost != {}
        assert images(bench, settled) == set()


async def test_the_purchase_of_a_job_cancelled_in_mid_post_goes_on_record(bench: Bench) -> None:
    async with CuttingProxy("127.0.0.1", bench.stack.addresses.rehearsal_port or 0) as way:
        way.stall()
        async with bench.steps(flux_api_base_url=f"{way.url}/flux/v1") as at:
            job_id = await at.new("a lighthouse")
            posting = asyncio.create_task(at.house.submitter.run(job_id))
            await comes(lambda: way.connections == 1)
            await at.tell(job_id, events.CancelAsked())
            way.resume()
            await posting
            job = await at.job(job_id)
            assert (job.status, list(job.tasks.values())) == ("cancelled", [bench.submissions()[0]["id"]])
            assert job.costs
            assert await at.slots() == 1


async def test_a_cancelled_job_of_unknown_outcome_gives_its_slot_back_after_the_wait(bench: Bench) -> None:
    bench.turn(drop_answer=1)
    async with bench.steps() as at, bench.steps(unknown_wait_s=0.0) as later:
        job_id = await at.bought()
        await at.tell(job_id, events.CancelAsked())
        assert (await at.collect(job_id)).sidecar
        await at.hasten(job_id)
        assert (await at.collect(job_id)).open == (1,)
        await at.hasten(job_id)
        assert (await later.collect(job_id)).open == ()
        assert (await at.slots(), await at.due(job_id)) == (0, None)


async def test_a_sidecar_of_somebody_else_is_left_alone_and_holds_nothing_up(bench: Bench) -> None:
    async with bench.steps() as at:
        job_id = await at.new("a lighthouse")
        bench.put(layout.sidecar_key(job_id), b"not yours")
        await at.tell(job_id, events.CancelAsked())
        job = await at.collect(job_id)
        assert (job.status, await at.due(job_id)) == ("cancelled", None)
        assert bench.bytes(layout.sidecar_key(job_id)) == b"not yours"
