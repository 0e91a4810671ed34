"""`make run` as a person meets it: what it prints works, nothing is lost between runs, nothing is left behind."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.request import Request, urlopen

import psutil
import pytest
from dotenv import dotenv_values

from deploy.local.environment import ROOT, setting_names
from deploy.local.lock import Lock
from deploy.local.ports import LOOPBACK, free_port
from tests.integration.house import pause

pytestmark = pytest.mark.processes

STOP_PROMISED_S: Final = 10
CUT_OFF_S: Final = 5  # what a test waits for a kill to be done
PASTED_S: Final = 90
WAIT_S: Final = 90
FACTS: Final = [
    "SERVICE_URL",
    "API_TOKEN",
    "REDIS_URL",
    "S3_ENDPOINT_URL",
    "S3_BUCKET",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "FLUX_API_BASE_URL",
]


class Run:
    """The command on a folder of the test's own, with no setting but the port."""

    def __init__(self, folder: Path, port: int) -> None:
        environment = os.environ | dict.fromkeys(setting_names(), "") | {"PORT": str(port)}
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-m", "deploy.local.run", "--folder", str(folder)],
            cwd=ROOT,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def await_line(self, words: str) -> str:
        """The next line it prints that holds these words."""
        assert self.process.stdout
        read = []
        for line in self.process.stdout:
            read.append(line)
            if words in line:
                return line
        raise AssertionError(f"it ended without saying {words!r}: {''.join(read)}")

    def facts(self) -> dict[str, str | None]:
        return dotenv_values(self.folder / "run.env")

    def ask(self, path: str, body: object = None, **headers: str) -> bytes:
        """What the service answers to a GET, or with a body to a POST of it."""
        facts = self.facts()
        headers |= {"Authorization": f"Bearer {facts['API_TOKEN']}"}
        return answer(f"{facts['SERVICE_URL']}{path}", body, headers)

    def provider(self, path: str, body: object = None) -> Any:
        """What the rehearsal's back door answers."""
        return json.loads(answer(f"{str(self.facts()['FLUX_API_BASE_URL']).removesuffix('/flux/v1')}{path}", body, {}))

    def children(self) -> dict[str, psutil.Process]:
        """By a word of their command line; the guardian is one of them."""
        found = {}
        for child in psutil.Process(self.process.pid).children(recursive=True):
            line = " ".join(child.cmdline())
            words = ("valkey-server", "weed", "deploy.rehearsal", "-m workers", "-m service", "guardian.py watch")
            found[next(word for word in words if word in line)] = child
        return found


def answer(url: str, body: object, headers: dict[str, str]) -> bytes:
    data = None if body is None else json.dumps(body).encode()
    with urlopen(Request(url, data, headers | {"Content-Type": "application/json"}), timeout=WAIT_S) as got:  # noqa: S310  our own
        text: bytes = got.read()
        return text


@contextmanager
def running(folder: Path, port: int = 0) -> Iterator[Run]:
    run = Run(folder, port or free_port())
    try:
        yield run
    finally:
        if run.process.poll() is None:
            run.process.terminate()
            run.process.wait(STOP_PROMISED_S * 2)
        assert run.process.stdout
        run.process.stdout.close()


def all_gone(children: dict[str, psutil.Process]) -> bool:
    _, alive = psutil.wait_procs(list(children.values()), timeout=CUT_OFF_S)
    return not alive


def test_the_printed_line_makes_a_picture_that_the_next_run_still_has(tmp_path: Path) -> None:
    local, port = tmp_path / "local", free_port()
    with running(local, port) as first:
        assert first.await_line("service  ").split()[-1] == f"http://{LOOPBACK}:{port}"
        line = first.await_line("job=")
        first.await_line("Ctrl-C stops everything")
        subprocess.run(["sh", "-c", line], cwd=tmp_path, check=True, timeout=PASTED_S)
        picture = (tmp_path / "picture.jpg").read_bytes()
        assert picture.startswith(b"\xff\xd8")
        assert list(first.facts()) == FACTS
        assert (local / "run.env").stat().st_mode & 0o777 == 0o600
        before, facts, children = first.ask("/v1/jobs"), first.facts(), first.children()
        (bought,) = first.provider("/_ledger")["submissions"]
        first.process.send_signal(signal.SIGTERM)
        assert first.process.wait(STOP_PROMISED_S) == 0
        assert all_gone(children)
    with running(local, port) as second:
        second.await_line("Ctrl-C stops everything")
        assert second.facts()["API_TOKEN"] == facts["API_TOKEN"]
        assert second.ask("/v1/jobs") == before
        assert [row["id"] for row in second.provider("/_ledger")["submissions"]] == [bought["id"]]
        job = before.partition(b'"id":')[2].split(b'"')[1].decode()
        assert second.ask(f"/v1/jobs/{job}/image") == picture
        second.process.send_signal(signal.SIGINT)
        assert second.process.wait(STOP_PROMISED_S) == 0


