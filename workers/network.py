"""The way out: HTTP clients in shards, and a dialer that connects to checked addresses alone.

The guard sits where the connection is made. A check made earlier, on the URL, is undone by a name that resolves
differently a moment later; here the address that was judged is the address that is dialled.
"""

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from http.cookiejar import CookieJar, DefaultCookiePolicy
from itertools import cycle
from types import TracebackType
from typing import Final, Self

import httpcore
import httpx

from service.domain.addresses import why_not_public
from workers.resolver import Resolver

SHARD_CONNECTIONS: Final = 8  # httpx's pool does work in the square of its connections: at 100, 14 ms of CPU a request
ADDRESSES_TRIED: Final = 3  # each gets its share of the connect timeout, so that one black hole leaves time for another

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
PrivateOk = Callable[[str, int], bool]


class AddressRefused(httpx.ConnectError):
    """A host has an address that may not be dialled. Nothing was connected."""


class GuardedBackend(httpcore.AsyncNetworkBackend):
    """Resolves once, refuses the host if any of its addresses is not public, and connects to what it has judged.

    TLS still verifies the certificate against the name, which httpcore hands to `start_tls` itself.
    `private_ok(host, port)` lets a host off the judgement, not off the single resolution. Unless told otherwise each
    resolves in threads of its own, so that the names of images wait for no caller's, and the provider's for neither.
    """

    def __init__(
        self,
        private_ok: PrivateOk,
        *,
        resolve: Resolve | None = None,
        inner: httpcore.AsyncNetworkBackend | None = None,
    ) -> None:
        self._private_ok = private_ok
        self._resolve = resolve or Resolver()
        self._inner = inner or httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - the signature is httpcore's
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect, within `timeout` seconds for everything. AddressRefused before any connection, if refused."""
        try:
            async with asyncio.timeout(timeout):
                addresses = (await self._judged(host, port))[:ADDRESSES_TRIED]
                share_s = timeout and timeout / len(addresses)
                for address in addresses[:-1]:
                    try:
                        return await self._inner.connect_tcp(address, port, share_s, local_address, socket_options)
                    except (httpcore.ConnectError, httpcore.ConnectTimeout):
                        continue
                return await self._inner.connect_tcp(addresses[-1], port, share_s, local_address, socket_options)
        except TimeoutError:
            raise httpcore.ConnectTimeout(f"{host} did not answer in time") from None

    async def _judged(self, host: str, port: int) -> Sequence[str]:
        try:
            addresses = await self._resolve(host, port)
        except (OSError, UnicodeError) as error:  # UnicodeError: Python encodes names before it asks
            raise httpcore.ConnectError(f"{host} does not resolve") from error
        if not addresses:
            raise httpcore.ConnectError(f"{host} has no address")
        if not self._private_ok(host, port):
            for address in addresses:
                if why := why_not_public(address):
                    raise AddressRefused(f"{host} has an address that is not public ({why})")
        return addresses


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long a client waits, each time. Deadlines over a whole exchange are the caller's."""

    connect_s: float = 5.0  # the name, all addresses; then the same again for TLS
    read_s: float = 30.0
    write_s: float = 10.0
    pool_s: float = 2.0  # for a free connection: more waiting means that the caller runs more than it has connections


DEFAULT_TIMEOUTS: Final = Timeouts()


class _Transport(httpx.AsyncHTTPTransport):
    """One shard. httpx takes no network backend from its callers, so its pool is replaced by one that has ours."""

    def __init__(
        self, connections: int, backend: httpcore.AsyncNetworkBackend, tls: ssl.SSLContext, keepalive_s: float
    ) -> None:
        super().__init__(verify=tls, trust_env=False)
        self._connections = connections
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=tls,
            max_connections=connections,
            max_keepalive_connections=connections,
            keepalive_expiry=keepalive_s,
            network_backend=backend,
        )

    def has_room(self) -> bool:
        return sum(not each.is_idle() for each in self._pool.connections) < self._connections


class Shards:
    """HTTP/1.1 clients of at most 8 connections each that share one TLS context. Used as an async context manager.

    `backend` decides who may be dialled: a `GuardedBackend` for addresses from strangers, `httpcore.AnyIOBackend()`
    for the operator's own. Neither proxies nor other settings are read from the environment, redirects are neither
    followed nor read, cookies never kept, nothing is retried.
    """

    def __init__(
        self,
        *,
        connections: int,
        backend: httpcore.AsyncNetworkBackend,
        timeouts: Timeouts = DEFAULT_TIMEOUTS,
        tls: ssl.SSLContext | None = None,
        keepalive_s: float = 5.0,
    ) -> None:
        tls = tls or httpx.create_ssl_context(trust_env=False)
        sizes = [min(SHARD_CONNECTIONS, connections - taken) for taken in range(0, connections, SHARD_CONNECTIONS)]
        transports = [_Transport(size, backend, tls, keepalive_s) for size in sizes]
        self._shards = [(each, _client(each, timeouts)) for each in transports]
        self._turns = cycle([client for _, client in self._shards])
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        for _, client in self._shards:
            await self._stack.enter_async_context(client)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    def client(self) -> httpx.AsyncClient:
        """Hand out the first client with a free connection (so that open ones are reused), else the next in turn.

        Ask anew for every request, and send it at once: what is handed out is not reserved.
        """
        return next((client for transport, client in self._shards if transport.has_room()), None) or next(self._turns)


def _client(transport: httpx.AsyncBaseTransport, timeouts: Timeouts) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        transport=transport,
        timeout=httpx.Timeout(
            connect=timeouts.connect_s, read=timeouts.read_s, write=timeouts.write_s, pool=timeouts.pool_s
        ),
        cookies=CookieJar(policy=DefaultCookiePolicy(allowed_domains=[])),
        headers={"User-Agent": "darkroom"},
        follow_redirects=False,
        event_hooks={"response": [_lead_nowhere]},
        trust_env=False,
    )


async def _lead_nowhere(response: httpx.Response) -> None:
    """Of a redirect that it does not follow httpx makes the next request all the same; for `mailto:x` it cannot."""
    response.headers.pop("location", None)
