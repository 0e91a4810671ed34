"""Floods, idlers and clients that hang up: memory stays flat, honest callers are served, keys decide (F44, F59-F61)."""

import asyncio
import json
import secrets
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import pytest

from deploy.local.valkey import Valkey
from service.storage.desk import Desk
from tests.faults.bodies import WORDS
from tests.faults.http_process import HttpProcess, bearer, desk_at, serving_process
from tests.faults.wire import Answer, Wire, request

pytestmark = [pytest.mark.anyio, pytest.mark.processes]

FLOODS: Final = [2_000, pytest.param(20_000, marks=[pytest.mark.soak, pytest.mark.timeout(900)])]
ATTACKERS: Final = 16
IDLERS: Final = 40
HONEST: Final = 100
LEAVERS: Final = 500
GROWTH_BYTES_MOST: Final = 20 * 2**20
ORDER: Final = {"model": "flux-dev", "prompt": "a fox"}


@pytest.mark.parametrize("count", FLOODS)
async def test_a_flood_of_wrong_tokens_costs_no_memory_and_honest_callers_are_served(
    count: int, http: HttpProcess, valkey: Valkey
) -> None:
    await asyncio.gather(flood(http.port, 500), honest(http.port, 20))  # what is loaded and pooled once is there now
    before = http.rss_bytes
    async with AsyncExitStack() as stack, desk_at(valkey.url) as desk:
        for number in range(IDLERS):
            idler = await stack.enter_async_context(Wire(http.port))
            await idler.send(b"POST /v1/jobs HTTP/1.1\r\nContent-Length: 9999\r\nX-Slow: "[: number * 2])
        refused, (accepted, took_s) = await asyncio.gather(flood(http.port, count), honest(http.port, HONEST))
        growth = http.rss_bytes - before
        kept = [await desk.store.get(job_id) for job_id in accepted]
    took_s.sort()
    print(f"{count} wrong tokens, {IDLERS} idlers: {dict(refused)}; memory {growth / 2**20:+.1f} MiB")
    median_s, worst_s = took_s[HONEST // 2], took_s[-1]
    print(f"meanwhile {len(accepted)} jobs accepted: median {median_s * 1e3:.0f} ms, worst {worst_s * 1e3:.0f} ms")
    assert refused == {404: count}
    assert growth < GROWTH_BYTES_MOST
    assert len(set(accepted)) == HONEST
    assert all(kept), "what was accepted is there"
    assert http.lines() == []


async def flood(port: int, count: int) -> Counter[int]:
    """Wrong tokens and wrong API tokens, as fast as they are answered."""
    found: Counter[int] = Counter()

    async def attack() -> None:
        async with Wire(port) as wire:
            for _ in range(count // ATTACKERS):
                found[(await wire.ask(guess())).status] += 1

    await asyncio.gather(*(attack() for _ in range(ATTACKERS)))
    async with Wire(port) as wire:
        for _ in range(count % ATTACKERS):
            found[(await wire.ask(guess())).status] += 1
    return found


def guess() -> bytes:
    return request("POST", f"/webhooks/flux/job_01JD0000000000000000000000/k1.1.{secrets.token_urlsafe(18)}", WORDS[0])


async def honest(port: int, count: int) -> tuple[list[str], list[float]]:
    """The ids of as many accepted jobs, and how long each acceptance took."""
    ids, took_s = [], []
    async with Wire(port) as wire:
        for _ in range(count):
            began = time.monotonic()
            answer = await wire.ask(order())
            took_s.append(time.monotonic() - began)
            assert answer.status == 202
            ids.append(job_in(answer))
    return ids, took_s


def order(key: str | None = None) -> bytes:
    named: Mapping[str, str] = {"Idempotency-Key": key} if key else {}
    return request("POST", "/v1/jobs", json.dumps(ORDER).encode(), {**bearer("alice"), **named})


def job_in(answer: Answer) -> str:
    job_id: str = json.loads(answer.body)["id"]
    return job_id


async def test_clients_that_hang_up_cause_no_line_and_their_keys_decide(tmp_path: Path, valkey: Valkey) -> None:
    """In the head, in the body, with the answer on its way, after it, and while they wait: a fifth of them each."""
    async with desk_at(valkey.url) as desk:
        with serving_process(tmp_path, valkey.url, LOG_LEVEL="warning") as http:
            before, said = await count(desk), len(http.lines())  # one: that there is no bucket here
            keys = [f"left {secrets.token_hex(8)}" for _ in range(LEAVERS)]
            gate = asyncio.Semaphore(ATTACKERS)
            await asyncio.gather(*(leave(http.port, number, key, gate) for number, key in enumerate(keys)))
            async with Wire(http.port) as wire:
                answers = [await wire.ask(order(key)) for key in keys]
                again = [await wire.ask(order(key)) for key in keys]
            made = await count(desk) - before
            lines = http.lines()[said:]
    statuses = Counter(answer.status for answer in answers)
    print(f"{LEAVERS} clients hung up; what their retries met: {dict(statuses)}; lines in the log: {len(lines)}")
    assert made == LEAVERS, "each key has one job, whether or not its first request got through"
    assert set(statuses) == {200, 202}, "some had been made, some not"
    assert [job_in(answer) for answer in again] == [job_in(answer) for answer in answers]
    assert lines == []


async def leave(port: int, number: int, key: str, gate: asyncio.Semaphore) -> None:
    whole = order(key)
    head = whole.index(b"\r\n\r\n") + 4
    async with gate, Wire(port) as wire:
        match number % 5:
            case 0:
                await wire.send(whole[: head // 2])
            case 1:
                await wire.send(whole[:-1])
            case 2:
                await wire.send(whole)
            case 3:
                await wire.ask(whole)
            case _:
                await wire.send(whole.replace(b"Host: x", b"Host: x\r\nPrefer: wait=60"))


async def count(desk: Desk) -> int:
    """Jobs on record."""
    return sum([1 async for _ in desk.store.scan_ids()])
