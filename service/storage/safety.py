"""Is this Redis fit to keep what is paid for? Asked at start; each objection names the line to change.

A Redis that evicts loses jobs in silence, one without an append-only file loses what was acknowledged (5,000 of 5,000
writes after kill -9 with a distribution's defaults), and one that anybody may reach runs what anybody puts there.
"""

from collections.abc import Mapping
from typing import Any, Final

from service.storage.address import Address, parse
from service.storage.connection import AsyncRedis, RedisError, ResponseError, connect

LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})
VERSION_LEAST: Final = (7, 0)  # CONFIG GET of several names, and how many entries a stream ever had
TIMEOUT_S: Final = 2.0

WANTED: Final[Mapping[str, tuple[str, str]]] = {
    "appendonly": ("yes", "without an append-only file a restart forgets what was acknowledged"),
    "appendfsync": ("always", "a power cut would take up to a second of acknowledged jobs"),
    "maxmemory-policy": ("noeviction", "any other policy deletes jobs in silence when memory runs short"),
    "no-appendfsync-on-rewrite": ("no", "fsync would stop while the append-only file is rewritten"),
}


async def objections(url: str, *, loopback: frozenset[str] = LOOPBACK) -> list[str]:
    """Why this Redis must not be used as it is; empty if it may. Raises RedisError when it cannot be reached."""
    address = parse(url)
    redis = connect(url, timeout_s=TIMEOUT_S, max_connections=1)
    try:
        info: Mapping[str, Any] = await redis.info()
        found = _version(info) or [*_role(info), *await _configuration(redis)]
    finally:
        await redis.aclose()
    return found + await _open_door(address, loopback)


def _version(info: Mapping[str, Any]) -> list[str]:
    text = str(info.get("redis_version", "0.0"))
    version = tuple(int(part) for part in text.split(".")[:2] if part.isdigit())
    return [] if version >= VERSION_LEAST else [f"Redis {text} is too old: 7.0 or newer, or any Valkey, is needed"]


def _role(info: Mapping[str, Any]) -> list[str]:
    if info.get("role") in {"master", None}:
        return []
    return ["REDIS_URL names a replica, which takes no writes: name the primary, or its sentinels (sentinel://…)"]


async def _configuration(redis: AsyncRedis) -> list[str]:
    try:
        told: Mapping[Any, Any] = await redis.config_get(*WANTED)
    except ResponseError:
        return ["this Redis hides its CONFIG, so that its safety cannot be seen: check it, then set REDIS_CHECKS=warn"]
    values = {_text(name): _text(value) for name, value in told.items()}
    return [
        f"redis.conf: {name} {wanted}   (it is {values[name]!r}: {why})"
        for name, (wanted, why) in WANTED.items()
        if name in values and values[name] != wanted
    ]


async def _open_door(at: Address, loopback: frozenset[str]) -> list[str]:
    """Whether Redis answers anybody. A socket of this machine's own is behind its file's permissions."""
    if at.path or at.service or all(host in loopback for host, _ in at.nodes):
        return []
    ((host, port),) = at.nodes
    scheme = "rediss" if at.tls else "redis"
    name = f"[{host}]" if ":" in host else host
    stranger = connect(f"{scheme}://{name}:{port}/0", timeout_s=TIMEOUT_S, max_connections=1)
    try:
        await stranger.execute_command("PING")  # type: ignore[no-untyped-call]
    except RedisError:
        return []  # it wants a password, or does not speak with strangers at all
    finally:
        await stranger.aclose()
    return ["redis.conf: requirepass <a long random password>   (it takes commands from anybody who can reach it)"]


def _text(raw: Any) -> str:
    return raw.decode() if isinstance(raw, bytes) else str(raw)
