"""Tasks that the workers under test may run, and the job class that lists them."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

from workers.worker import ListedJob, current_id


class ChoreJob(ListedJob):
    listed = tuple(
        f"tests.contract.chores.{name}"
        for name in ("note", "note_plainly", "hold", "stall", "fail", "leave", "write", "answer", "write_id", "spoil")
    )


class Desk:
    """What the chores of this process did, and a gate that `hold` waits at."""

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


desks: list[Desk] = []  # RQ calls by name, so what it calls finds its desk here


async def note(what: str) -> None:
    desks[-1].noted.append(what)
    desks[-1].changed.set()


def note_plainly(what: str) -> None:
    desks[-1].noted.append(what)


async def hold(what: str) -> None:
    desks[-1].held.append(what)
    desks[-1].changed.set()
    await desks[-1].gate.wait()
    await note(what)


async def stall(what: str) -> None:
    desks[-1].held.append(what)
    desks[-1].changed.set()
    await asyncio.Event().wait()


async def fail(what: str) -> None:
    raise LookupError(f"https://bucket/image?sig={what}")


async def leave(what: str) -> None:
    raise SystemExit(what)


async def write(path: str) -> None:
    await asyncio.sleep(0)
    Path(path).write_text(f"{os.getpid()}")


async def write_id(path: str) -> None:
    Path(path).write_text(current_id() or "")


async def answer(order: dict[str, str]) -> dict[str, str | None]:
    return {"id": current_id(), "caller": order["caller"]}


async def spoil(what: str) -> object:
    """A result that JSON cannot spell."""
    return {what}
