"""Which addresses and which URLs may be dialled.

Image URLs come from strangers. A URL is compared with the operator's list after one strict parse (`check_url`), and
what is dialled is built from that parse, never from the string; the addresses a name resolves to are judged at the
dial (`is_public`, called by `workers/network.py`). Everything here is pure and has a verdict for every string.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final, Literal
from urllib.parse import unquote

IPAddress = IPv4Address | IPv6Address

URL_MAX_CHARS: Final = 2083  # the provider's own limit for the URLs it takes
RESULT_URL_MAX_CHARS: Final = 8_192  # for those it gives: a signature with a session token passes 2,000
HOST_MAX_CHARS: Final = 253  # RFC 1035, section 2.3.4, without the final dot
LOG_MAX_CHARS: Final = 200

Scheme = Literal["http", "https"]
_SCHEMES: Final[dict[str, Scheme]] = {"http": "http", "https": "https"}
_DEFAULT_PORT: Final[dict[Scheme, int]] = {"http": 80, "https": 443}

# `ipaddress.is_global` calls several of these public (6to4, NAT64 around loopback, multicast, ORCHID, the 6bone), and
# its answer changes with the patch level of Python. So the ranges stand here, each with the text that sets it apart.
_SPECIAL_IPV4: Final = (
    (IPv4Network("0.0.0.0/8"), "RFC 791: this network"),
    (IPv4Network("10.0.0.0/8"), "RFC 1918: private"),
    (IPv4Network("100.64.0.0/10"), "RFC 6598: carrier-grade NAT"),
    (IPv4Network("127.0.0.0/8"), "RFC 1122: loopback"),
    (IPv4Network("169.254.0.0/16"), "RFC 3927: link-local, cloud metadata"),
    (IPv4Network("172.16.0.0/12"), "RFC 1918: private"),
    (IPv4Network("192.0.0.0/24"), "RFC 6890: IETF protocol assignments"),
    (IPv4Network("192.0.2.0/24"), "RFC 5737: documentation"),
    (IPv4Network("192.31.196.0/24"), "RFC 7535: AS112"),
    (IPv4Network("192.52.193.0/24"), "RFC 7450: multicast tunnelling"),
    (IPv4Network("192.88.99.0/24"), "RFC 7526: 6to4 relay"),
    (IPv4Network("192.168.0.0/16"), "RFC 1918: private"),
    (IPv4Network("192.175.48.0/24"), "RFC 7534: AS112"),
    (IPv4Network("198.18.0.0/15"), "RFC 2544: benchmarks"),
    (IPv4Network("198.51.100.0/24"), "RFC 5737: documentation"),
    (IPv4Network("203.0.113.0/24"), "RFC 5737: documentation"),
    (IPv4Network("224.0.0.0/4"), "RFC 1112: multicast"),
    (IPv4Network("240.0.0.0/4"), "RFC 1112: reserved, broadcast"),
    # No RFC: Azure answers here, on a public address, for the machine that asks (its WireServer hands out secrets).
    (IPv4Network("168.63.129.16/32"), "Azure WireServer"),
)
# Inside 2000::/3 alone; whatever lies outside of it is not global unicast (RFC 4291, section 2.4) but NAT64.
_SPECIAL_IPV6: Final = (
    (IPv6Network("2001::/32"), "RFC 4380: Teredo"),
    (IPv6Network("2001:2::/48"), "RFC 5180: benchmarks"),
    (IPv6Network("2001:10::/28"), "RFC 4843: ORCHID"),
    (IPv6Network("2001:20::/28"), "RFC 7343: ORCHIDv2"),
    (IPv6Network("2001:30::/28"), "RFC 9374: drone identifiers"),
    (IPv6Network("2001::/23"), "RFC 2928: IETF protocol assignments"),
    (IPv6Network("2001:db8::/32"), "RFC 3849: documentation"),
    (IPv6Network("2002::/16"), "RFC 7526: 6to4"),
    (IPv6Network("2620:4f:8000::/48"), "RFC 7534: AS112"),
    (IPv6Network("3ffe::/16"), "RFC 3701: 6bone"),
    (IPv6Network("3fff::/20"), "RFC 9637: documentation"),
)
_OUTSIDE_IPV6: Final = (
    (IPv6Network("::/128"), "RFC 4291: unspecified"),
    (IPv6Network("::1/128"), "RFC 4291: loopback"),
    (IPv6Network("::/96"), "RFC 4291: IPv4-compatible"),
    (IPv6Network("::ffff:0:0/96"), "RFC 4291: IPv4-mapped"),
    (IPv6Network("::ffff:0:0:0/96"), "RFC 2765: IPv4-translated"),
    (IPv6Network("64:ff9b:1::/48"), "RFC 8215: local NAT64"),
    (IPv6Network("100::/64"), "RFC 6666: discard"),
    (IPv6Network("100:0:0:1::/64"), "RFC 9780: dummy prefix"),
    (IPv6Network("5f00::/16"), "RFC 9602: SRv6"),
    (IPv6Network("fc00::/7"), "RFC 4193: unique local"),
    (IPv6Network("fe80::/10"), "RFC 4291: link-local"),
    (IPv6Network("fec0::/10"), "RFC 3879: site-local"),
    (IPv6Network("ff00::/8"), "RFC 4291: multicast"),
    (IPv6Network("::/0"), "RFC 4291: not global unicast"),
)
_GLOBAL_UNICAST_IPV6: Final = IPv6Network("2000::/3")
# On a network with IPv6 alone every IPv4 host appears in this prefix (DNS64), so the address inside is what counts.
_NAT64: Final = IPv6Network("64:ff9b::/96")  # RFC 6052, section 2.1
_LOW_32_BITS: Final = 0xFFFF_FFFF


def is_public(address: str | IPAddress) -> bool:
    """Tell whether this is a global unicast address. False for anything that is no plain IP literal."""
    return why_not_public(address) is None


def why_not_public(address: str | IPAddress) -> str | None:
    """Name the special range an address lies in, with the RFC that makes it special; None if it is public."""
    try:
        ip = ip_address(address)
    except ValueError:
        return "not an address"
    if isinstance(ip, IPv4Address):
        return next((why for network, why in _SPECIAL_IPV4 if ip in network), None)
    if ip.scope_id is not None:
        return "RFC 4007: bound to an interface"
    if ip in _NAT64:
        inside = why_not_public(IPv4Address(int(ip) & _LOW_32_BITS))
        return inside and f"RFC 6052: NAT64 of {inside}"
    ranges = _SPECIAL_IPV6 if ip in _GLOBAL_UNICAST_IPV6 else _OUTSIDE_IPV6
    return next((why for network, why in ranges if ip in network), None)


Reason = Literal[
    "too_long",
    "characters",  # controls, whitespace, backslash, anything beyond ASCII
    "not_a_url",
    "fragment",
    "scheme",
    "userinfo",
    "host_spelling",  # trailing dot, empty label, decimal / octal / hexadecimal / short IPv4, a zone
    "port_spelling",
    "host_not_listed",
    "port_not_listed",
    "plain_http",
    "address_not_public",
]


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a URL is not dialled: a stable code that never holds a part of the URL."""

    reason: Reason


