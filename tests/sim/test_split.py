"""Redis fails over in the midst of a storm, to a replica that was behind, or both serve for a while (F17)."""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Final

import pytest

from tests.sim.memory import Memory
from tests.sim.split import Split

SEEDS: Final = [range(25), pytest.param(range(1_000), marks=pytest.mark.soak)]
SEEDS_MOST: Final = 400


@pytest.fixture(autouse=True)
def silence() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("seeds", SEEDS, ids=lambda seeds: f"{len(seeds)} seeds")
def test_no_end_flips_in_either_history_and_what_the_bucket_tells_stays(seeds: range) -> None:
    counts: Counter[str] = Counter()
    for seed in seeds:
        split = Split(seed)
        try:
            split.run()
        except BaseException as error:
            error.add_note(f"again: Split({seed})")
            raise
        assert split.taken
        counts.update(split.taken.counts)
    print(f"{len(seeds)} seeds: no promise of either history broken; of the jobs {dict(counts)}")
    assert counts["unheard of"] > len(seeds) / 4, "the replica was behind"


@pytest.mark.soak
def test_by_their_versions_alone_two_histories_are_not_told_apart() -> None:
    """The digest out: a decision on what the old primary knew is taken for one on what the new one knows."""
    for seed in range(SEEDS_MOST):
        try:
            Unaware(seed).run()
        except Exception as broken:  # noqa: BLE001 -- whatever shows first
            print(f"seed {seed}: {str(broken)[:300]}")
            return
    pytest.fail(f"{SEEDS_MOST} seeds did not notice")


class Unaware(Split):
    def replica(self) -> Memory:
        memory = super().replica()
        verb_run = memory.run

        def unaware(verb: str, a: Mapping[str, Any], fields: Mapping[str, str]) -> list[Any]:
            return verb_run(verb, {name: value for name, value in a.items() if name != "digest"}, fields)

        memory.run = unaware  # type: ignore[method-assign]  # sabotage
        return memory
