"""Names that strangers chose are asked for in few threads, none of which anybody else needs."""

import asyncio
import threading
from collections.abc import Sequence

import pytest

from workers.resolver import Resolver

pytestmark = pytest.mark.anyio

WITHIN_S = 30.0


class System:
    """Knows every name, but those that begin with `slow` only once `gate` is open."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.asked: list[str] = []
        self.daemons: list[bool] = []
        self.gate = threading.Event()
        self.began = asyncio.Semaphore(0)

    def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append(host)
        self.daemons.append(threading.current_thread().daemon)
        self._loop.call_soon_threadsafe(self.began.release)
        if host.startswith("slow"):
            self.gate.wait(WITHIN_S)
        return [f"address of {host}"]

    async def is_asked(self) -> None:
        await asyncio.wait_for(self.began.acquire(), WITHIN_S)


async def leave(tasks: Sequence[asyncio.Task[Sequence[str]]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_slow_name_has_one_thread_however_many_came_and_went() -> None:
    system = System()
    resolve = Resolver(system, most=2)
    waiting = [asyncio.ensure_future(resolve("slow.example", 443)) for _ in range(8)]
    await system.is_asked()
    await leave(waiting[1:])
    assert await asyncio.wait_for(resolve("quick.example", 443), WITHIN_S) == ["address of quick.example"]
    again = [asyncio.ensure_future(resolve("slow.example", port)) for port in (443, 8443)]
    assert await asyncio.wait_for(resolve("quick.example", 443), WITHIN_S) == ["address of quick.example"]
    system.gate.set()
    assert await asyncio.gather(waiting[0], *again) == [["address of slow.example"]] * 3
    assert system.asked == ["slow.example", "quick.example", "quick.example"]


async def test_a_place_is_taken_until_its_thread_has_ended_and_who_left_is_not_asked_for() -> None:
    system = System()
    resolve = Resolver(system, most=2)
    stuck = [asyncio.ensure_future(resolve(f"slow-{n}.example", 443)) for n in range(2)]
    for _ in stuck:
        await system.is_asked()
    await leave(stuck)
    impatient = asyncio.ensure_future(resolve("impatient.example", 443))
    patient = asyncio.ensure_future(resolve("patient.example", 443))
    await asyncio.sleep(0)  # both have begun to wait
    await leave([impatient])
    assert sorted(system.asked) == ["slow-0.example", "slow-1.example"]
    system.gate.set()
    assert await asyncio.wait_for(patient, WITHIN_S) == ["address of patient.example"]
    assert "impatient.example" not in system.asked


async def test_no_thread_holds_up_the_end_of_the_process() -> None:
    system = System()
    await Resolver(system)("quick.example", 443)
    assert system.daemons == [True]


@pytest.mark.parametrize("error", [OSError("no such host"), UnicodeError("label too long"), KeyError("surprise")])
async def test_what_the_system_raises_is_raised_to_each_who_waits(error: Exception) -> None:
    def unknown(host: str, port: int) -> Sequence[str]:
        raise error

    resolve = Resolver(unknown)
    told = await asyncio.gather(*(resolve("a.example", 443) for _ in range(2)), return_exceptions=True)
    assert told == [error, error]
    with pytest.raises(type(error)):
        await resolve("a.example", 443)
