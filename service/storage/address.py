"""Where Redis is: what a REDIS_URL says.

    redis://[user:pass@]host[:6379][/db]        rediss://… the same over TLS        unix://[user:pass@]/path[?db=n]
    sentinel://[user:pass@]host[:26379],host[:26379]/service[/db]                   sentinels://… the same over TLS

Special characters in a user or password are percent-encoded. `ssl_ca_certs`, `ssl_certfile` and `ssl_keyfile` (paths)
may follow a TLS scheme as options. Nothing else may: an option could undo a deadline.
"""

from dataclasses import dataclass, field
from typing import Final
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

REDIS_PORT: Final = 6379
SENTINEL_PORT: Final = 26379
PORT_MAX: Final = 65_535
SENTINEL_SCHEMES: Final = ("sentinel", "sentinels")
TLS_SCHEMES: Final = ("rediss", "sentinels")
SCHEMES: Final = ("redis", "rediss", "unix", *SENTINEL_SCHEMES)
TLS_OPTIONS: Final = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")


@dataclass(frozen=True, slots=True)
class Address:
    """`nodes` (host, port) are Redis itself, or its sentinels when `service` is named; `path` is a unix socket."""

    nodes: tuple[tuple[str, int], ...] = ()
    path: str = ""
    service: str = ""
    db: int = 0
    tls: bool = False
    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    options: tuple[tuple[str, str], ...] = ()


class AddressError(ValueError):
    """A sentence without any piece of the URL: a mistyped one may hold its password anywhere."""

    def __init__(self, what: str) -> None:
        super().__init__(f"the Redis URL {what}")


def parse(url: str) -> Address:
    """The address that `url` spells. AddressError (a ValueError) for every other string."""
    try:
        parts = urlsplit(url)
    except ValueError:  # it quotes what it could not read
        raise AddressError("cannot be read: are special characters percent-encoded?") from None
    if parts.scheme not in SCHEMES:
        raise AddressError(f"must start with one of {', '.join(f'{scheme}://' for scheme in SCHEMES)}")
    if parts.fragment:
        raise AddressError("has a '#': write it as %23")
    return _unix(parts) if parts.scheme == "unix" else _hosts(parts)


def _unix(parts: SplitResult) -> Address:
    userinfo, hosts = _userinfo(parts)
    if hosts or not parts.path:
        raise AddressError("must name the socket by its whole path: unix:///run/redis.sock")
    db = _options(parts, ("db",)).get("db", "")
    return Address(path=unquote(parts.path), db=_db(db), username=userinfo[0], password=userinfo[1])


def _hosts(parts: SplitResult) -> Address:
    tls, watched = parts.scheme in TLS_SCHEMES, parts.scheme in SENTINEL_SCHEMES
    options = _options(parts, TLS_OPTIONS if tls else ())
    userinfo, hosts = _userinfo(parts)
    service, _, db = parts.path.strip("/").partition("/") if watched else ("", "", parts.path.strip("/"))
    if watched and not service:
        raise AddressError("must name the service that the sentinels watch: sentinel://host:26379/service/0")
    nodes = tuple(_node(host, SENTINEL_PORT if watched else REDIS_PORT) for host in hosts.split(","))
    if len(nodes) > 1 and not watched:
        raise AddressError("may name several hosts only if they are sentinels")
    return Address(nodes, "", unquote(service), _db(db), tls, userinfo[0], userinfo[1], tuple(options.items()))


def _userinfo(parts: SplitResult) -> tuple[tuple[str | None, str | None], str]:
    credentials, _, hosts = parts.netloc.rpartition("@")
    username, _, password = credentials.partition(":")
    if "@" in credentials:
        raise AddressError("has an '@' in its user or password: write it as %40")
    return (unquote(username) or None, unquote(password) or None), hosts


def _node(text: str, default: int) -> tuple[str, int]:
    """`host`, `host:port`, `[::1]` or `[::1]:port`."""
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        port = rest.removeprefix(":")
    else:
        host, _, port = text.partition(":")
    if not host:
        raise AddressError("must name a host")
    number = _number(port, default)
    if not 0 < number <= PORT_MAX:
        raise AddressError(f"must name a port from 1 to {PORT_MAX}")
    return host, number


def _db(text: str) -> int:
    number = _number(text, 0)
    if number < 0:
        raise AddressError("must name the database by its number, or not at all")
    return number


def _number(text: str, default: int) -> int:
    """`default` if nothing is written, -1 if it is not a short decimal number."""
    if not text:
        return default
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 5 else -1


def _options(parts: SplitResult, known: tuple[str, ...]) -> dict[str, str]:
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    if set(options) - set(known):
        allowed = f"only {', '.join(known)}" if known else "none"
        raise AddressError(f"has an option it may not have (of options, {allowed}); write a '?' in a password as %3F")
    return options
