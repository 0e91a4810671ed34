"""fsck on Redis alone: nothing is found where nothing is wrong, and each thing that is wrong is found by its name."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from service.domain.notice import NoticeState
from service.fsck import FINDINGS, Fsck, Report
from service.storage.connection import AsyncRedis
from service.storage.store import PREFIX, Store
from service.storage.terms import Limits
from tests.records import fill

pytestmark = pytest.mark.anyio

LIMITS = Limits(max_in_flight=9, caps={"flux-kontext-max": 1})
Hurt = Callable[[AsyncRedis, list[str]], Awaitable[Any]]


@pytest.fixture
def store(connection: AsyncRedis) -> Store:
    return Store(connection, LIMITS, actor="test")


async def checked(store: Store) -> Report:
    return await Fsck(store, None).run()


async def test_nothing_is_found_where_every_kind_of_record_lies(store: Store, connection: AsyncRedis) -> None:
    await fill(store, connection)
    report = await checked(store)
    assert report.findings == {}
    assert (report.jobs, report.batches) == (21, 4)
    assert report.entries > report.jobs


async def test_it_writes_nothing(store: Store, connection: AsyncRedis) -> None:
    await fill(store, connection)
    before: Any = await connection.info("stats")
    changes: Any = (await connection.info("persistence"))["rdb_changes_since_last_save"]
    await checked(store)
    after: Any = await connection.info("stats")
    assert (await connection.info("persistence"))["rdb_changes_since_last_save"] == changes
    assert after["total_commands_processed"] > before["total_commands_processed"]


def drops(name: str, of: int, kind: str = "job") -> Hurt:
    """A job's entry in a set has gone."""

    async def hurt(redis: AsyncRedis, made: list[str]) -> int:
        member = f"{kind}:{made[of]}" if name == "due" else made[of]
        return int(await redis.zrem(PREFIX + name, member))

    return hurt


def adds(name: str, member: str) -> Hurt:
    async def hurt(redis: AsyncRedis, made: list[str]) -> bool:
        return bool(await redis.zadd(PREFIX + name, {member.format(*made): 1}))

    return hurt


def deletes(name: str) -> Hurt:
    async def hurt(redis: AsyncRedis, made: list[str]) -> int:
        return int(await redis.delete(PREFIX + name.format(*made)))

    return hurt


async def flips(redis: AsyncRedis, made: list[str]) -> bool:
    await redis.hset(f"{PREFIX}job:{made[4]}", "attempt", "2")
    return True


async def miscounts(redis: AsyncRedis, made: list[str]) -> int:
    return int(await redis.incrby(f"{PREFIX}folded", 3))


async def loses_a_batchs_job(redis: AsyncRedis, made: list[str]) -> bool:
    """One of the batch that is half unfolded: with all that belongs to it."""
    [queued] = [key async for key in redis.scan_iter(f"{PREFIX}jobs#batch_*:queued")]
    first: Any = await redis.zrange(queued, 0, 0)
    name = first[0].decode()
    for key in [key async for key in redis.scan_iter(f"{PREFIX}*")]:
        if await redis.type(key) == b"zset":
            await redis.zrem(key, name, f"job:{name}")
    return bool(await redis.delete(f"{PREFIX}job:{name}"))


async def notified(redis: AsyncRedis, made: list[str]) -> None:
    """Job 10, which is closed, is told of: its notification is pending."""
    await Store(redis, LIMITS).notices.resend(made[10], "alice", url="https://caller.example/hook", hook=None)


def of_its_notice(hurt: Hurt) -> Hurt:
    async def both(redis: AsyncRedis, made: list[str]) -> Any:
        await notified(redis, made)
        return await hurt(redis, made)

    return both


async def keeps_what_is_told_for_ever(redis: AsyncRedis, made: list[str]) -> bool:
    await notified(redis, made)
    await Store(redis, LIMITS).notices.tell(made[10], NoticeState.DELIVERED, took_ms=1)
    return bool(await redis.persist(f"{PREFIX}notice:{made[10]}"))


async def ends_a_batch_too_early(redis: AsyncRedis, made: list[str]) -> bool:
    """The one that is half unfolded: as if its marker had been written. Both hands of an operator were in it."""
    [queued] = [key async for key in redis.scan_iter(f"{PREFIX}jobs#batch_*:queued")]
    id_ = queued.decode().partition("#")[2].partition(":")[0]
    await redis.hset(f"{PREFIX}batch:{id_}", mapping={"status": "cancelled", "marked": "1"})
    return True


