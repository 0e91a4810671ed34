"""Thousands of malformed callbacks with a right token, over real sockets: no 5xx, no line, nothing moved unproved."""

import asyncio
import hashlib
import hmac
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import pytest

from deploy.local.valkey import Valkey
from service.domain import events
from service.domain.events import Event
from service.domain.job import Job, Status
from service.storage.desk import Desk
from tests.faults.bodies import TASK, bodies
from tests.faults.http_process import KEYS, HttpProcess, bearer, desk_at
from tests.faults.wire import Wire, request
from tests.serving import move

pytestmark = [pytest.mark.anyio, pytest.mark.processes]

COUNTS: Final = [2_000, pytest.param(20_000, marks=[pytest.mark.soak, pytest.mark.timeout(900)])]
BODIES_PER_JOB: Final = 25
AT_ONCE: Final = 8
UNPROVED: Final = ("none", "empty", "wrong-header", "wrong-signature")
PROVED: Final = ("header", "signature")
INTENDED: Final = events.Intended(attempt=1, delay_s=60)
RANKS: Final = {
    Status.SUBMITTING: 0, Status.GENERATING: 1, Status.COLLECTING: 2, Status.FAILED: 3, Status.CANCELLED: 3
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Victim:
    """A job that strangers write to. `proved`: every callback to it shows a right proof."""

    before: Job
    proved: bool


@pytest.mark.parametrize("count", COUNTS)
async def test_no_malformed_callback_breaks_the_receiver_or_moves_a_job_unproved(
    count: int, http: HttpProcess, valkey: Valkey
) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    found: Counter[int] = Counter()
    async with desk_at(valkey.url) as desk:
        victims = [await victim(desk, http, number) for number in range(count // BODIES_PER_JOB)]
        pile = iter([(each, body) for each, body in zip(victims * BODIES_PER_JOB, bodies(dice, count), strict=True)])
        began = time.monotonic()
        await asyncio.gather(*(fire(http.port, pile, random.Random(seed + n), found) for n in range(AT_ONCE)))
        took_s = time.monotonic() - began
        moved = [await outcome(desk, each) for each in victims]
    print(f"{sum(found.values())} callbacks in {took_s:.1f} s to {len(victims)} jobs: {dict(sorted(found.items()))}")
    print(f"jobs moved by proof: {sum(moved)}, without: 0; lines in the log: {len(http.lines())}")
    assert http.lines() == []
    assert sum(found.values()) == count
    assert not [status for status in found if status not in (204, 401, 413)]
    assert any(moved), "proved payloads were believed, so the bodies were read"


async def victim(desk: Desk, http: HttpProcess, number: int) -> Victim:
    """A job before or after the submit answer, ready, or cancelled: each proved and unproved, in turn."""
    body = b'{"model": "flux-dev", "prompt": "a fox"}'
    async with Wire(http.port) as wire:
        answer = await wire.ask(request("POST", "/v1/jobs", body, bearer("alice")))
    job_id = (answer.header("location") or "").rpartition("/")[2]
    accepted = events.TaskAccepted(attempt=1, provider_id=f"{TASK}-{number}", delay_s=60)
    ready = events.Ready(attempt=1, provider_id=f"{TASK}-{number}", url="https://a.bfl.ai/1.png")
    further: tuple[tuple[Event, ...], ...] = ((), (accepted,), (accepted, ready), (accepted, events.CancelAsked()))
    told = further[number // 2 % len(further)]
    return Victim(await move(desk, job_id, INTENDED, *told), proved=number % 2 == 0)


async def fire(port: int, pile: Iterator[tuple[Victim, bytes]], dice: random.Random, found: Counter[int]) -> None:
    async with Wire(port) as wire:
        for each, body in pile:
            found[(await wire.ask(shot(each, body, dice))).status] += 1


def shot(at: Victim, body: bytes, dice: random.Random) -> bytes:
    body = body.replace(TASK.encode(), at.before.tasks.get("1", TASK).encode())
    secret = KEYS.secret(at.before.id, 1)
    mac = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
    kind = dice.choice(PROVED if at.proved else UNPROVED)
    proofs = {
        "header": {"X-Webhook-Secret": secret},
        "signature": {"X-BFL-Signature": f"sha256={mac}"},
        "none": {},
        "empty": {"X-Webhook-Secret": ""},
        "wrong-header": {"X-Webhook-Secret": secret[:-1] + ("A" if secret[-1] != "A" else "B")},
        "wrong-signature": {"X-BFL-Signature": f"sha256={mac[::-1]}0"},
    }
    odd = {} if dice.random() < 0.8 else {"Content-Encoding": "gzip", "Content-Type": "text/plain; charset=utf-7"}
    chunked = dice.random() < 0.2
    return request("POST", KEYS.callback_url("", at.before.id, 1), body, proofs[kind] | odd, chunked=chunked)


async def outcome(desk: Desk, each: Victim) -> bool:
    """Whether its state moved; only ever forward, and never without a proof."""
    after, before = await desk.store.get(each.before.id), each.before
    assert after
    if each.proved:
        assert RANKS[after.status] >= RANKS[before.status], (before, after)
    else:
        same = (before.status, before.tasks, before.result_url, before.error, before.open, before.costs)
        assert (after.status, after.tasks, after.result_url, after.error, after.open, after.costs) == same
    return after.status is not before.status
