"""Power is lost, and of Redis's append-only file the tail: the newest may be missing, never half a job (F14)."""

import asyncio
import random
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from deploy.local.valkey import Valkey
from service.fsck import Fsck, Report
from service.storage.connection import AsyncRedis, connect
from service.storage.store import Store
from service.storage.terms import Limits
from tests.records import fill

pytestmark = [pytest.mark.anyio, pytest.mark.processes]

CUTS: Final = [20, pytest.param(400, marks=[pytest.mark.soak, pytest.mark.timeout(900)])]
LIMITS: Final = Limits(max_in_flight=9, caps={"flux-kontext-max": 1})
FILES: Final = "appendonlydir"
ROUNDS: Final = 3  # of some 20 jobs each


@asynccontextmanager
async def served(folder: Path) -> AsyncIterator[AsyncRedis]:
    """What Valkey makes of the files in the folder."""
    server = Valkey(folder)
    try:
        await asyncio.to_thread(server.start)
        redis = connect(server.url, timeout_s=5.0)
        yield redis
        await redis.aclose()
    finally:
        server.stop()


@dataclass(frozen=True, slots=True)
class Kept:
    """What fsck finds, and how many transitions of jobs are told."""

    report: Report
    events: int


async def found(folder: Path) -> Kept:
    async with served(folder) as redis:
        store = Store(redis, LIMITS)
        return Kept(await Fsck(store, None).run(), len(await store.events("0-0", most=10_000)))


async def cut(whole: Path, at: int, into: Path) -> Kept:
    """The file ends there."""
    shutil.copytree(whole / FILES, into / FILES)
    [tail] = (into / FILES).glob("*.incr.aof")
    with tail.open("r+b") as file:
        file.truncate(at)
    kept = await found(into)
    shutil.rmtree(into)
    return kept


@pytest.mark.parametrize("cuts", CUTS)
async def test_wherever_the_file_is_cut_no_record_is_torn_and_all_of_it_hangs_together(
    cuts: int, tmp_path: Path
) -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    async with served(tmp_path / "whole") as redis:
        store = Store(redis, LIMITS)
        for number in range(ROUNDS):
            await fill(store, first=100 * number)
        written = await Fsck(store, None).run()
    [tail] = (tmp_path / "whole" / FILES).glob("*.incr.aof")
    offsets = sorted(random.Random(seed).sample(range(tail.stat().st_size), cuts))
    kept = [await cut(tmp_path / "whole", at, tmp_path / "cut") for at in offsets]
    torn = [(at, each.report.findings) for at, each in zip(offsets, kept, strict=True) if each.report.findings]
    jobs, events = [each.report.jobs for each in kept], [each.events for each in kept]
    size = tail.stat().st_size
    print(f"{cuts} cuts in {size} bytes: {min(jobs)} to {max(jobs)} of {written.jobs} jobs, torn {len(torn)}")
    assert (torn, written.findings) == ([], {})
    assert events == sorted(events), "what was written before the cut is kept"
    assert events[0] < events[-1]
