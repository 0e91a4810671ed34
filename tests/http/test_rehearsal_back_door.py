"""The rehearsal provider's back door: its ledger, its knobs, its command."""

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from deploy.rehearsal.control import KNOBS, SHARES, Control
from tests.rehearsal import WITHIN_S, Rehearsal

pytest_plugins = ["tests.fixtures_rehearsal"]

ROOT = Path(__file__).parents[2]


def test_the_ledger_has_the_fields_that_others_rely_on(rehearsal: Rehearsal) -> None:
    task = rehearsal.submit("one")
    rehearsal.submit("two")
    (row,) = rehearsal.ledger(id=task)["submissions"]
    assert {"id", "model", "prompt", "webhook_url", "accepted_at", "billed"} <= set(row)
    assert (row["prompt"], row["webhook_url"], row["accepted_at"][-1]) == ("one", None, "Z")
    assert rehearsal.ledger(prompt="three")["submissions"] == []


def test_a_seed_repeats_the_faults_but_not_the_ids(rehearsal: Rehearsal) -> None:
    def run() -> tuple[list[tuple[bool, int]], set[str]]:
        rehearsal.http.post("/_reset")
        rehearsal.turn(seed=5, moderated=0.5)
        ids = {rehearsal.submit() for _ in range(20)}
        return [(row["billed"], row["seed"]) for row in rehearsal.ledger()["submissions"]], ids

    (first, ids), (second, others) = run(), run()
    assert first == second
    assert {billed for billed, _ in first} == {True, False}
    assert not ids & others


def test_a_reset_forgets_the_tasks_and_turns_the_knobs_back(rehearsal: Rehearsal) -> None:
    rehearsal.turn(moderated=1)
    task = rehearsal.submit()
    rehearsal.http.post("/_reset")
    assert rehearsal.poll(task).status_code == 404
    assert rehearsal.ledger() == {"submissions": [], "outstanding": 0, "max_outstanding": 0, "refused_429": 0}
    assert rehearsal.http.get("/_control").json()["moderated"] == 0


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"moderate": 1}, "moderate"),
        ({"moderated": 1.5}, "moderated"),
        ({"moderated": "often"}, "moderated"),
        ({"latency_s": -1}, "latency_s"),
        ({"max_in_flight": 2.5}, "max_in_flight"),
        ({"dialect": "latin"}, "dialect"),
        ({"seed": None}, "seed"),
        ([], "body"),
    ],
)
def test_a_wrong_knob_is_422_by_name_and_turns_nothing(rehearsal: Rehearsal, change: Any, named: str) -> None:
    if isinstance(change, dict):
        change = {"stuck": 1} | change
    answer = rehearsal.http.post("/_control", json=change)
    assert (answer.status_code, answer.json()["detail"][0]["loc"]) == (422, ["body", named])
    assert rehearsal.http.get("/_control").json()["stuck"] == 0


def test_every_knob_of_the_contract_is_there() -> None:
    promised = """seed latency_s latency_spread_s max_in_flight callback_loss callback_delay_s callback_duplicate
        callback_reorder callback_early callback_forged dialect proof drop_answer rate_429 rate_5xx rate_hang moderated
        url_life_s image_truncated image_html image_oversized image_wrong_size"""
    assert set(promised.split()) <= set(KNOBS)


def test_every_mark_is_in_the_manual_and_none_is_within_another() -> None:
    import deploy.rehearsal  # noqa: PLC0415  its docstring is the manual

    marks = [mark for mark in SHARES.values() if mark]
    assert all(f"`{mark}`" in str(deploy.rehearsal.__doc__) for mark in marks)
    assert len(set(marks)) == len(marks)


@pytest.mark.processes
def test_the_command_listens_where_it_says_and_stops_in_peace_with_an_answer_open() -> None:
    command = [sys.executable, "-m", "deploy.rehearsal", "--port", "0", "--max-in-flight", "7", "--accept-hang", "1"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said, url = process.stdout.readline().rsplit(maxsplit=1)
        assert said == "rehearsal provider on"
        with httpx.Client(base_url=url, trust_env=False, timeout=WITHIN_S) as http, hanging(url):
            assert http.get("/_control").json()["max_in_flight"] == 7
            deadline = time.monotonic() + WITHIN_S
            while not http.get("/_ledger").json()["submissions"] and time.monotonic() < deadline:
                pass
            process.send_signal(signal.SIGTERM)
            assert process.wait(WITHIN_S) == -signal.SIGTERM
        assert process.communicate() == ("", "")


def hanging(url: str) -> socket.socket:
    """A submission that waits for its answer."""
    body = b'{"prompt": "x"}'
    sock = socket.create_connection((urlsplit(url).hostname, urlsplit(url).port), WITHIN_S)
    sock.sendall(b"POST /v1/flux-dev HTTP/1.1\r\nhost: x\r\nx-key: k\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
    return sock


@pytest.mark.processes
def test_a_wrong_flag_is_refused_by_name() -> None:
    command = [sys.executable, "-m", "deploy.rehearsal", "--moderated", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=WITHIN_S, check=False)
    assert done.returncode == 2
    assert "--moderated: should be a share between 0 and 1" in done.stderr


def test_a_control_is_its_defaults() -> None:
    assert Control().turned({}) == Control()
