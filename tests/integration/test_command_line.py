"""The command line as people and programs use it: real commands, a real terminal, the running service."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.integration.house import House

pytestmark = pytest.mark.processes

ROOT: Final = Path(__file__).parents[2]
WITHIN_S: Final = 120.0
ORDER: Final = ("--model", "flux-pro-1.1", "--set", "width=256", "--set", "height=256")


def environment(house: House) -> dict[str, str]:
    return {"SERVICE_URL": house.url, "API_TOKEN": house.stack.caller[1], "NO_PROXY": "*", "COLUMNS": "100"}


def run(
    house: House, *arguments: str, stdin: str = "", code: int = 0, **environ: str
) -> subprocess.CompletedProcess[str]:
    ran = subprocess.run(
        [sys.executable, "-m", "service", *arguments],
        cwd=ROOT,
        env=environment(house) | environ,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=WITHIN_S,
        check=False,
    )
    assert ran.returncode == code, ran.stdout + ran.stderr
    return ran


def told(house: House, *arguments: str, **how: Any) -> Any:
    """The one JSON object that a command prints where nobody looks."""
    return json.loads(run(house, *arguments, **how).stdout)


def seen(house: House, *arguments: str) -> str:
    """What a person sees of a command that ends by itself."""
    leader, follower = pty.openpty()
    argv = [sys.executable, "-m", "service", *arguments]
    child = subprocess.Popen(argv, cwd=ROOT, env=environment(house), stdin=follower, stdout=follower, stderr=follower)
    os.close(follower)
    text = b""
    try:
        while piece := os.read(leader, 65_536):
            text += piece
    except OSError:  # Linux's word for the end of a terminal
        pass
    os.close(leader)
    assert child.wait(WITHIN_S) == 0, text
    return text.decode()


@pytest.fixture(scope="module", autouse=True)
def quick(house: House) -> None:
    house.control(latency_s=0.5, latency_spread_s=0)


def test_a_job_is_ordered_waited_for_explained_and_fetched(house: House, tmp_path: Path) -> None:
    made = told(house, "jobs", "create", "a heron", *ORDER, "--key", "heron")
    assert told(house, "jobs", "create", "a heron", *ORDER, "--key", "heron")["id"] == made["id"]
    job = told(house, "jobs", "wait", made["id"])
    house.audit([job])
    assert told(house, "jobs", "get", made["id"]) == job
    run(house, "jobs", "image", made["id"], str(tmp_path / "heron.jpeg"))
    assert (tmp_path / "heron.jpeg").read_bytes() == house.bytes(job["image"]["key"])
    life = told(house, "why", made["id"])
    assert [each["reason"] for each in life["events"]][:2] == ["created", "intended"]
    assert (life["job"], life["next"]) == (job, None)
    listed = [json.loads(line) for line in run(house, "jobs", "list", "--status", "succeeded").stdout.splitlines()]
    assert job in listed


def test_on_a_terminal_there_are_tables_and_words(house: House) -> None:
    created = seen(house, "jobs", "create", "a tern", *ORDER, "--wait")
    [job_id] = set(re.findall(r"job_[0-9A-Z]{26}", created))
    assert "succeeded" in created
    assert "image      s3://" in created
    assert re.search(r"JOB +STATUS +MODEL +TOOK +WHAT", seen(house, "jobs", "list"))
    life = seen(house, "why", job_id)
    assert "accepted, and written down" in life
    assert "[succeeded]" in life
    assert f"jobs image {job_id} FILE" in life


def test_a_failed_job_says_so_by_its_exit_code_and_is_retried(house: House) -> None:
    house.control(latency_s=0.2, latency_spread_s=0, moderated=1)
    made = told(house, "jobs", "create", "--order", "-", "--wait", stdin='{"model": "flux-dev", "prompt": "x"}', code=1)
    assert made["error"]["code"] == "moderated"
    house.control(latency_s=0.5, latency_spread_s=0)
    again = told(house, "jobs", "retry", made["id"])
    assert again["retry_of"] == made["id"]
    assert told(house, "jobs", "wait", again["id"])["status"] == "succeeded"


def test_what_cannot_be_done_says_why(house: House) -> None:
    assert "/width" in run(house, "jobs", "create", "x", "--model", "flux-dev", "--set", "width=1", code=2).stderr
    assert "not_found" in run(house, "why", "job_nope", code=2).stderr
    assert "401" not in run(house, "jobs", "list", code=2, API_TOKEN="wrong").stderr
    away = run(house, "jobs", "list", "--patience", "0", code=3, SERVICE_URL="http://127.0.0.1:9")
    assert "cannot be reached" in away.stderr
    assert "jobs" in run(house, "nonsense", code=2).stderr
    assert "tell a job's life" in run(house, "--help").stdout


@pytest.fixture
def heeded() -> Iterator[None]:
    """Ctrl-C ends what this process starts, although a shell that starts *it* in the background has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeded")