def test_a_second_run_beside_it_says_what_is_in_the_way(tmp_path: Path) -> None:
    with running(tmp_path) as first:
        first.await_line("Ctrl-C stops everything")
        with running(tmp_path) as second:
            told = second.await_line("already running")
            assert f"process {first.process.pid} at {first.facts()['SERVICE_URL']}" in told
            assert second.process.wait(STOP_PROMISED_S) == 1
        assert first.ask("/healthz")


def test_a_killed_runner_leaves_no_child(tmp_path: Path) -> None:
    with running(tmp_path) as run:
        run.await_line("Ctrl-C stops everything")
        children = run.children()
        assert len(children) == 6
        run.process.kill()
        run.process.wait(CUT_OFF_S)
        assert all_gone(children)
    Lock(tmp_path / "run.lock").release()  # the next run may start


def test_a_runner_stopped_half_way_leaves_no_child(tmp_path: Path) -> None:
    with running(tmp_path) as run:
        run.await_line("starting")
        run.process.terminate()
        assert run.process.wait(STOP_PROMISED_S) == 0
    Lock(tmp_path / "run.lock").release()


# One keeper keeps them all: the store is the slowest to come back, the others are for the soak.
@pytest.mark.parametrize(
    ("word", "name"),
    [
        pytest.param("-m service", "http", marks=pytest.mark.soak),
        pytest.param("-m workers", "workers-1", marks=pytest.mark.soak),
        ("weed", "store"),
    ],
)
def test_a_part_that_dies_is_started_again(tmp_path: Path, word: str, name: str) -> None:
    with running(tmp_path) as run:
        run.await_line("Ctrl-C stops everything")
        before = run.children()[word]
        before.kill()
        assert "SIGKILL" in run.await_line(f"{name} ended")
        run.await_line(f"{name} is back")
        assert run.children()[word].pid != before.pid
        assert run.ask("/readyz")


def test_a_provider_that_is_killed_over_its_work_forgets_no_purchase(tmp_path: Path) -> None:
    prompts = [f"a heron, study {number}" for number in range(10)]
    with running(tmp_path) as run:
        run.await_line("Ctrl-C stops everything")
        run.provider("/_control", {"latency_s": 600})
        jobs = [{"model": "flux-dev", "prompt": prompt, "width": 256, "height": 256} for prompt in prompts]
        ids = [json.loads(run.ask("/v1/jobs", job))["id"] for job in jobs]
        until = time.monotonic() + WAIT_S
        while len(json.loads(run.ask("/v1/jobs?status=generating"))["jobs"]) < len(jobs):
            assert time.monotonic() < until
            pause()
        run.children()["deploy.rehearsal"].kill()
        run.await_line("rehearsal is back")
        assert run.provider("/_finish", {}) == {"finished": len(jobs)}
        ended = [json.loads(run.ask(f"/v1/jobs/{job_id}", Prefer="wait=60")) for job_id in ids]
        assert [job["status"] for job in ended] == ["succeeded"] * len(jobs)
        assert sorted(row["prompt"] for row in run.provider("/_ledger")["submissions"]) == prompts


def test_a_taken_port_is_left_alone(tmp_path: Path) -> None:
    with socket.create_server((LOOPBACK, 0)) as taken, running(tmp_path, taken.getsockname()[1]) as run:
        run.await_line("Ctrl-C stops everything")
        assert run.facts()["SERVICE_URL"] != f"http://{LOOPBACK}:{taken.getsockname()[1]}"
        assert run.ask("/healthz")


def test_a_wrong_setting_is_told_before_anything_starts(tmp_path: Path) -> None:
    environment = os.environ | dict.fromkeys(setting_names(), "") | {"FLUX_MAX_IN_FLIGHT": "many"}
    command = [sys.executable, "-m", "deploy.local.run", "--folder", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "FLUX_MAX_IN_FLIGHT=many: a whole number" in done.stderr
    assert not list((tmp_path / "logs").iterdir())
