"""The servers behind `make run` keep what they acknowledged, listen on loopback alone, and tell `ps` no secret."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from redis import Redis

from deploy.local import seaweed as embedded
from deploy.local.ports import LOOPBACK
from deploy.local.seaweed import Seaweed
from deploy.local.valkey import Valkey

pytest_plugins = ["tests.fixtures_s3"]
pytestmark = pytest.mark.processes

CALL_TIMEOUT_S = 5


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[Valkey]:
    server = Valkey(tmp_path / "valkey")
    server.start()
    try:
        yield server
    finally:
        server.stop()


def heard(pid: int) -> set[str]:
    """The addresses that the process listens on."""
    sockets = psutil.Process(pid).net_connections("tcp")
    return {socket.laddr.ip for socket in sockets if socket.status == psutil.CONN_LISTEN}


def test_valkey_keeps_what_it_acknowledged_over_kill_9(valkey: Valkey) -> None:
    with Redis.from_url(valkey.url, socket_timeout=CALL_TIMEOUT_S) as client:
        for n in range(200):
            client.set(f"key:{n}", n)
    url, first = valkey.url, valkey.pid
    os.kill(first, signal.SIGKILL)
    valkey.start()
    assert valkey.pid != first
    assert valkey.url == url
    with Redis.from_url(url, socket_timeout=CALL_TIMEOUT_S) as client:
        assert client.dbsize() == 200


def test_the_next_start_in_the_folder_has_the_same_password(valkey: Valkey) -> None:
    valkey.stop()
    assert Valkey(valkey.folder).url == valkey.url


def test_options_win_over_our_own(tmp_path: Path) -> None:
    server = Valkey(tmp_path, options={"appendonly": "no", "maxmemory": "8mb"})
    server.start()
    try:
        with Redis.from_url(server.url, socket_timeout=CALL_TIMEOUT_S) as client:
            assert client.config_get("appendonly", "maxmemory") == {"appendonly": "no", "maxmemory": "8388608"}
    finally:
        server.stop()


def test_a_store_that_reads_and_takes_no_writes_is_started_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes, pids = embedded._writes, list[int]()

    def balks_at_first(client: Any, bucket: str) -> bool:
        pids.append(server.pid)
        return server.pid != pids[0] and writes(client, bucket)

    monkeypatch.setattr(embedded, "_writes", balks_at_first)
    server = Seaweed(tmp_path / "store")
    server.start()
    server.stop()
    assert server.pid != pids[0]
    assert not psutil.pid_exists(pids[0])


def test_the_servers_listen_on_loopback_alone(valkey: Valkey, seaweed: Seaweed) -> None:
    assert heard(valkey.pid) == {LOOPBACK}
    assert heard(seaweed.pid) == {LOOPBACK}


def test_no_secret_is_seen_in_ps(valkey: Valkey, seaweed: Seaweed) -> None:
    told = " ".join(psutil.Process(valkey.pid).cmdline() + psutil.Process(seaweed.pid).cmdline())
    assert valkey.password not in told
    assert seaweed.secret_key not in told
    secrets = (valkey.folder / "valkey.conf", valkey.folder / "password", seaweed.folder / "s3.json")
    assert {file.stat().st_mode & 0o777 for file in secrets} == {0o600}