def test_a_wait_that_is_broken_off_says_how_to_go_on(house: House) -> None:
    house.control(latency_s=60, latency_spread_s=0)
    made = told(house, "jobs", "create", "a slow heron", *ORDER)
    leader, follower = pty.openpty()
    argv = [sys.executable, "-m", "service", "jobs", "wait", made["id"]]
    child = subprocess.Popen(argv, cwd=ROOT, env=environment(house), stdin=follower, stdout=follower, stderr=follower)
    os.close(follower)
    text = b""
    while b"generating" not in text:  # the moving line
        text += os.read(leader, 65_536)
    child.send_signal(signal.SIGINT)
    assert child.wait(WITHIN_S) == 130
    text += os.read(leader, 65_536)
    os.close(leader)
    assert f"jobs wait {made['id']}" in text.decode()
    assert told(house, "jobs", "cancel", made["id"])["status"] == "cancelled"


def test_a_file_of_orders_is_submitted_watched_and_read(house: House, tmp_path: Path) -> None:
    house.control(latency_s=0.5, latency_spread_s=0)
    order = {"model": "flux-pro-1.1", "width": 256, "height": 256}
    file = tmp_path / "orders.ndjson"
    file.write_text(
        "".join(json.dumps(order | {"prompt": f"a shore, {n}", "custom_id": str(n)}) + "\n" for n in (1, 2))
    )
    made = told(house, "batches", "submit", str(file), "--key", "shore")
    assert told(house, "batches", "submit", "-", "--key", "shore", stdin=file.read_text())["id"] == made["id"]
    assert "100%" in seen(house, "batches", "watch", made["id"])
    rows = [json.loads(row) for row in run(house, "batches", "manifest", made["id"]).stdout.splitlines()]
    assert [(row["custom_id"], row["status"]) for row in rows] == [("1", "succeeded"), ("2", "succeeded")]
    file.write_text(json.dumps(order | {"prompt": "x", "width": 1}) + "\n")
    assert "line 1 /width" in run(house, "batches", "submit", str(file), code=2).stderr


def test_the_readmes_python_runs_as_it_stands(house: House) -> None:
    house.control(latency_s=0.5, latency_spread_s=0)
    section = (ROOT / "README.md").read_text("utf-8").partition("### From Python\n")[2].partition("\n### ")[0]
    examples = re.findall(r"^```python\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    for example in examples:
        argv = [sys.executable, "-c", example]
        ran = subprocess.run(
            argv, cwd=ROOT, env=environment(house), capture_output=True, text=True, timeout=WITHIN_S, check=False
        )
        assert ran.returncode == 0, ran.stderr
        assert "succeeded" in ran.stdout
    assert examples


def test_commands_that_speak_http_load_no_server_and_no_redis() -> None:
    code = "import sys, service.commands.jobs, service.commands.batches, service.commands.why; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {"starlette", "uvicorn", "redis", "rq", "boto3"}.isdisjoint(loaded.split())
