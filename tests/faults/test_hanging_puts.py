"""One put in five hangs: how much of their flow the other jobs keep, beside a run in which none does (F23)."""

from collections.abc import Iterator
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Final

import pytest

from deploy.local.stack import Stack
from service.domain import layout
from tests.hanging_store import HangingStore
from tests.integration.house import House, JobView

pytestmark = [pytest.mark.soak, pytest.mark.processes, pytest.mark.timeout(1800)]

JOBS: Final = 250
ROUNDS: Final = 2
SHARE: Final = 0.2
WITHIN_S: Final = 600.0


@pytest.fixture
def way() -> Iterator[HangingStore]:
    with HangingStore(SHARE) as way:
        yield way


def test_puts_that_hang_lose_nothing_and_the_flow_of_the_others_is_told(way: HangingStore, tmp_path: Path) -> None:
    """Measured side by side, with and without, in turn. The share is printed: it depends on `COLLECT_SLOTS`."""
    rates: dict[bool, list[float]] = {False: [], True: []}
    stack = Stack(tmp_path, workers=1, overrides={"S3_ENDPOINT_URL": way.url})
    way.target = f"127.0.0.1:{stack.store.port}"
    with stack, closing(House(stack)) as house:
        for number in range(2 * ROUNDS):
            way.hanging = bool(number % 2)
            rates[way.hanging].append(flow(house, way, f"round {number}"))
        assert house.fsck() == {}
    ratio = sum(rates[True]) / sum(rates[False])
    print(f"the others flow at {ratio:.0%} of what they do when nothing hangs")
    assert way.hung > ROUNDS * JOBS * SHARE


def flow(house: House, way: HangingStore, name: str) -> float:
    """Jobs a second, of those none of whose first puts hangs, or would."""
    house.control(latency_s=2, latency_spread_s=1, max_in_flight=24)
    jobs = house.await_ended(house.post_many(JOBS, name), WITHIN_S)
    house.audit(jobs)
    assert set(house.purchases(jobs).values()) == {1}
    others = [job for job in jobs if not any(map(way.unlucky, puts_of(job)))]
    took_s = max(at(job, "finished_at") for job in others) - min(at(job, "created_at") for job in jobs)
    rate = len(others) / took_s
    print(f"{name}, hanging: {way.hanging}: {len(others)} others of {JOBS} in {took_s:.1f} s, {rate:.1f} a second")
    return rate


def puts_of(job: JobView) -> tuple[str, str]:
    return job["image"]["key"], layout.sidecar_key(job["id"])


def at(job: JobView, instant: str) -> float:
    return datetime.fromisoformat(job[instant]).timestamp()