async def forgets_what_remains(redis: AsyncRedis, made: list[str]) -> int:
    """Of job 5, whose task still runs, deleted by its caller: nobody will ever give its slot back."""
    job = await Store(redis, LIMITS).get(made[5])
    assert job is not None
    await Store(redis, LIMITS).bury(job, busy_s=0)
    assert (await checked(Store(redis, LIMITS))).findings == {}
    return int(await redis.zrem(f"{PREFIX}due", f"settle:{made[5]}"))


# The numbers are those of tests.records.courses: 4 is generating, 6 collecting, 10 is closed.
HURTS: dict[str, tuple[Hurt, set[str]]] = {
    "a flipped value": (flips, {"unreadable"}),
    "no due time": (drops("due", 4), {"undue"}),
    "no due time of one that waits": (drops("due", 0), {"undue"}),
    "ended, and kept for ever": (drops("ended", 10), {"unforgettable"}),
    "in no list": (drops("jobs", 4), {"unlisted"}),
    "in no list of its caller": (drops("jobs@alice", 4), {"unlisted"}),
    "in two lists of states": (adds("jobs:failed", "{4}"), {"unlisted"}),
    "open without a slot": (drops("slots", 2), {"slotted"}),
    "a slot too many": (adds("slots", "{10}"), {"slotted"}),
    "waits, but is bought": (adds("wait::normal", "{6}"), {"waiting"}),
    "a task that is nobody's": (deletes("task:task-4"), {"untasked"}),
    "a slot of nobody": (adds("slots", "job_none"), {"strays"}),
    "a slot of a deleted job, for ever": (forgets_what_remains, {"strays"}),
    "a wait of nobody": (adds("wait::low", "job_none"), {"strays"}),
    "due, but there is nothing": (adds("due", "job:job_none"), {"strays"}),
    "a line of a list without a record": (adds("jobs@bob", "job_none"), {"strays"}),
    "a record that is gone alone": (deletes("job:{4}"), {"strays", "unowned"}),
    "a batch that lost a job": (loses_a_batchs_job, {"incomplete"}),
    "a count that is off": (miscounts, {"misfolded"}),
    "a batch that is over before its jobs": (ends_a_batch_too_early, {"unended"}),
    "a notification that nobody sends": (of_its_notice(drops("due", 10, "notify")), {"untold"}),
    "a notification in no list": (of_its_notice(drops("notices", 10)), {"untold"}),
    "a notification that stays": (keeps_what_is_told_for_ever, {"unforgettable"}),
    "a notification that is gone alone": (of_its_notice(deletes("notice:{10}")), {"strays"}),
}


@pytest.mark.parametrize("name", HURTS)
async def test_each_thing_that_is_wrong_is_found_by_its_name(name: str, store: Store, connection: AsyncRedis) -> None:
    hurt, found = HURTS[name]
    made = await fill(store, connection)
    assert await hurt(connection, made)
    assert set((await checked(store)).findings) == found


async def test_a_batch_that_is_gone_is_missed_by_its_jobs(store: Store, connection: AsyncRedis) -> None:
    await fill(store, connection)
    for key in [key async for key in connection.scan_iter(f"{PREFIX}batch:*")]:
        await connection.delete(key)
    report = await checked(store)
    assert {"unbatched", "strays"} <= set(report.findings)
    assert report.batches == 0


async def test_a_newer_releases_record_is_counted_and_not_judged(store: Store, connection: AsyncRedis) -> None:
    made = await fill(store, connection)
    newer: dict[Any, Any] = {"schema": "2", "sum": "2:of fields that we do not know"}
    await connection.hset(f"{PREFIX}job:{made[4]}", mapping=newer)
    report = await checked(store)
    assert (report.newer, report.findings) == (1, {})


def test_every_finding_of_the_script_has_its_words() -> None:
    script = (Path(__file__).parents[2] / "service/storage/lua/inspect.lua").read_text()
    for what in (
        "undue",
        "unforgettable",
        "unlisted",
        "slotted",
        "waiting",
        "unbatched",
        "untasked",
        "incomplete",
        "unended",
        "untold",
    ):
        assert what in script
        assert what in FINDINGS
