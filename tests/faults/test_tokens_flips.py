"""Guessed callback tokens, random ones and every 1-bit neighbour of a right one: unknown paths, all (F42, F44)."""

import random
import secrets
from collections.abc import Iterator
from typing import Final
from urllib.parse import quote_from_bytes

import pytest

from deploy.local.valkey import Valkey
from service.domain import events
from tests.faults.bodies import WORDS
from tests.faults.http_process import KEYS, HttpProcess, bearer, desk_at
from tests.faults.wire import Answer, Wire, request
from tests.serving import move

pytestmark = [pytest.mark.anyio, pytest.mark.processes]

RANDOM: Final = [1_000, pytest.param(10_000, marks=pytest.mark.soak)]
NAMED: Final = {"X-Request-ID": "the-same-each-time"}


@pytest.mark.parametrize("count", RANDOM)
async def test_no_guessed_token_is_accepted_or_told_from_an_unknown_path(
    count: int, http: HttpProcess, valkey: Valkey
) -> None:
    seed = secrets.randbits(32)
    async with desk_at(valkey.url) as desk, Wire(http.port) as wire:
        made = await wire.ask(request("POST", "/v1/jobs", b'{"model":"flux-dev","prompt":"x"}', bearer("alice")))
        job_id = (made.header("location") or "").rpartition("/")[2]
        accepted = events.TaskAccepted(attempt=1, provider_id="task-flips", delay_s=60)
        job = await move(desk, job_id, events.Intended(attempt=1, delay_s=60), accepted)
        token = KEYS.token(job_id, 1)
        unknown = shown(await wire.ask(request("POST", "/nobody/knows/this/path", WORDS[1], NAMED)))
        guesses = [*neighbours(token), *guessed(random.Random(seed), token, count)]
        for guess in guesses:
            answer = await wire.ask(request("POST", f"/webhooks/flux/{job_id}/{guess}", WORDS[1], NAMED))
            assert shown(answer) == unknown, (seed, guess)
        right = await wire.ask(request("POST", f"/webhooks/flux/{job_id}/{token}", WORDS[1], NAMED))
        after = await desk.store.get(job_id)
    print(f"seed {seed}: {len(guesses)} tokens, {len(neighbours(token))} of them 1-bit neighbours: accepted 0")
    assert right.status == 204, "the one that all of them are near to"
    assert after
    assert (after.version, after.hints) == (job.version + 1, 1), "one hint, from the right one"
    assert http.lines() == []


def shown(answer: Answer) -> tuple[bytes, bytes]:
    assert answer.status == 404
    return answer.without("date")


def neighbours(token: str) -> list[str]:
    """All tokens that differ from it in one bit, spelt as a URL can: a byte that may not stand there as `%XX`."""
    raw = token.encode()
    flips = (raw[:at] + bytes([raw[at] ^ 1 << bit]) + raw[at + 1 :] for at in range(len(raw)) for bit in range(8))
    return [quote_from_bytes(flipped, safe="") for flipped in flips]


def guessed(dice: random.Random, token: str, count: int) -> Iterator[str]:
    """Random ones of the right shape, and of no shape."""
    kid_and_attempt, _, mac = token.rpartition(".")
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    for number in range(count):
        guess = "".join(dice.choices(alphabet, k=len(mac)))
        match number % 4:
            case 0:
                yield f"{kid_and_attempt}.{guess}"
            case 1:
                yield f"k{dice.randint(0, 9)}.{dice.randint(0, 99)}.{guess}"
            case 2:
                yield f"k1.{dice.choice(('01', '+1', '1e0', '%31%20', '%D9%A1', '10000', '-1', ''))}.{mac}"
            case _:
                yield quote_from_bytes(dice.randbytes(dice.randint(1, 60)), safe="")
