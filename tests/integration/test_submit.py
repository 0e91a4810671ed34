"""Buying, step by step: what is posted, when it is not, and what each refusal costs."""

import asyncio
import base64
import copy
import random
from dataclasses import replace

import pytest

from service.clock import SystemClock
from service.domain import events, layout
from service.domain.job import Job, Queue
from service.secret import Secret
from service.storage.connection import RedisError
from service.storage.terms import Unconfirmed
from tests.cutting_proxy import CuttingProxy
from tests.rehearsal import Mailbox
from tests.steps import Bench, Steps, comes, order_of
from workers.submit import Submitter
from workers.timing import Learnt, Timing

pytest_plugins = ["tests.fixtures_steps"]
pytestmark = [pytest.mark.anyio, pytest.mark.processes]

DAY_S = 86_400.0
NOWHERE = "http://127.0.0.1:9"


def code(job: Job) -> str | None:
    return job.error.code if job.error else None


async def intended(at: Steps) -> str:
    """A job whose worker died between its intent and its POST."""
    job_id = await at.new("a lighthouse")
    claim, _ = await at.house.desk.store.claim(Queue.SUBMIT, job_id, 12)
    assert claim
    assert await at.house.desk.decide(claim.job, events.Intended(attempt=1, delay_s=180))
    return job_id


# ---- at most once --------------------------------------------------------------------------------------------------


async def test_bells_that_ring_at_once_buy_one_image(bench: Bench) -> None:
    async with bench.steps() as at, bench.steps() as other:
        job_id = await at.new("a lighthouse")
        await asyncio.gather(*(each.house.submitter.run(job_id) for each in (at, other, at, other)))
        assert len(bench.submissions()) == 1
        assert (await at.job(job_id)).provider_id == bench.submissions()[0]["id"]


async def test_the_intent_is_on_record_before_the_first_byte_leaves(bench: Bench) -> None:
    async with CuttingProxy("127.0.0.1", bench.stack.addresses.rehearsal_port or 0) as way:
        way.stall()
        async with bench.steps(flux_api_base_url=f"{way.url}/flux/v1") as at:
            job_id = await at.new("a lighthouse")
            posting = asyncio.create_task(at.house.submitter.run(job_id))
            await comes(lambda: way.connections == 1)
            job = await at.job(job_id)
            assert (job.status, job.attempt, job.open) == ("submitting", 1, (1,))
            assert bench.submissions() == []
            way.resume()
            await posting
            assert (await at.job(job_id)).status == "generating"


async def test_an_intent_that_no_replica_confirmed_is_not_followed_by_a_post(bench: Bench) -> None:
    """However long replicas stay away: nothing was posted, so nothing is unknown, and no attempt is burnt."""
    async with bench.steps(redis_replicas_to_wait=1) as at:
        order = order_of("a lighthouse")
        with pytest.raises(Unconfirmed):
            await at.house.desk.store.create(order)
        job = await at.submit(order.id)
        for attempt in (1, 2, 3):
            assert (job.status, job.attempt, job.open, job.refusals) == ("queued", attempt, (), 0)
            assert not job.possible_duplicate
            assert await at.slots() == 0
            job = await at.submit_again(order.id)
        assert bench.submissions() == []
        async with bench.steps() as healed:
            assert (await healed.submit_again(order.id)).status == "generating"


async def test_while_no_replica_confirms_the_gate_closes_and_one_that_gets_through_opens_it(bench: Bench) -> None:
    async with bench.steps(redis_replicas_to_wait=1) as at, bench.steps() as healed:
        for number in range(5):
            await at.submit(await healed.new(f"number {number}"))
        assert await at.gate() == "refused"
        job_id = await healed.new("the sixth")
        assert (await healed.submit(job_id)).attempt == 0
        await at.open_gate()
        assert (await healed.submit(job_id)).status == "generating"
        assert await at.gate() == ""


async def test_an_intent_without_a_post_is_submitted_once_after_the_wait_and_flagged(bench: Bench) -> None:
    async with bench.steps() as at:
        job_id = await intended(at)
        assert (await at.submit(job_id)).attempt == 1, "its wait is not over"
        await at.hasten(job_id)
        job = await at.submit(job_id)
        assert (job.status, job.attempt, job.possible_duplicate) == ("generating", 2, True)
        assert len(bench.submissions()) == 1
        assert await at.slots() == 1


async def test_an_intent_without_a_post_fails_where_the_operator_says_so(bench: Bench) -> None:
    async with bench.steps(unknown_outcome="fail") as at:
        job_id = await intended(at)
        await at.hasten(job_id)
        job = await at.submit(job_id)
        assert (job.status, code(job)) == ("failed", "outcome_unknown")
        assert bench.submissions() == []
        assert await at.slots() == 0


async def test_lost_answers_are_answered_by_one_resubmission_and_no_more(bench: Bench) -> None:
    bench.turn(drop_answer=1)
    async with bench.steps() as at:
        job_id = await at.bought()
        assert (await at.job(job_id)).status == "submitting"
        again = await at.submit(job_id)
        assert (again.status, again.attempt, again.possible_duplicate) == ("submitting", 2, True)
        await at.hasten(job_id)
        job = await at.submit(job_id)
        assert (job.status, code(job)) == ("failed", "outcome_unknown")
        assert len(bench.submissions()) == 2


