"""The bucket is away, or believes our keys no more, for minutes of virtual time: nothing is lost or bought again."""

import asyncio
import random
from collections import Counter
from typing import Final

import pytest

from service.storage.terms import Limits
from tests.sim.provider import URL_LIFE_S, Manners
from tests.sim.staff import Terms
from tests.sim.test_afternoons import CAP, HOUR_S, told
from tests.sim.test_refusals import bought, ends
from tests.sim.town import Sim

JOBS: Final = 40
MINUTE_S: Final = 60.0
RESUMED_S: Final = 30.0
MOMENTS_S: Final = 5.0
SOAKED: Final = ((5, True), (5, False), (20, True))  # minutes, with a spool
SPOOL: Final = pytest.mark.parametrize("spool", [True, False], ids=["spool", "no spool"])


def opened(dice: random.Random, *, spool: bool, gone: float = 0.0, sweep_s: float = 5.0) -> Sim:
    terms = Terms(limits=Limits(max_in_flight=CAP), spool=spool, generation_timeout_s=900.0, sweep_s=sweep_s)
    return Sim(dice, Manners(takes_s=(2.0, 6.0), gone=gone), terms, workers=2)


async def lived_through(sim: Sim, outage_s: float) -> list[str]:
    """Jobs are ordered until the outage is over, and it begins with the first images; the ids of all."""
    ids = []
    for number in range(JOBS):
        ids.append(await sim.order(f"picture {number}") or "")
        await asyncio.sleep(outage_s / JOBS)
    await asyncio.sleep(outage_s - sim.world.now_s())
    return ids


def codes(sim: Sim) -> Counter[str]:
    jobs = map(sim.job, sim.world.memory.jobs)
    return Counter(str(job.error.code) for job in jobs if job.error)


@pytest.mark.parametrize(
    ("minutes", "spool"),
    [(12, True), (12, False), (20, False), *(pytest.param(*more, marks=pytest.mark.soak) for more in SOAKED)],
    ids=lambda each: {True: "spool", False: "no spool"}.get(each, str(each)),
)
def test_an_outage_costs_time_and_no_second_purchase(minutes: int, spool: bool) -> None:
    """F22, F27: within a URL's life of ten minutes, beyond it, beyond all patience; dead URLs are asked for again."""

    async def story(dice: random.Random) -> None:
        sim = opened(dice, spool=spool)
        sim.world.weather.away["bucket"] = minutes * MINUTE_S
        await lived_through(sim, minutes * MINUTE_S)
        early = len(sim.provider.ledger)
        await sim.until(sim.quiet, HOUR_S)
        late_s = sim.world.now_s() - minutes * MINUTE_S
        print(
            f"{minutes} min, spool {spool}: {early} bought meanwhile; {dict(ends(sim))}, the last {late_s:.0f} s later"
        )
        assert sim.faults() == []
        assert early > JOBS / 10
        assert (ends(sim), bought(sim)) == ({"succeeded": JOBS}, {1: JOBS})

    told(story)


@pytest.mark.soak
def test_a_bucket_that_is_back_for_moments_between_two_long_outages_costs_no_image() -> None:
    """F27: what had to be asked for again in the first one may be asked for again in the second."""

    async def story(dice: random.Random) -> None:
        sim = opened(dice, spool=False)
        sim.world.weather.away["bucket"] = 12 * MINUTE_S
        await lived_through(sim, 12 * MINUTE_S + MOMENTS_S)
        early = ends(sim)["succeeded"]
        sim.world.weather.away["bucket"] = 28 * MINUTE_S
        await sim.until(sim.quiet, 2 * HOUR_S)
        print(f"12 min, moments, 16 min, no spool: {early} stored between, {dict(ends(sim))}")
        assert sim.faults() == []
        assert (ends(sim), bought(sim)) == ({"succeeded": JOBS}, {1: JOBS})

    told(story)


@SPOOL
def test_when_dead_urls_are_not_given_anew_the_spool_alone_saves_what_is_paid_for(spool: bool) -> None:
    """F27: without it those whose URL has died end as `result_expired`; nothing is bought again by itself."""

    async def story(dice: random.Random) -> None:
        sim = opened(dice, spool=spool, gone=1.0)
        sim.world.weather.away["bucket"] = 12 * MINUTE_S
        await lived_through(sim, 12 * MINUTE_S)
        await sim.until(sim.quiet, HOUR_S)
        print(f"12 min, no fresh URL, spool {spool}: {dict(ends(sim))}, {dict(codes(sim))}, bought {dict(bought(sim))}")
        assert sim.faults() == []
        assert bought(sim) == {1: JOBS}
        assert set(codes(sim)) == (set() if spool else {"result_expired"})

    told(story)


@SPOOL
def test_keys_that_the_bucket_refuses_for_ten_minutes_fail_no_job(spool: bool) -> None:
    """F26: what waited is stored within half a minute of their being mended."""

    async def story(dice: random.Random) -> None:
        sim = opened(dice, spool=spool, sweep_s=1.0)
        sim.shelf.refuses = True
        ids = await lived_through(sim, URL_LIFE_S)
        waiting = [job_id for job_id in ids if sim.job(job_id).status == "collecting"]
        assert (ends(sim)["failed"], ends(sim)["succeeded"]) == (0, 0)
        sim.shelf.refuses = False
        mended_s = sim.world.now_s()
        await sim.until(lambda: all(sim.job(job_id).ended for job_id in waiting), HOUR_S)
        took_s = sim.world.now_s() - mended_s
        await sim.until(sim.quiet, HOUR_S)
        print(f"403 for 600 s, spool {spool}: {len(waiting)} had waited, the last stored {took_s:.0f} s after it,")
        print(f"{dict(ends(sim))}, bought {dict(bought(sim))}")
        assert sim.faults() == []
        assert took_s <= RESUMED_S
        assert (ends(sim), bought(sim)) == ({"succeeded": JOBS}, {1: JOBS})

    told(story)