@dataclass(frozen=True, slots=True)
class Target:
    """What to dial. `host` is lower case and without brackets; `path_and_query` is byte for byte the URL's own."""

    scheme: Scheme
    host: str
    port: int
    path_and_query: str
    private_ok: bool

    @property
    def origin(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class _Entry:
    host: re.Pattern[str]
    port: int
    exact: bool  # host and port both written out: plain http and private addresses are meant


@dataclass(frozen=True, slots=True)
class HostList:
    """The hosts an operator allows: `*.bfl.ai,bfldelivery*.blob.core.windows.net,127.0.0.1:9100`.

    A leading `*.` stands for one label or more, any other `*` for characters within its label, none for a punycode
    label. An entry means https on 443, or on its port alone. Written as an exact `host:port` it means http as well,
    and is the only way to a private address: so rehearsals on loopback are reached, and nothing else inside.
    With `any_public`, hosts that are not listed may be dialled too, by https and at public addresses alone.
    """

    entries: tuple[_Entry, ...] = ()
    any_public: bool = False

    @classmethod
    def parse(cls, text: str, *, any_public: bool = False) -> "HostList":
        """Read the comma list; an empty text is an empty list, a comma too many is none of it.

        ValueError names the entry and its mistake; commas alone are one.
        """
        entries = [each.strip().lower() for each in text.split(",")] if text.strip() else []
        named = [each for each in entries if each] or entries
        return cls(tuple(_entry(each) for each in named), any_public=any_public)

    def private_ok(self, host: str, port: int) -> bool:
        """Tell whether this very `host:port` is listed, so that it may be at a private address."""
        return any(each.exact and each.port == port and each.host.fullmatch(host) for each in self.entries)

    def objection(self, scheme: Scheme, host: str, port: int) -> Reason | None:
        if self.private_ok(host, port):
            return None
        ports = {each.port for each in self.entries if each.host.fullmatch(host)}
        if not ports and not self.any_public:
            return "host_not_listed"
        if scheme != "https":
            return "plain_http"
        if port not in ports and not self.any_public:
            return "port_not_listed"
        return "address_not_public" if _is_literal(host) and not is_public(host) else None


_VISIBLE_ASCII: Final = re.compile(r"[\x21-\x5b\x5d-\x7e]+")  # no backslash: half the world's parsers call it a slash
_URL: Final = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<authority>[^/?]*)(?P<path>[^?]*)(?P<query>.*)", re.IGNORECASE
)
_AUTHORITY: Final = re.compile(r"(?P<host>\[[^\]]*\]|[^:\[\]]*)(?::(?P<port>.*))?")
_PORT: Final = re.compile(r"[1-9][0-9]{0,4}")
_PORT_MAX: Final = 65_535
_LABEL: Final = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME: Final = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
# A last label of this form makes other parsers read the whole host as an IPv4 address (WHATWG URL, "ends in a number").
_ENDS_IN_NUMBER: Final = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)")