async def test_the_wait_for_an_unknown_outcome_is_never_shorter_than_the_slowest_image(bench: Bench) -> None:
    bench.turn(drop_answer=1)
    async with bench.steps(unknown_wait_s=1.0) as at:
        await at.house.redis.rpush("dr1:took:flux-pro-1.1", *[300_000] * 20)
        job = await at.submit(await at.new("a lighthouse"))
        assert (await at.due(job.id) or 0) - (job.intent_at or 0) >= 340_000


class Jumping:
    """The clock of a process that is stopped for a day between any two looks at it."""

    def __init__(self) -> None:
        self.at_s = 0.0

    def now_ms(self) -> int:
        return round(self.at_s * 1000)

    def monotonic_s(self) -> float:
        self.at_s += DAY_S
        return self.at_s


async def test_a_process_that_slept_over_its_lease_does_not_post(bench: Bench) -> None:
    async with bench.steps() as at:
        job_id = await at.new("a lighthouse")
        slept: Submitter = copy.copy(at.house.submitter)
        slept._clock = Jumping()
        await slept.run(job_id)
        job = await at.job(job_id)
        assert (job.status, job.attempt, job.refusals, job.open) == ("queued", 1, 0, ())
        assert bench.submissions() == []
        assert (await at.submit_again(job_id)).status == "generating"


class Forgetful(Timing):
    """Knows nothing of before, as after a quiet while; `failed`: how often Redis was away when it asked."""

    failed = 0

    async def learnt(self, model: str) -> Learnt:
        self._cached.clear()
        try:
            return await super().learnt(model)
        except RedisError:
            self.failed += 1
            raise


async def test_an_answer_is_kept_in_hand_while_redis_is_away(bench: Bench) -> None:
    """Also where the time of its first poll would have to be read from that Redis."""
    addresses = bench.stack.addresses
    redis_port = int(addresses.redis_url.rpartition(":")[2].partition("/")[0])
    async with (
        CuttingProxy("127.0.0.1", addresses.rehearsal_port or 0) as way,
        CuttingProxy("127.0.0.1", redis_port) as to_redis,
        bench.steps() as at,
        bench.steps(
            flux_api_base_url=f"{way.url}/flux/v1",
            redis_url=Secret(addresses.redis_url.replace(str(redis_port), str(to_redis.port))),
        ) as cut_off,
    ):
        way.stall()
        job_id = await at.new("a lighthouse")
        store, submitter = cut_off.house.desk.store, copy.copy(cut_off.house.submitter)
        submitter._timing = timing = Forgetful(store, SystemClock(), random.Random(1), callbacks=False, gap_most_s=60)
        posting = asyncio.create_task(submitter.run(job_id))
        await comes(lambda: way.connections == 1)
        await to_redis.refuse()
        way.resume()
        await comes(lambda: timing.failed == 1)
        await to_redis.accept()
        await posting
        job = await at.job(job_id)
        assert (job.status, [job.provider_id]) == ("generating", [each["id"] for each in bench.submissions()])


async def test_a_task_id_of_another_job_is_refused_and_no_image_crosses(bench: Bench) -> None:
    async with bench.steps() as at:
        first = await at.bought("the first")
        second = await at.bought("the second [same-id]")
        job = await at.job(second)
        assert (job.status, job.tasks) == ("submitting", {})
        assert (await at.submit(second)).possible_duplicate
        bench.finish()
        for job_id in (first, second):
            await at.hasten(job_id)
            await at.collect(job_id)
            await at.hasten(job_id)
            bench.audit_job(await at.collect(job_id))


# ---- refusals ------------------------------------------------------------------------------------------------------


async def test_a_429_burns_nothing_and_the_job_waits_for_the_gate(bench: Bench) -> None:
    bench.turn(rate_429=1, retry_after_s=7)
    async with bench.steps() as at:
        job_id = await at.new("a lighthouse")
        for _ in range(6):
            asked_at = await at.house.desk.store.now_ms()
            job = await at.submit(job_id)
            assert await at.gate_until() - asked_at >= 7000, "as long as the provider asked for"
            assert (job.status, job.refusals, await at.gate()) == ("queued", 0, "throttled")
            assert await at.slots() == 0
            await at.hasten(job_id)
            assert await at.submit(job_id) == job, "the gate is closed"
            await at.open_gate()
        assert bench.ledger()["refused_429"] == 6
        bench.turn(rate_429=0)
        assert (await at.submit(job_id)).status == "generating"


