"""Which addresses and URLs may be dialled: a row for each special range, a verdict for each trick."""

from datetime import datetime
from ipaddress import IPv4Address, IPv6Address

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.domain.addresses import (
    RESULT_URL_MAX_CHARS,
    HostList,
    Refusal,
    Target,
    check_url,
    expires_at_ms,
    is_public,
    redacted,
    why_not_public,
)

SPECIAL = [
    # why, first address of the range, last
    ("RFC 791: this network", "0.0.0.0", "0.255.255.255"),  # noqa: S104 - nothing is bound
    ("RFC 1918: private", "10.0.0.0", "10.255.255.255"),
    ("RFC 6598: carrier-grade NAT", "100.64.0.0", "100.127.255.255"),
    ("RFC 6598: carrier-grade NAT", "100.100.100.200", "100.100.100.200"),  # Alibaba's metadata
    ("RFC 1122: loopback", "127.0.0.0", "127.255.255.255"),
    ("RFC 3927: link-local, cloud metadata", "169.254.0.0", "169.254.255.255"),
    ("RFC 3927: link-local, cloud metadata", "169.254.169.254", "169.254.170.2"),  # AWS, Azure, Google; ECS
    ("Azure WireServer", "168.63.129.16", "168.63.129.16"),
    ("RFC 1918: private", "172.16.0.0", "172.31.255.255"),
    ("RFC 6890: IETF protocol assignments", "192.0.0.0", "192.0.0.255"),
    ("RFC 6890: IETF protocol assignments", "192.0.0.192", "192.0.0.192"),  # Oracle's metadata
    ("RFC 5737: documentation", "192.0.2.0", "192.0.2.255"),
    ("RFC 7535: AS112", "192.31.196.0", "192.31.196.255"),
    ("RFC 7450: multicast tunnelling", "192.52.193.0", "192.52.193.255"),
    ("RFC 7526: 6to4 relay", "192.88.99.0", "192.88.99.255"),
    ("RFC 1918: private", "192.168.0.0", "192.168.255.255"),
    ("RFC 7534: AS112", "192.175.48.0", "192.175.48.255"),
    ("RFC 2544: benchmarks", "198.18.0.0", "198.19.255.255"),
    ("RFC 5737: documentation", "198.51.100.0", "198.51.100.255"),
    ("RFC 5737: documentation", "203.0.113.0", "203.0.113.255"),
    ("RFC 1112: multicast", "224.0.0.0", "239.255.255.255"),
    ("RFC 1112: reserved, broadcast", "240.0.0.0", "255.255.255.255"),
    ("RFC 4291: unspecified", "::", "::"),
    ("RFC 4291: loopback", "::1", "0:0:0:0:0:0:0:1"),
    ("RFC 4291: IPv4-compatible", "::2", "::255.255.255.255"),
    ("RFC 4291: IPv4-compatible", "::127.0.0.1", "::8.8.8.8"),
    ("RFC 4291: IPv4-mapped", "::ffff:0:0", "::ffff:255.255.255.255"),
    ("RFC 4291: IPv4-mapped", "::ffff:127.0.0.1", "::ffff:8.8.8.8"),
    ("RFC 2765: IPv4-translated", "::ffff:0:127.0.0.1", "::ffff:0:8.8.8.8"),
    ("RFC 6052: NAT64 of RFC 1122: loopback", "64:ff9b::127.0.0.1", "64:ff9b::127.255.255.255"),
    ("RFC 6052: NAT64 of RFC 1918: private", "64:ff9b::10.0.0.1", "64:ff9b::c0a8:1"),
    ("RFC 6052: NAT64 of RFC 3927: link-local, cloud metadata", "64:ff9b::169.254.169.254", "64:ff9b::a9fe:a9fe"),
    ("RFC 8215: local NAT64", "64:ff9b:1::", "64:ff9b:1:ffff::8.8.8.8"),
    ("RFC 6666: discard", "100::", "100::ffff:ffff:ffff:ffff"),
    ("RFC 9780: dummy prefix", "100:0:0:1::", "100:0:0:1:ffff::"),
    ("RFC 4380: Teredo", "2001::", "2001:0:ffff::"),
    ("RFC 5180: benchmarks", "2001:2::", "2001:2:0:ffff::"),
    ("RFC 4843: ORCHID", "2001:10::", "2001:1f:ffff::"),
    ("RFC 7343: ORCHIDv2", "2001:20::", "2001:2f:ffff::"),
    ("RFC 9374: drone identifiers", "2001:30::", "2001:3f:ffff::"),
    ("RFC 2928: IETF protocol assignments", "2001:1::1", "2001:1ff:ffff::"),
    ("RFC 3849: documentation", "2001:db8::", "2001:db8:ffff::"),
    ("RFC 7526: 6to4", "2002::", "2002:ffff::"),
    ("RFC 7526: 6to4", "2002:7f00:1::", "2002:808:808::"),
    ("RFC 7534: AS112", "2620:4f:8000::", "2620:4f:8000:ffff::"),
    ("RFC 3701: 6bone", "3ffe::", "3ffe:ffff::"),
    ("RFC 9637: documentation", "3fff::", "3fff:fff:ffff::"),
    ("RFC 9602: SRv6", "5f00::", "5f00:ffff::"),
    ("RFC 4193: unique local", "fc00::", "fdff:ffff::"),
    ("RFC 4193: unique local", "fd00:ec2::254", "fd20:ce::254"),  # AWS's and Google's metadata
    ("RFC 4291: link-local", "fe80::", "febf:ffff::"),
    ("RFC 3879: site-local", "fec0::", "feff:ffff::"),
    ("RFC 4291: multicast", "ff00::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
    ("RFC 4291: not global unicast", "4000::", "ef00::"),
    ("RFC 4007: bound to an interface", "2606:4700::1111%eth0", "fe80::1%1"),
    ("not an address", "", "delivery.bfl.ai"),
    ("not an address", "127.1", "0177.0.0.1"),
    ("not an address", "2130706433", "0x7f000001"),
    ("not an address", "8.8.8.8 ", "８.８.８.８"),  # noqa: RUF001 - full-width digits are the row
]
PUBLIC = [
    "1.1.1.1", "8.8.8.8", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "126.255.255.255", "128.0.0.0",
    "168.63.129.15", "168.63.129.17", "169.253.255.255", "169.255.0.0", "172.15.255.255", "172.32.0.0", "192.0.1.0",
    "192.167.255.255", "192.169.0.0", "198.17.255.255", "198.20.0.0", "223.255.255.255", "64:ff9b::8.8.8.8",
    "2001:200::", "2001:4860:4860::8888", "2606:4700::1111", "2a01:111::1", "2003::1", "3ffd::1",
]  # fmt: skip


@pytest.mark.parametrize(("why", "first", "last"), SPECIAL)
def test_a_special_address_is_not_public_and_its_rfc_is_named(why: str, first: str, last: str) -> None:
    assert [why_not_public(first), why_not_public(last)] == [why, why]
    assert not is_public(first)
    assert not is_public(last)


@pytest.mark.parametrize("address", PUBLIC)
def test_an_address_beside_the_special_ranges_is_public(address: str) -> None:
    assert why_not_public(address) is None


@given(st.ip_addresses())
def test_what_python_calls_not_global_is_never_public(address: IPv4Address | IPv6Address) -> None:
    assert address.is_global or not is_public(address)


@given(st.ip_addresses(v=4))
def test_no_wrapping_makes_an_address_public(address: IPv4Address) -> None:
    wrapped = [
        f"::ffff:{address}",
        f"::{address}",
        f"64:ff9b::{address}",
        str(IPv6Address((0x2002 << 112) | int(address) << 80)),
    ]
    assert is_public(address) or not any(is_public(each) for each in wrapped)


@given(st.text())
def test_any_text_has_a_verdict(text: str) -> None:
    assert isinstance(is_public(text), bool)


HOSTS = HostList.parse(
    "*.bfl.ai, bfldelivery*.blob.core.windows.net, *.cometapi.com, cdn.example:8443, *.eu.example:8443, "
    "127.0.0.1:9100, rehearsal:9100, [::1]:9100"
)
BLOB = "bfldeliveryprod.blob.core.windows.net"
VERDICTS = [
    ("https://delivery.bfl.ai/results/a.png", "ok"),
    ("https://delivery.eu-west1.bfl.ai/results/a.png?se=2026-11-22T00%3A00%3A00Z&sig=a%2Bb%3D", "ok"),
    ("https://delivery-us1.bfl.ai", "ok"),
    ("HTTPS://Delivery.BFL.ai/A", "ok"),
    ("https://delivery.bfl.ai:443/a", "ok"),
    (f"https://{BLOB}/a.png?sig=x@y", "ok"),
    ("https://bfldelivery.blob.core.windows.net/a", "ok"),
    ("https://cdn.example:8443/a", "ok"),
    ("http://cdn.example:8443/a", "ok"),
    ("https://a.b.eu.example:8443/a", "ok"),
    ("http://127.0.0.1:9100/a", "ok"),
    ("http://rehearsal:9100/a", "ok"),
    ("http://[::1]:9100/a", "ok"),
    ("https://[0:0:0:0:0:0:0:1]:9100/a", "ok"),
    ("https://delivery.bfl.ai/a/../../b//c@d:e", "ok"),
    ("https://bfl.ai/a", "host_not_listed"),
    ("https://xbfl.ai/a", "host_not_listed"),
    ("https://bfl.ai.evil.com/a", "host_not_listed"),
    ("https://delivery.bfl.ai.evil.com/a", "host_not_listed"),
    ("https://delivery.bfl.aix/a", "host_not_listed"),
    ("https://cdnxexample:8443/a", "host_not_listed"),
    ("https://delivery-bfl.ai/a", "host_not_listed"),
    ("https://evil.com/delivery.bfl.ai", "host_not_listed"),
    ("https://evil.com?delivery.bfl.ai", "host_not_listed"),
    (f"https://x{BLOB}/a", "host_not_listed"),
    ("https://bfldelivery.evil.blob.core.windows.net/a", "host_not_listed"),
    ("https://bfldelivery.evil.com/a.blob.core.windows.net", "host_not_listed"),
    ("https://blob.core.windows.net/a", "host_not_listed"),
    ("https://xn--bfl-epa.ai/a", "host_not_listed"),
    ("https://xn--dlivery-bya.bfl.ai/a", "host_not_listed"),
    ("https://localhost/a", "host_not_listed"),
    ("https://169.254.169.254/latest/meta-data", "host_not_listed"),
    ("https://127.0.0.2:9100/a", "host_not_listed"),
    ("https://8.8.8.8/a", "host_not_listed"),
    ("https://[::ffff:127.0.0.1]/a", "host_not_listed"),
    ("http://delivery.bfl.ai/a", "plain_http"),
    ("http://delivery.bfl.ai:443/a", "plain_http"),
    ("http://a.eu.example:8443/a", "plain_http"),
    ("https://delivery.bfl.ai:8443/a", "port_not_listed"),
    ("https://delivery.bfl.ai:80/a", "port_not_listed"),
    ("https://cdn.example/a", "port_not_listed"),
    ("http://127.0.0.1/a", "plain_http"),
    ("https://127.0.0.1:9101/a", "port_not_listed"),
    ("https://user@delivery.bfl.ai/a", "userinfo"),
    ("https://user:pass@delivery.bfl.ai/a", "userinfo"),
    ("https://delivery.bfl.ai@evil.com/a", "userinfo"),
    ("https://delivery.bfl.ai:443@evil.com/a", "userinfo"),
    ("https://evil.com#@delivery.bfl.ai/a", "fragment"),
    ("https://delivery.bfl.ai/a#b", "fragment"),
    ("https://evil.com\\@delivery.bfl.ai/a", "characters"),
    ("https://delivery.bfl.ai\\a", "characters"),
    ("https://delivery.bfl.ai/a b", "characters"),
    (" https://delivery.bfl.ai/a", "characters"),
    ("https://delivery.bfl.ai/a\r\nHost: evil.com", "characters"),
    ("https://deli\tvery.bfl.ai/a", "characters"),
    ("https://delivery.bfl.ai/\x00", "characters"),
    ("https://delivery.bfl.ai/a\n", "characters"),
    ("https://delivеry.bfl.ai/a", "characters"),  # noqa: RUF001 - a Cyrillic e is the row
    ("https://delivery。bfl。ai/a", "characters"),
    ("https://delivery.bfl.ai/ä", "characters"),
    ("https://\ud800.bfl.ai/a", "characters"),
    ("", "characters"),
    ("https://delivery.bfl.ai./a", "host_spelling"),
    ("https://127.0.0.1.:9100/a", "host_spelling"),
    ("https://127.1:9100/a", "host_spelling"),
    ("http://2130706433:9100/a", "host_spelling"),
    ("http://0x7f000001:9100/a", "host_spelling"),
    ("http://0x7f.0.0.1:9100/a", "host_spelling"),
    ("http://0177.0.0.1:9100/a", "host_spelling"),
    ("http://127.0.0.01:9100/a", "host_spelling"),
    ("http://1.2.3.4.5:9100/a", "host_spelling"),
    ("https://delivery.bfl.0x1/a", "host_spelling"),
    ("https://[::1%25lo]:9100/a", "host_spelling"),
    ("https://[::1%lo]:9100/a", "host_spelling"),
    ("https://::1:9100/a", "host_spelling"),
    ("https://[127.0.0.1]:9100/a", "host_spelling"),
    ("https://[::1/a", "host_spelling"),
    ("https://[delivery.bfl.ai]/a", "host_spelling"),
    ("https://.bfl.ai/a", "host_spelling"),
    ("https://a..bfl.ai/a", "host_spelling"),
    ("https://-a.bfl.ai/a", "host_spelling"),
    ("https://a%2ebfl.ai/a", "host_spelling"),
    ("https://*.bfl.ai/a", "host_spelling"),
    (f"https://{'a' * 64}.bfl.ai/a", "host_spelling"),
    (f"https://{'a.' * 124}bfl.ai/a", "host_spelling"),
    ("https:///a", "host_spelling"),
    ("https://:443/a", "host_spelling"),
    ("https://?a", "host_spelling"),
    ("https://delivery.bfl.ai:/a", "port_spelling"),
    ("https://delivery.bfl.ai:0/a", "port_spelling"),
    ("https://delivery.bfl.ai:0443/a", "port_spelling"),
    ("https://delivery.bfl.ai:65536/a", "port_spelling"),
    ("https://delivery.bfl.ai:+443/a", "port_spelling"),
    ("https://delivery.bfl.ai:443:443/a", "port_spelling"),
    ("https://delivery.bfl.ai:https/a", "port_spelling"),
    ("https:/delivery.bfl.ai/a", "not_a_url"),
    ("https:delivery.bfl.ai/a", "not_a_url"),
    ("//delivery.bfl.ai/a", "not_a_url"),
    ("delivery.bfl.ai/a", "not_a_url"),
    ("javascript:alert(1)", "not_a_url"),
    ("data:image/png;base64,AAAA", "not_a_url"),
    ("ftp://delivery.bfl.ai/a", "scheme"),
    ("file:///etc/passwd", "scheme"),
    ("gopher://127.0.0.1:9100/_", "scheme"),
    ("httpss://delivery.bfl.ai/a", "scheme"),
    ("https://delivery.bfl.ai/" + "a" * 2060, "too_long"),
]  # fmt: skip


@pytest.mark.parametrize(("url", "verdict"), VERDICTS)
def test_a_url_has_its_verdict(url: str, verdict: str) -> None:
    found = check_url(url, HOSTS)
    assert (found.reason if isinstance(found, Refusal) else "ok") == verdict


def test_a_result_may_have_a_longer_url_but_not_any() -> None:
    url = "https://delivery.bfl.ai/".ljust(RESULT_URL_MAX_CHARS, "a")
    assert isinstance(check_url(url, HOSTS, RESULT_URL_MAX_CHARS), Target)
    assert check_url(url + "a", HOSTS, RESULT_URL_MAX_CHARS) == Refusal("too_long")


def test_a_target_is_the_urls_own_parts() -> None:
    url = "https://Delivery.bfl.ai/a%2Fb/../c?sig=a%2Bb%3D&x=[y]'"
    assert check_url(url, HOSTS) == Target("https", "delivery.bfl.ai", 443, "/a%2Fb/../c?sig=a%2Bb%3D&x=[y]'", False)
    assert check_url("https://delivery.bfl.ai?a", HOSTS) == Target("https", "delivery.bfl.ai", 443, "/?a", False)


def test_only_an_exact_host_and_port_may_be_private() -> None:
    private = [
        "http://127.0.0.1:9100/a",
        "http://rehearsal:9100/a",
        "http://[::1]:9100/a",
        "https://cdn.example:8443/a",
    ]
    public = ["https://delivery.bfl.ai/a", f"https://{BLOB}/a", "https://a.eu.example:8443/a"]
    assert [target.private_ok for url in private + public if isinstance(target := check_url(url, HOSTS), Target)] == (
        [True] * len(private) + [False] * len(public)
    )


def test_the_origin_of_an_ipv6_target_has_brackets() -> None:
    target = check_url("http://[::1]:9100/a", HOSTS)
    assert isinstance(target, Target)
    assert target.origin == "http://[::1]:9100"


HOST_CHARACTERS = "abfilx.-_*:0179[]@/\\%?#é\t "


@given(
    st.text() | st.builds("https://{}{}".format, st.text(HOST_CHARACTERS), st.sampled_from([".bfl.ai/", ":9100", "/"]))
)
def test_any_string_has_a_verdict_and_the_client_reads_a_target_alike(url: str) -> None:
    target = check_url(url, HOSTS)
    if isinstance(target, Target):
        seen = httpx.URL(target.origin)
        assert seen.raw_host.decode() == target.host
        assert (seen.port or 443) == target.port


@given(st.text())
def test_a_refusal_holds_no_part_of_the_url(text: str) -> None:
    found = check_url(f"https://canary:{text}@canary.example/canary?canary", HOSTS)
    assert "canary" not in repr(found)


def test_a_list_that_is_open_to_the_public_still_keeps_the_inside_shut() -> None:
    hosts = HostList.parse("10.0.0.7:8080", any_public=True)
    assert isinstance(check_url("https://hooks.example:8443/a", hosts), Target)
    assert isinstance(check_url("https://xn--bcher-kva.example/a", hosts), Target)
    assert isinstance(check_url("https://8.8.8.8/a", hosts), Target)
    assert isinstance(check_url("http://10.0.0.7:8080/a", hosts), Target)
    assert check_url("https://10.0.0.8/a", hosts) == Refusal("address_not_public")
    assert check_url("https://10.0.0.7/a", hosts) == Refusal("address_not_public")
    assert check_url("http://hooks.example/a", hosts) == Refusal("plain_http")


@pytest.mark.parametrize(
    ("entry", "mistake"),
    [
        ("https://delivery.bfl.ai", "not a URL"),
        ("delivery.bfl.ai/a", "not a URL"),
        ("user@delivery.bfl.ai", "not a URL"),
        (",", "not a host name"),
        (" , ,", "not a host name"),
        ("delivery.bfl.ai,-a.bfl.ai,", "'-a.bfl.ai': not a host name"),
        ("delivery.bfl.ai.", "not a host name"),
        ("-a.bfl.ai", "not a host name"),
        ("127.1:9100", "not a host name"),
        ("::1", "not a host name"),
        ("büro.example", "not a host name"),
        ("delivery.bfl.ai:0", "the port must be"),
        ("delivery.bfl.ai:x", "the port must be"),
        ("*", "left of two written-out labels"),
        ("*.ai", "left of two written-out labels"),
        ("*:9100", "left of two written-out labels"),
        ("cdn.*.ai", "left of two written-out labels"),
        ("127.0.0.*:9100", "left of two written-out labels"),
        ("*.0.0.1:9100", "not a host name"),
        ("10.0.0.7", "must be listed with its port"),
        ("[::1]", "must be listed with its port"),
    ],
)
def test_a_bad_entry_is_named_with_its_mistake(entry: str, mistake: str) -> None:
    with pytest.raises(ValueError, match=mistake):
        HostList.parse(entry)


@pytest.mark.parametrize("text", ["a.example,b.example,", " ,a.example, ,b.example", "a.example,,b.example"])
def test_a_comma_too_many_is_no_entry(text: str) -> None:
    assert HostList.parse(text) == HostList.parse("a.example,b.example")


def test_an_empty_list_allows_nothing() -> None:
    assert HostList.parse(" ") == HostList()
    assert check_url("https://delivery.bfl.ai/a", HostList()) == Refusal("host_not_listed")


def test_a_star_inside_a_name_stands_for_one_label() -> None:
    hosts = HostList.parse("delivery.*.bfl.ai")
    assert isinstance(check_url("https://delivery.eu.bfl.ai/a", hosts), Target)
    assert check_url("https://delivery.eu.west.bfl.ai/a", hosts) == Refusal("host_not_listed")
    assert check_url("https://delivery.bfl.ai/a", hosts) == Refusal("host_not_listed")
    assert check_url("https://delivery.xn--dlivery-bya.bfl.ai/a", hosts) == Refusal("host_not_listed")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://delivery.bfl.ai/a@b.png?se=x&sig=y", "https://delivery.bfl.ai/a@b.png"),
        ("https://delivery.bfl.ai/a#token", "https://delivery.bfl.ai/a"),
        ("https://user:secret@delivery.bfl.ai/a?b", "https://delivery.bfl.ai/a"),
        ("https://user:sec@ret@delivery.bfl.ai/a", "https://delivery.bfl.ai/a"),
        ("https://user:secret\\@delivery.bfl.ai/a", "https://delivery.bfl.ai/a"),
        ("https:user:secret@delivery.bfl.ai", "delivery.bfl.ai"),
        ("user:secret@delivery.bfl.ai", "delivery.bfl.ai"),
        ("//user:secret@delivery.bfl.ai", "//delivery.bfl.ai"),
        ("https://delivery.bfl.ai/a\nERROR forged", "https://delivery.bfl.ai/a\ufffdERROR\ufffdforged"),
        ("", ""),
    ],
)
def test_a_redacted_url_shows_no_secret_and_stays_one_line(url: str, shown: str) -> None:
    assert redacted(url) == shown


