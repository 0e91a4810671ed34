"""Start-up refuses a Redis that would lose what is paid for, and says which line to change."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from service.storage import safety
from service.storage.connection import RedisError
from tests.contract.valkey import Valkey

pytestmark = pytest.mark.anyio

SAFE = ("--appendonly", "yes", "--appendfsync", "always", "--maxmemory-policy", "noeviction")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Valkey]:
    valkey = Valkey(tmp_path)
    yield valkey
    valkey.kill()


@pytest.mark.parametrize(
    ("name", "bad", "line"),
    [
        ("appendonly", "no", "redis.conf: appendonly yes"),
        ("appendfsync", "everysec", "redis.conf: appendfsync always"),
        ("maxmemory-policy", "allkeys-lru", "redis.conf: maxmemory-policy noeviction"),
        ("no-appendfsync-on-rewrite", "yes", "redis.conf: no-appendfsync-on-rewrite no"),
    ],
)
async def test_each_bad_line_is_named(server: Valkey, name: str, bad: str, line: str) -> None:
    server.start(*SAFE)
    configure(server, "appendonly", "yes")
    configure(server, name, bad)
    [objection] = await safety.objections(server.url)
    assert objection.startswith(line)


async def test_a_safe_one_is_taken(server: Valkey) -> None:
    server.start(*SAFE)
    configure(server, "appendonly", "yes")
    assert await safety.objections(server.url) == []


@pytest.mark.parametrize("version", ["5.0.14", "6.2.14", "6.9"])
def test_a_version_that_lacks_what_is_asked_of_it_is_named(version: str) -> None:
    [objection] = safety._version({"redis_version": version})
    assert objection == f"Redis {version} is too old: 7.0 or newer, or any Valkey, is needed"


@pytest.mark.parametrize("version", ["7.0.0", "7.2.4", "8.2.1", "10.0.0"])
def test_a_version_that_has_it_is_taken(version: str) -> None:
    assert safety._version({"redis_version": version}) == []


async def test_of_one_that_is_too_old_no_more_is_asked(server: Valkey, monkeypatch: pytest.MonkeyPatch) -> None:
    """An old one does not know the questions, and would be taken for one that hides its answers."""
    server.start(*SAFE)  # it has no append-only file
    monkeypatch.setattr(safety, "VERSION_LEAST", (99, 0))
    [objection] = await safety.objections(server.url)
    assert objection.startswith("Redis 7.2.4 is too old")


async def test_a_replica_is_not_taken_for_a_primary(server: Valkey) -> None:
    server.start(*SAFE)
    configure(server, "appendonly", "yes")
    command(server, "REPLICAOF", "127.0.0.1", "1")
    [objection] = await safety.objections(server.url)
    assert "names a replica" in objection


async def test_one_that_hides_its_configuration_must_be_waved_through(server: Valkey) -> None:
    server.start(*SAFE, "--rename-command", "CONFIG", '""')
    [objection] = await safety.objections(server.url)
    assert "REDIS_CHECKS=warn" in objection


async def test_one_that_cannot_be_reached_is_not_judged(server: Valkey) -> None:
    with pytest.raises(RedisError):
        await safety.objections(server.url)


async def test_an_open_door_off_loopback_is_named(server: Valkey) -> None:
    server.start(*SAFE)
    configure(server, "appendonly", "yes")
    nowhere: frozenset[str] = frozenset()  # the only address that a test may use counts as a far one
    [objection] = await safety.objections(server.url, loopback=nowhere)
    assert objection.startswith("redis.conf: requirepass")
    command(server, "CONFIG", "SET", "requirepass", "long and random")
    url = server.url.replace("//", "//:long%20and%20random@")
    assert await safety.objections(url, loopback=nowhere) == []


def configure(server: Valkey, name: str, value: str) -> None:
    command(server, "CONFIG", "SET", name, value)


def command(server: Valkey, *words: str) -> None:
    with redis.Redis(port=server.port, socket_timeout=5) as client:
        client.execute_command(*words)