@pytest.mark.parametrize("knob", ["no_credits", "bad_key", "rate_redirect"])
async def test_a_wrong_account_or_address_holds_submissions_until_a_probe_gets_through(bench: Bench, knob: str) -> None:
    bench.turn(**{knob: 1})
    async with bench.steps() as at:
        held = await at.submit(await at.new("held"))
        assert (held.status, held.refusals, held.error, await at.gate()) == ("queued", 0, None, "held")
        waiting = await at.new("waiting")
        assert (await at.submit(waiting)).attempt == 0, "the gate is closed"
        await at.hasten(held.id)
        assert await at.submit(held.id) == held, "for the one that met it, too"
        await at.open_gate()
        assert await at.slots() == 1, "one probe"
        for job_id in (waiting, held.id):
            await at.submit(job_id)
        assert await at.gate() == "held"
        bench.turn(**{knob: 0})
        await at.open_gate()
        for job_id in (waiting, held.id, waiting):
            await at.submit(job_id)
        assert await at.gate() == ""
        assert len(bench.submissions()) == 2
        assert {(await at.job(job_id)).status for job_id in (waiting, held.id)} == {"generating"}


async def test_four_sure_refusals_end_a_job(bench: Bench) -> None:
    bench.turn(rate_5xx=1, kind_5xx="503")
    async with bench.steps() as at:
        job_id = await at.new("a lighthouse")
        job = await at.submit(job_id)
        for refusals in (1, 2, 3):
            assert (job.status, job.refusals) == ("queued", refusals)
            assert await at.submit(job_id) == job, "it backs off"
            job = await at.submit_again(job_id)
        assert (job.status, job.attempt, code(job)) == ("failed", 4, "provider_error")
        assert bench.submissions() == []


async def test_while_nobody_gets_through_not_even_a_last_attempt_is_burnt(bench: Bench) -> None:
    async with bench.steps(flux_api_base_url=NOWHERE) as at:
        job_id = await at.new("its last attempt")
        await at.submit(job_id)
        await at.submit_again(job_id)
        assert (await at.submit_again(job_id)).refusals == 3
        for number in range(2):
            await at.submit(await at.new(f"number {number}"))
        assert await at.gate() == "refused"
        for attempt in (4, 5, 6):
            await at.hasten(job_id)
            await at.submit(job_id)
            await at.open_gate()
            job = await at.submit(job_id)
            assert (job.status, job.attempt, job.refusals) == ("queued", attempt, 3)


async def test_a_wrong_request_ends_the_job_at_once(bench: Bench) -> None:
    async with bench.steps() as at:
        job = await at.submit(await at.new("a lighthouse [invalid-500]"))
        assert (job.status, code(job), job.attempt) == ("failed", "provider_rejected", 1)
        assert await at.slots() == 0


@pytest.mark.parametrize("mark", ["[html-answer]", "[accept-5xx]", "[drop-answer]"])
async def test_an_answer_that_tells_nothing_is_waited_out(bench: Bench, mark: str) -> None:
    async with bench.steps() as at:
        job = await at.submit(await at.new(f"a lighthouse {mark}"))
        assert (job.status, job.open, job.tasks) == ("submitting", (1,), {})
        assert await at.slots() == 1
        assert (await at.due(job.id) or 0) - (job.intent_at or 0) >= 179_000


# ---- deadlines and inputs ------------------------------------------------------------------------------------------


async def test_a_deadline_that_passed_before_the_purchase_buys_nothing(bench: Bench) -> None:
    async with bench.steps() as at:
        job = await at.submit(await at.new("a lighthouse", deadline_s=0))
        assert (job.status, code(job), job.attempt) == ("failed", "deadline_exceeded", 0)
        assert bench.submissions() == []


async def test_an_input_in_the_bucket_goes_to_the_provider_as_base64(bench: Bench) -> None:
    with Mailbox() as provider:
        serving = asyncio.create_task(asyncio.to_thread(provider.handle_request))
        async with bench.steps(flux_api_base_url=provider.url) as at:
            order = order_of("a lighthouse")
            key = layout.input_key(order.id, "image_prompt.png")
            bench.put(key, b"\x89PNG and so on")
            await at.house.desk.store.create(replace(order, request={**order.request, "image_prompt": {"key": key}}))
            await at.submit(order.id)
            await serving
        assert base64.b64decode(provider.next().payload["image_prompt"]) == b"\x89PNG and so on"


async def test_while_an_input_cannot_be_read_nothing_is_intended(bench: Bench) -> None:
    async with bench.steps(s3_endpoint_url=NOWHERE) as at:
        order = order_of("a lighthouse")
        kept = {"key": layout.input_key(order.id, "image_prompt.png")}
        await at.house.desk.store.create(replace(order, request={**order.request, "image_prompt": kept}))
        job = await at.submit(order.id)
        assert (job.status, job.attempt) == ("queued", 0)
        assert bench.submissions() == []
        assert await at.due(order.id) is not None, "its lease brings it back"


async def test_a_job_whose_input_is_gone_ends_and_gives_its_slot_back(bench: Bench) -> None:
    async with bench.steps() as at:
        order = order_of("a lighthouse")
        kept = {"key": layout.input_key(order.id, "image_prompt.png")}
        await at.house.desk.store.create(replace(order, request={**order.request, "image_prompt": kept}))
        job = await at.submit(order.id)
        assert (job.status, code(job), await at.slots()) == ("failed", "record_corrupt", 0)
        assert bench.submissions() == []
