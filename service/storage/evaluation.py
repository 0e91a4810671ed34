"""Runs the script: by its hash, sent again where Redis has forgotten it, and confirmed by replicas where asked to."""

from collections.abc import Sequence
from typing import Any, Final

from service.storage.connection import AsyncRedis, ResponseError, text
from service.storage.script import SCRIPT, SHA
from service.storage.terms import Limits, Unconfirmed

READY: Final = "ready"  # a key that is only there to be written
READY_KEPT_MS: Final = 60_000
# What is on record now, by this call or by one before it, whose caller may not have heard that replicas have it.
WRITTEN: Final = frozenset({"created", "applied", "already", "replayed", "retried", "enrolled"})


class Evaluation:
    """`prefix` is that of all keys, and the one that the script is given."""

    def __init__(self, redis: AsyncRedis, limits: Limits, prefix: str) -> None:
        self._redis = redis
        self._limits = limits
        self._prefix = prefix

    async def run(self, argv: Sequence[str], *, confirm: bool) -> list[Any]:
        """What the verb `argv[0]` answers. Raises RedisError; Unconfirmed: on record, but too few replicas said so."""
        try:
            return await self._evaluate("EVALSHA", SHA, argv, confirm=confirm)
        except ResponseError as error:
            if not str(error).startswith("NOSCRIPT") and "NOSCRIPT" not in type(error).__name__.upper():
                raise
        return await self._evaluate("EVAL", SCRIPT, argv, confirm=confirm)

    async def _evaluate(self, command: str, script: str, argv: Sequence[str], *, confirm: bool) -> list[Any]:
        limits = self._limits
        words = (command, script, 1, self._prefix, *(word.encode("utf-8", "surrogateescape") for word in argv))
        if not confirm or limits.replicas == 0:
            return _decoded(await self._redis.execute_command(*words))  # type: ignore[no-untyped-call, no-any-return]
        # WAIT speaks of its own connection's writes, and replicas take all writes in their order: one right before it
        # makes it speak of what another connection wrote, too, where the script finds the job on record.
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.execute_command(*words)
            pipe.set(self._prefix + READY, "1", px=READY_KEPT_MS)
            pipe.execute_command("WAIT", limits.replicas, int(limits.replicas_timeout_s * 1000))
            raw, _, confirmed = await pipe.execute()
        reply: list[Any] = _decoded(raw)
        if confirmed < limits.replicas and reply[0] in WRITTEN:
            known = reply[3] if len(reply) > 3 else None
            raise Unconfirmed(f"{confirmed} of {limits.replicas} replicas confirmed the write", known)
        return reply


def _decoded(reply: Any) -> Any:
    if isinstance(reply, list):
        return [_decoded(word) for word in reply]
    return text(reply) if isinstance(reply, bytes) else reply
