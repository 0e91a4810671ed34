"""Suspects: jobs that were in flight when a worker process died. One of them may have killed it, and may do so again.

A process beats; one whose beat has stopped is dead, and what it had in flight becomes one group of suspects. A group
runs at once, but in a process of its own. Each crash of that halves it; whoever crashes alone is counted, and waits.
Whatever ends without a crash is cleared. Killed at any point: groups have leases, too, and come due by themselves.
"""

from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol


class Run(Protocol):
    """A verb of the script, with its arguments."""

    def __call__(self, verb: str, arguments: Mapping[str, Any]) -> Awaitable[list[Any]]: ...


@dataclass(frozen=True, slots=True)
class Group:
    """Jobs that run together in a process of their own, until `lease_end` (ms, Redis's clock) by this one's order.

    `crashes`: how often the same have crashed before: one job alone, or several together with their keeper.
    """

    id: str
    lease_end: int
    jobs: tuple[str, ...]
    crashes: int = 0


@dataclass(frozen=True, slots=True)
class Crashed:
    """A job that crashed `times` when it was alone."""

    job_id: str
    times: int


class Quarantine:
    """The verbs of `the script` that speak of processes and suspects; each is guarded like any other write."""

    def __init__(self, run: Run) -> None:
        self._run = run

    async def beat(self) -> None:
        """Show that the process lives."""
        await self._run("beat", {})

    async def leave(self) -> None:
        """The process ends of its own will: nothing of it is in flight, and nobody suspect."""
        await self._run("leave", {})

    async def reap(self, lost_s: float) -> tuple[str, ...]:
        """The processes that have not beaten for so long; what they had in flight is suspect now."""
        return tuple((await self._run("reap", {"lost_ms": round(lost_s * 1000)}))[3])

    async def isolate(self, lease_s: float) -> Group | None:
        """A group that is due, if there is one. It is ours until its lease ends."""
        reply = await self._run("isolate", {"lease_ms": round(lease_s * 1000)})
        return Group(reply[3], int(reply[4]), tuple(reply[5]), int(reply[6])) if reply[0] == "isolated" else None

    async def bereave(self, waits_s: Sequence[float], *, most: int) -> Crashed | None:
        """Judge the next group if its process and its keeper have died together `most` times: as `blame` does."""
        told = {"waits_ms": [round(wait * 1000) for wait in waits_s], "most": most}
        reply = await self._run("bereave", told)
        return Crashed(reply[3], int(reply[4])) if reply[0] == "alone" else None

    async def keep(self, group: Group, lease_s: float) -> Group | None:
        """The group under a lease that ends so much later; None: it is not ours any more."""
        reply = await self._run("keep", _fence(group) | {"lease_ms": round(lease_s * 1000)})
        return replace(group, lease_end=int(reply[3])) if reply[0] == "renewed" else None

    async def give_back(self, group: Group, after_s: float) -> None:
        """Its process is gone, and nobody is to blame: it is due again after so long."""
        await self._run("give_back", _fence(group) | {"wait_ms": round(after_s * 1000)})

    async def clear(self, group: Group) -> None:
        """Its process has ended well."""
        await self._run("clear", _fence(group))

    async def blame(self, group: Group, waits_s: Sequence[float], *, again_s: float) -> Crashed | None:
        """Its process has crashed. A lone job runs again `waits_s[n - 1]` after its crash number n, at least.

        After one crash more than there are waits it is the caller's to end, or to `adjourn`; killed before, it runs and
        crashes again.
        A process that has crashed before it had a job in its hands accuses none: the group runs again after `again_s`.
        """
        told = {"waits_ms": [round(wait * 1000) for wait in waits_s], "again_ms": round(again_s * 1000)}
        reply = await self._run("blame", _fence(group) | told)
        return Crashed(reply[3], int(reply[4])) if reply[0] == "alone" else None

    async def adjourn(self, job_id: str, wait_s: float) -> None:
        """A lone suspect that cannot be ended, since it has ended, stays one: it runs again after the wait, apart."""
        await self._run("adjourn", {"id": job_id, "wait_ms": round(wait_s * 1000)})

    async def acquit(self, job_id: str) -> None:
        """What had to come of its suspicion has come."""
        await self._run("acquit", {"id": job_id})


def _fence(group: Group) -> dict[str, Any]:
    return {"group": group.id, "lease_end": group.lease_end}