def check_url(url: str, hosts: HostList, max_chars: int = URL_MAX_CHARS) -> Target | Refusal:
    """Judge any string as a URL to dial. Source of the wanted shape: the provider's `result.sample`."""
    if len(url) > max_chars:
        return Refusal("too_long")
    if not _VISIBLE_ASCII.fullmatch(url):
        return Refusal("characters")
    if "#" in url:
        return Refusal("fragment")
    parts = _URL.fullmatch(url)
    if parts is None:
        return Refusal("not_a_url")
    scheme = _SCHEMES.get(parts["scheme"].lower())
    if scheme is None:
        return Refusal("scheme")
    if "@" in parts["authority"]:
        return Refusal("userinfo")
    authority = _AUTHORITY.fullmatch(parts["authority"].lower())
    host = authority and _canonical_host(authority["host"])
    if not authority or not host:
        return Refusal("host_spelling")
    port = _port(authority["port"], default=_DEFAULT_PORT[scheme])
    if port is None:
        return Refusal("port_spelling")
    reason = hosts.objection(scheme, host, port)
    if reason is not None:
        return Refusal(reason)
    return Target(scheme, host, port, (parts["path"] or "/") + parts["query"], hosts.private_ok(host, port))


def redacted(url: str) -> str:
    """Shorten a URL for logs: no query or fragment (they sign), no userinfo, no line breaks, bounded."""
    bare = re.split(r"[?#]", url, maxsplit=1)[0]
    bare = re.sub(r"^((?:[a-z][a-z0-9+.-]*:)?[/\\]+)?[^/]*@", r"\1", bare, flags=re.IGNORECASE)
    return "".join(each if "!" <= each <= "~" else "\N{REPLACEMENT CHARACTER}" for each in bare[:LOG_MAX_CHARS])


# Azure writes RFC 3339 with 0 to 7 decimals, and also allows a bare date or no seconds (SAS, "signed expiry").
_EXPIRY: Final = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}(?:T[0-9]{2}:[0-9]{2}(?::[0-9]{2}(?:\.[0-9]{1,7})?)?(?:Z|[+-][0-9]{2}:[0-9]{2}))?"
)


def expires_at_ms(url: str) -> int | None:
    """Read when a signed Azure URL dies (its `se` parameter), as epoch milliseconds; None if it does not say."""
    query = url.partition("#")[0].partition("?")[2]
    signed = next((unquote(each[3:]) for each in query.split("&") if each.startswith("se=")), "")
    if not _EXPIRY.fullmatch(signed):
        return None
    try:
        moment = datetime.fromisoformat(signed)
        return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)
    except ValueError:  # the 31st of February
        return None


def _canonical_host(text: str) -> str | None:
    """Return the one spelling of a host that we compare and dial; None for every other spelling."""
    if text.startswith("["):
        return _ipv6(text[1:-1])
    if _ENDS_IN_NUMBER.fullmatch(text):
        return text if _is_literal(text) else None
    return text if _NAME.fullmatch(text) and len(text) <= HOST_MAX_CHARS else None


def _ipv6(text: str) -> str | None:
    try:
        ip = IPv6Address(text)
    except ValueError:
        return None
    return None if ip.scope_id is not None else str(ip)


def _is_literal(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _port(text: str | None, *, default: int) -> int | None:
    if text is None:
        return default
    return int(text) if _PORT.fullmatch(text) and int(text) <= _PORT_MAX else None


def _entry(text: str) -> _Entry:
    """Read one entry of a host list. ValueError says what is wrong with it."""
    parts = _AUTHORITY.fullmatch(text)
    if parts is None or "/" in text or "@" in text:
        raise ValueError(f"{text!r}: give a host or host:port, not a URL")
    host = _canonical_host(parts["host"].replace("*", "x"))
    if host is None:
        raise ValueError(f"{text!r}: not a host name, IPv4 address or [IPv6 address]")
    port = _port(parts["port"], default=_DEFAULT_PORT["https"])
    if port is None:
        raise ValueError(f"{text!r}: the port must be 1 to {_PORT_MAX}")
    if "*" in text:
        return _Entry(_wildcard(text, parts["host"].split(".")), port, exact=False)
    exact = parts["port"] is not None
    if not exact and _is_literal(host) and not is_public(host):
        raise ValueError(f"{text!r}: a private address ({why_not_public(host)}) must be listed with its port")
    return _Entry(re.compile(re.escape(host)), port, exact)


def _wildcard(text: str, labels: list[str]) -> re.Pattern[str]:
    if len(labels) < 3 or "*" in "".join(labels[-2:]):
        raise ValueError(f"{text!r}: a * must stand left of two written-out labels, as in *.example.com")
    head = r"(?:(?!xn--)[a-z0-9_-]+\.)+" if labels[0] == "*" else ""
    rest = labels[1:] if head else labels
    return re.compile(head + r"\.".join(_label(each) for each in rest))


def _label(text: str) -> str:
    if "*" not in text:
        return re.escape(text)
    return "(?!xn--)" + "[a-z0-9_-]*".join(re.escape(each) for each in text.split("*"))