@given(st.text(), st.text())
def test_redaction_takes_any_text_and_never_shows_a_query(head: str, query: str) -> None:
    assert redacted(f"{head}?{query}") == redacted(head)
    assert len(redacted(head)) <= 200


def ms(moment: str) -> int:
    return int(datetime.fromisoformat(moment).timestamp() * 1000)


@pytest.mark.parametrize(
    ("query", "expiry"),
    [
        ("?se=2026-11-22T10%3A00%3A00Z&sig=x", ms("2026-11-22T10:00:00+00:00")),
        ("?sv=1&se=2026-11-22T10:00:00Z", ms("2026-11-22T10:00:00+00:00")),
        ("?se=2026-11-22T10:00:00.1234567Z", ms("2026-11-22T10:00:00.123456+00:00")),
        ("?se=2026-11-22T10:00:00+02:00", ms("2026-11-22T08:00:00+00:00")),
        ("?se=2026-11-22T10:00Z", ms("2026-11-22T10:00:00+00:00")),
        ("?se=2026-11-22", ms("2026-11-22T00:00:00+00:00")),
        ("?sse=2026-11-22", None),
        ("?se=", None),
        ("?se=1763800000", None),
        ("?se=2026-02-31", None),
        ("?se=2026-11-22T25:00:00Z", None),
        ("?se=0001-01-01T00:00:00%2B23:59", -62_135_683_140_000),
        ("?se=%FF", None),
        ("?se=٢٠٢٦-11-22", None),
        ("#?se=2026-11-22", None),
        ("", None),
    ],
)
def test_the_expiry_of_a_signed_url_is_read(query: str, expiry: int | None) -> None:
    assert expires_at_ms(f"https://{BLOB}/a.png{query}") == expiry


@given(st.text() | st.from_regex(r"\?se=[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}[-+][0-9]{2}:[0-9]{2}"))
def test_any_text_has_an_expiry_or_none(text: str) -> None:
    found = expires_at_ms(f"https://{BLOB}/a.png{text}")
    assert found is None or isinstance(found, int)
