"""Tasks for the workers under test, and the job class that lists them."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from workers.worker import ListedJob, current_id


class Desk:
    """What the chores of this process did, and the gate that `hold` waits at."""

    def __init__(self) -> None:
        self.noted: list[str] = []
        self.held: list[str] = []
        self.changed = asyncio.Event()
        self.gate = asyncio.Event()

    async def until(self, condition: Callable[[], bool], within_s: float = 20.0) -> None:
        async with asyncio.timeout(within_s):
            while not condition():
                self.changed.clear()
                await self.changed.wait()


@contextmanager
def open_desk() -> Iterator[Desk]:
    desks.append(Desk())
    yield desks[-1]
    desks.pop()


desks: list[Desk] = []  # RQ calls by name; what it calls finds its desk here


async def note(what: str) -> None:
    desks[-1].noted.append(what)
    desks[-1].changed.set()


def note_plainly(what: str) -> None:
    """In a thread; an asyncio.Event is not for threads, so nothing is rung here."""
    desks[-1].noted.append(what)


async def hold(what: str) -> None:
    desks[-1].held.append(what)
    desks[-1].changed.set()
    await desks[-1].gate.wait()
    await note(what)


async def fail(what: str) -> None:
    raise LookupError(f"https://bucket.test/image?sig={what}")


async def leave(what: str) -> None:
    raise SystemExit(what)


async def answer(order: dict[str, str]) -> dict[str, str | None]:
    return {"id": current_id(), "caller": order["caller"]}


async def write(path: str) -> None:
    await asyncio.to_thread(Path(path).write_text, current_id() or "")
    if desks:
        await note(path)


class ChoreJob(ListedJob):
    listed = tuple(
        f"{task.__module__}.{task.__name__}" for task in (note, note_plainly, hold, fail, leave, answer, write)
    )
