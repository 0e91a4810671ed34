"""Clients of Redis: no retries of their own, every socket with a deadline, a bounded pool that waits.

redis-py sends again by itself (10 times by default, EVAL and MULTI included). Here it never does: a write that may have
happened is then seen as such by those who can tell. Behind sentinels each new connection asks them for the primary; the
URL's credentials are those of Redis, and the sentinels are asked with them first, then without.

Other rooms take their Redis names from here.
"""

from collections.abc import Awaitable, Iterable
from dataclasses import dataclass
from typing import Any, Final

import redis
import redis.asyncio
import redis.asyncio.retry
import redis.asyncio.sentinel
import redis.backoff
import redis.retry
import redis.sentinel
from redis.asyncio.client import Pipeline as AsyncPipeline
from redis.exceptions import RedisError, ResponseError
from redis.maint_notifications import MaintNotificationsConfig

from service.storage.address import Address, parse

__all__ = ["AsyncPipeline", "AsyncRedis", "Redis", "RedisError", "ResponseError", "connect", "connect_sync"]

AsyncRedis = redis.asyncio.Redis
Redis = redis.Redis

MAX_CONNECTIONS: Final = 16


def connect(url: str, *, timeout_s: float, max_connections: int = MAX_CONNECTIONS) -> AsyncRedis:
    """An asyncio client; nothing is sent yet. `timeout_s` bounds connecting, each answer and the wait for a connection.

    A blocking command must ask for less than `timeout_s`. ValueError: the URL is wrong. Close it with `aclose()`.
    """
    client: AsyncRedis = _client(_ASYNC, parse(url), timeout_s, max_connections)
    return client


def connect_sync(url: str, *, timeout_s: float, max_connections: int = MAX_CONNECTIONS) -> Redis:
    """The same for threads. Close it with `close()`."""
    client: Redis = _client(_SYNC, parse(url), timeout_s, max_connections)
    return client


async def _sent(sending: Awaitable[None]) -> None:
    """A connection that closed before a write is a RuntimeError of uvloop: it is an outage like any other."""
    try:
        await sending
    except RuntimeError as error:
        raise redis.ConnectionError(str(error)) from error


class _Connection(redis.asyncio.Connection):
    async def _send_packed_command(self, command: Iterable[bytes]) -> None:
        await _sent(super()._send_packed_command(command))


class _TlsConnection(redis.asyncio.SSLConnection):
    async def _send_packed_command(self, command: Iterable[bytes]) -> None:
        await _sent(super()._send_packed_command(command))


class _UnixConnection(redis.asyncio.UnixDomainSocketConnection):
    async def _send_packed_command(self, command: Iterable[bytes]) -> None:
        await _sent(super()._send_packed_command(command))


class _PrimaryConnection(redis.asyncio.sentinel.SentinelManagedConnection):
    async def _send_packed_command(self, command: Iterable[bytes]) -> None:
        await _sent(super()._send_packed_command(command))


class _TlsPrimaryConnection(redis.asyncio.sentinel.SentinelManagedSSLConnection):
    async def _send_packed_command(self, command: Iterable[bytes]) -> None:
        await _sent(super()._send_packed_command(command))


class _AsyncSentinelPool(redis.asyncio.sentinel.SentinelConnectionPool, redis.asyncio.BlockingConnectionPool):
    """redis-py's own raises at once when all its connections are in use, and leaves those to the sentinels open."""

    async def disconnect(self, inuse_connections: bool = True) -> None:
        await super().disconnect(inuse_connections)
        if inuse_connections:
            await self.sentinel_manager.aclose()


class _SentinelPool(redis.sentinel.SentinelConnectionPool, redis.BlockingConnectionPool):
    """The same."""

    def disconnect(self, inuse_connections: bool = True) -> None:
        super().disconnect(inuse_connections)
        if inuse_connections:
            for sentinel in self.sentinel_manager.sentinels:
                sentinel.close()


@dataclass(frozen=True, slots=True)
class _Kit:
    """The classes of one flavour of redis-py. Any: the two flavours share no types."""

    client: Any
    pool: Any
    plain: Any
    tls: Any
    unix: Any
    primary: Any
    tls_primary: Any
    sentinel: Any
    sentinel_pool: Any
    retry: Any


_ASYNC: Final = _Kit(
    redis.asyncio.Redis,
    redis.asyncio.BlockingConnectionPool,
    _Connection,
    _TlsConnection,
    _UnixConnection,
    _PrimaryConnection,
    _TlsPrimaryConnection,
    redis.asyncio.sentinel.Sentinel,
    _AsyncSentinelPool,
    redis.asyncio.retry.Retry,
)
_SYNC: Final = _Kit(
    redis.Redis,
    redis.BlockingConnectionPool,
    redis.Connection,
    redis.SSLConnection,
    redis.UnixDomainSocketConnection,
    redis.sentinel.SentinelManagedConnection,
    redis.sentinel.SentinelManagedSSLConnection,
    redis.sentinel.Sentinel,
    _SentinelPool,
    redis.retry.Retry,
)


def _client(kit: _Kit, at: Address, timeout_s: float, max_connections: int) -> Any:
    socket: dict[str, Any] = {
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        "retry": kit.retry(redis.backoff.NoBackoff(), 0),
        # With it on, as it is by default, the pool hands out connections that the server has closed (8.1).
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),
        **dict(at.options),
    }
    credentials = {"username": at.username, "password": at.password}
    pool = {"db": at.db, "timeout": timeout_s, "max_connections": max_connections, **socket, **credentials}
    if at.service:
        manager = _sentinels(kit, at, socket, credentials)
        kind = kit.tls_primary if at.tls else kit.primary
        return kit.client.from_pool(kit.sentinel_pool(at.service, manager, connection_class=kind, **pool))
    if at.path:
        return kit.client.from_pool(kit.pool(connection_class=kit.unix, path=at.path, **pool))
    ((host, port),) = at.nodes
    return kit.client.from_pool(
        kit.pool(connection_class=kit.tls if at.tls else kit.plain, host=host, port=port, **pool)
    )


def _sentinels(kit: _Kit, at: Address, socket: dict[str, Any], credentials: dict[str, str | None]) -> Any:
    """Each sentinel once with the credentials and once without: many run open beside a Redis that asks for a password.

    Discovery takes the next one when a sentinel refuses, and keeps to the one that answered.
    """
    base = socket | {"ssl": at.tls}
    manager = kit.sentinel(at.nodes, sentinel_kwargs=base | credentials)
    if any(credentials.values()):
        manager.sentinels += kit.sentinel(at.nodes, sentinel_kwargs=base).sentinels
    return manager


def text(raw: bytes | str) -> str:
    """What Redis gave, whatever bytes it holds: written back, they are the same."""
    return raw.decode("utf-8", "surrogateescape") if isinstance(raw, bytes) else raw
