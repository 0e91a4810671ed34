"""What a REDIS_URL says, and that a wrong one is refused without a word of what it holds."""

import contextlib
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.storage.address import Address, AddressError, parse

SECRET: Final = "pa55word"


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://127.0.0.1:6379/0", Address(nodes=(("127.0.0.1", 6379),))),
        ("redis://cache", Address(nodes=(("cache", 6379),))),
        ("redis://cache:7000/", Address(nodes=(("cache", 7000),))),
        ("redis://[::1]:7000/3", Address(nodes=(("::1", 7000),), db=3)),
        ("redis://[fe80::1]", Address(nodes=(("fe80::1", 6379),))),
        ("redis://:p%40ss@cache/1", Address(nodes=(("cache", 6379),), db=1, password="p@ss")),
        ("redis://u%3As:p%2Fw%23@cache", Address(nodes=(("cache", 6379),), username="u:s", password="p/w#")),
        (
            "rediss://u:p@cache?ssl_ca_certs=/etc/ca.pem",
            Address(
                (("cache", 6379),), tls=True, username="u", password="p", options=(("ssl_ca_certs", "/etc/ca.pem"),)
            ),
        ),
        ("unix:///run/redis.sock", Address(path="/run/redis.sock")),
        ("unix://u:p@/run/my%20redis.sock?db=2", Address(path="/run/my redis.sock", db=2, username="u", password="p")),
        ("sentinel://a,b:1,c:26380/images", Address((("a", 26379), ("b", 1), ("c", 26380)), service="images")),
        (
            "sentinels://u:p@a:1/images/4",
            Address((("a", 1),), service="images", db=4, tls=True, username="u", password="p"),
        ),
    ],
)
def test_a_url_names_its_parts(url: str, address: Address) -> None:
    assert parse(url) == address


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("", "must start with"),
        ("cache:6379", "must start with"),
        (f"http://:{SECRET}@cache", "must start with"),
        (f"redis://:{SECRET}@", "must name a host"),
        (f"redis://:{SECRET}@:6379", "must name a host"),
        (f"redis://:{SECRET}@cache:0", "must name a port"),
        (f"redis://:{SECRET}@cache:65536", "must name a port"),
        (f"redis://cache:{SECRET}/0", "must name a port"),
        (f"redis://user:{SECRET}/more@cache/0", "must name a port"),
        (f"redis://:{SECRET}#more@cache/0", "has a '#'"),
        (f"redis://:{SECRET}?more@cache/0", "has an option"),
        (f"redis://:{SECRET}@more@cache/0", "has an '@'"),
        (f"redis://:{SECRET}[@cache/0", "cannot be read"),
        (f"redis://cache/{SECRET}", "must name the database"),
        (f"redis://:{SECRET}@cache/-1", "must name the database"),
        (f"redis://:{SECRET}@cache/999999", "must name the database"),
        (f"redis://:{SECRET}@a,b/0", "may name several hosts only if they are sentinels"),
        (f"redis://:{SECRET}@cache?socket_timeout=900", "has an option"),
        (f"redis://:{SECRET}@cache?decode_responses=yes", "has an option"),
        (f"redis://:{SECRET}@cache?ssl_ca_certs=/x", "has an option"),
        (f"rediss://:{SECRET}@cache?ssl_cert_reqs=none", "has an option"),
        (f"unix://:{SECRET}@", "must name the socket"),
        (f"unix://{SECRET}/redis.sock", "must name the socket"),
        (f"unix:///run/redis.sock?db={SECRET}", "must name the database"),
        (f"sentinel://:{SECRET}@a,b", "must name the service"),
        (f"sentinel://:{SECRET}@a,,b/images", "must name a host"),
        (f"sentinel://:{SECRET}@a/images/one", "must name the database"),
    ],
)
def test_a_wrong_url_is_refused_without_its_password(url: str, says: str) -> None:
    with pytest.raises(AddressError, match=f"^the Redis URL {says}") as refusal:
        parse(url)
    assert SECRET not in repr(refusal.value)
    assert refusal.value.__suppress_context__ or refusal.value.__context__ is None


def test_an_address_does_not_show_its_password() -> None:
    assert SECRET not in repr(parse(f"redis://me:{SECRET}@cache"))


words = st.text(st.sampled_from("ab1:/@?#[],%=.-\x00é"), max_size=30)


@given(st.sampled_from(["redis", "rediss", "unix", "sentinel", "sentinels", "x"]), words)
def test_every_string_is_an_address_or_refused(scheme: str, rest: str) -> None:
    for url in (rest, f"{scheme}:{rest}", f"{scheme}://{rest}", f"{scheme}://:{SECRET}@{rest}"):
        with contextlib.suppress(AddressError):
            assert SECRET not in repr(parse(url))
