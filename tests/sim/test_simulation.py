"""Thousands of short histories in which everything goes wrong, one a seed. `make sim SEED=…` tells one."""

import gc
import logging
import os
from collections import Counter
from collections.abc import Iterator
from typing import Final

import pytest

from tests.sim.storm import Storm

SEEDS: Final = range(2_000)
BLOCK: Final = 20  # seeds a test: many tests, so that this file is the first that is given to a process
COLLECT_EACH: Final = 10
SOAK_SEEDS: Final = range(len(SEEDS), 100_000)
SOAK_BLOCK: Final = 500


def chosen(text: str | None) -> range:
    """SEEDS=31000-40000: a part of the soak's, so that it may be run in pieces; the last is not of them."""
    if not text:
        return SOAK_SEEDS
    first, _, end = text.partition("-")
    return range(int(first), int(end or int(first) + 1))


def blocks(seeds: range, size: int) -> list[range]:
    return [seeds[start : start + size] for start in range(0, len(seeds), size)]


def named(seeds: range) -> str:
    return f"{seeds[0]}-{seeds[-1]}"


@pytest.fixture(autouse=True)
def silence() -> Iterator[None]:
    """What the service says of ten thousand deaths is not for reading."""
    logging.disable(logging.CRITICAL)
    gc.collect()
    gc.freeze()
    gc.disable()  # a sixth of the time; `weather` clears away what a few histories leave
    yield
    gc.enable()
    gc.unfreeze()
    logging.disable(logging.NOTSET)


def weather(seeds: range) -> None:
    """Every seed is run, whatever the others did: a failure names each that broke a promise.

    Raises:
        ExceptionGroup: what they broke, each with the command that repeats it.

    """
    ends: Counter[str] = Counter()
    deaths = 0
    broken: list[Exception] = []
    for seed in seeds:
        try:
            tale = Storm(seed).run()
        except Exception as error:  # noqa: BLE001 whatever breaks, the other seeds are run
            error.add_note(f"again: make sim SEED={seed}")
            broken.append(error)
            continue
        ends.update(tale.ends)
        deaths += tale.deaths
        if seed % COLLECT_EACH == 0:
            gc.collect()
    print(f"seeds {named(seeds)}: {dict(ends)}, {deaths} processes died, {len(broken)} broke a promise")
    if broken:
        raise ExceptionGroup(f"seeds {named(seeds)}: {len(broken)} broke a promise", broken)


@pytest.mark.parametrize("seeds", blocks(SEEDS, BLOCK), ids=named)
def test_no_storm_breaks_a_promise(seeds: range) -> None:
    weather(seeds)


def test_a_seed_tells_the_same_story_twice() -> None:
    assert Storm(7).run() == Storm(7).run()


@pytest.mark.soak
@pytest.mark.parametrize("seeds", blocks(chosen(os.environ.get("SEEDS")), SOAK_BLOCK), ids=named)
def test_no_storm_of_a_hundred_thousand_breaks_a_promise(seeds: range) -> None:
    weather(seeds)
