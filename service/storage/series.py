"""Which requests are one: for clients that send no idempotency key and try again by themselves."""

from collections.abc import Awaitable, Mapping
from typing import Any, Final, Protocol

LEASE_S: Final = 10.0
DELIVERED_KEPT_S: Final = 600.0  # a client whose answer was lost on its way tries again within that


class Run(Protocol):
    """A verb of the script, with its arguments."""

    def __call__(self, verb: str, arguments: Mapping[str, Any]) -> Awaitable[list[Any]]: ...


class Series:
    """`digest` is that of the request; a series is one wish for it. Every method raises RedisError."""

    def __init__(self, run: Run) -> None:
        self._run = run

    async def join(self, caller: str, digest: str, fresh: str, *, again: bool) -> str:
        """The name of the series that this request belongs to: `fresh`, where it is the first of one.

        It joins the oldest whose answer nobody was given and that nobody waits for any more. `again`: the client says
        that it tries again; then, where there is none such, it joins the newest, waited for or given.
        """
        told = {"caller": caller, "digest": digest, "name": fresh, "again": again, "lease_ms": round(LEASE_S * 1000)}
        return str((await self._run("join", told))[3])

    async def keep(self, caller: str, digest: str, name: str) -> None:
        """Somebody still waits for it."""
        await self._tell(caller, digest, name, lease_ms=round(LEASE_S * 1000))

    async def leave(self, caller: str, digest: str, name: str, *, delivered: bool) -> None:
        """Nobody waits any more. `delivered`: the answer went out."""
        kept = {"delivered": delivered, "kept_ms": round(DELIVERED_KEPT_S * 1000)}
        await self._tell(caller, digest, name, lease_ms=0, **kept)

    async def _tell(self, caller: str, digest: str, name: str, **told: Any) -> None:
        await self._run("attended", {"caller": caller, "digest": digest, "name": name, **told})
