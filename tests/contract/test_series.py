"""Which requests are one, for clients that send no key: no wish is bought twice, and no two wishes are one."""

import pytest

from service.storage.connection import AsyncRedis
from service.storage.series import DELIVERED_KEPT_S, Series
from service.storage.store import PREFIX, Store
from service.storage.terms import Limits

pytestmark = pytest.mark.anyio

WISH = "alice", "digest"
DAY_S = 24 * 3600


@pytest.fixture
def series(connection: AsyncRedis) -> Series:
    return Store(connection, Limits(max_in_flight=1, caps={}), actor="test").series


async def died(connection: AsyncRedis, name: str, ago_s: int = 1) -> None:
    """The process whose connection waited was killed, and its lease has run out."""
    now_s, _ = await connection.time()
    assert await connection.zadd(f"{PREFIX}owed:alice:digest", {name: (now_s - ago_s) * 1000}, xx=True, ch=True)


async def sought(series: Series, fresh: str, *, again: bool = False) -> str:
    return await series.join(*WISH, fresh, again=again)


async def gone(series: Series, name: str, *, delivered: bool = False) -> None:
    await series.leave(*WISH, name, delivered=delivered)


async def test_while_somebody_waits_the_same_request_is_a_wish_of_its_own(series: Series) -> None:
    assert [await sought(series, name) for name in ("one", "two")] == ["one", "two"]


async def test_a_try_that_says_so_joins_the_newest_that_is_waited_for(series: Series) -> None:
    assert [await sought(series, name) for name in ("one", "two")] == ["one", "two"]
    assert await sought(series, "three", again=True) == "two"


async def test_what_nobody_was_given_is_joined_once_its_connection_is_gone(series: Series) -> None:
    await sought(series, "one")
    await gone(series, "one")
    assert await sought(series, "two") == "one"
    assert await sought(series, "three") == "three", "the joined one is waited for again"


async def test_each_of_two_lost_connections_gets_its_own_back(series: Series) -> None:
    for name in ("one", "two"):
        await sought(series, name)
    for name in ("one", "two"):
        await gone(series, name)
    assert {await sought(series, fresh, again=True) for fresh in ("three", "four")} == {"one", "two"}


async def test_a_lost_one_is_joined_although_another_is_waited_for(series: Series) -> None:
    for name in ("one", "two"):
        await sought(series, name)
    await gone(series, "two")
    await series.keep(*WISH, "one")
    assert await sought(series, "three") == "two"


async def test_one_whose_process_was_killed_is_joined(series: Series, connection: AsyncRedis) -> None:
    await sought(series, "one")
    await died(connection, "one")
    assert await sought(series, "two") == "one"


async def test_who_still_waits_keeps_it_from_others(series: Series, connection: AsyncRedis) -> None:
    await sought(series, "one")
    await died(connection, "one")
    await series.keep(*WISH, "one")
    assert await sought(series, "two") == "two"


async def test_what_was_given_is_over_but_for_a_try_that_says_so(series: Series, connection: AsyncRedis) -> None:
    await sought(series, "one")
    await gone(series, "one", delivered=True)
    assert await sought(series, "two", again=True) == "one"
    await gone(series, "one", delivered=True)
    assert await sought(series, "three") == "three"
    left_ms = await connection.pttl(f"{PREFIX}given:alice:digest")
    assert 0 < left_ms <= DELIVERED_KEPT_S * 1000


async def test_a_second_connection_that_goes_later_does_not_bring_back_what_was_given(series: Series) -> None:
    await sought(series, "one")
    await sought(series, "two", again=True)
    await gone(series, "one", delivered=True)
    await series.keep(*WISH, "one")
    await gone(series, "one")
    assert await sought(series, "three") == "three"


async def test_what_is_owed_for_a_day_is_forgotten(series: Series, connection: AsyncRedis) -> None:
    await sought(series, "one")
    await died(connection, "one", ago_s=DAY_S - 60)
    assert await sought(series, "two") == "one"
    await died(connection, "one", ago_s=DAY_S + 60)
    assert await sought(series, "two") == "two"
    left_ms = await connection.pttl(f"{PREFIX}owed:alice:digest")
    assert 0 < left_ms <= DAY_S * 1000


async def test_other_callers_and_other_requests_have_nothing_to_do_with_it(series: Series) -> None:
    await sought(series, "one")
    await gone(series, "one")
    assert await series.join("bob", "digest", "two", again=True) == "two"
    assert await series.join("alice", "other", "three", again=True) == "three"
