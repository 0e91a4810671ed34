"""The rehearsal provider's journal: what one process has accepted, the next one goes on with."""

import itertools
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
import pytest

from deploy.rehearsal.__main__ import main
from deploy.rehearsal.journal import FORGOTTEN_AFTER_S, Journal, JournalError
from tests.rehearsal import WITHIN_S, Hands, Mailbox, Rehearsal, playing

pytest_plugins = ["tests.fixtures_rehearsal"]

ROOT = Path(__file__).parents[2]
FAULTS: dict[str, Any] = {"seed": 5, "moderated": 0.5, "failed": 0.3}
COUNTED = {"polls", "pulls", "callbacks_sent", "callbacks_taken"}


class Line:
    """Providers on one clock; each is left in the middle of its work, and the next begins with what it had written."""

    def __init__(self, folder: Path, opened: ExitStack) -> None:
        self.clock = Hands()
        self._opened = opened
        self._files = (folder / f"journal-{number}" for number in itertools.count())
        self.file = next(self._files)

    def first(self) -> Rehearsal:
        return self._opened.enter_context(playing(self.clock, Journal(self.file, self.clock())))

    def next(self) -> Rehearsal:
        """The file is as `kill -9` would leave it now."""
        left, self.file = self.file, next(self._files)
        shutil.copy(left, self.file)
        return self.first()

    def await_noted(self, words: str) -> None:
        until = time.monotonic() + WITHIN_S
        while words not in self.file.read_text():
            assert time.monotonic() < until, f"it does not note {words}"


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    with ExitStack() as opened:
        yield Line(tmp_path, opened)


@contextmanager
def killed(process: subprocess.Popen[str]) -> Iterator[None]:
    try:
        yield
    finally:
        process.kill()


def rows(provider: Rehearsal) -> list[dict[str, Any]]:
    """The ledger without what each process counts for itself."""
    return [{name: row[name] for name in row.keys() - COUNTED} for row in provider.ledger()["submissions"]]


def test_what_was_told_of_a_task_stays_true_to_the_byte(line: Line) -> None:
    before = line.first()
    before.submit(model="flux-pro-1.1-ultra")
    before.submit(model="flux-pro-1.1-ultra", aspect_ratio=None)
    before.submit(model="flux-kontext-pro", aspect_ratio="3:2")
    before.submit(model="flux-2-pro", height=640)
    task = before.submit("a pier", output_format="png")
    before.finish()
    told, ledger = before.poll(task).json(), rows(before)
    url = urlsplit(told["result"]["sample"])
    image = before.http.get(f"{url.path}?{url.query}").content
    after = line.next()
    assert rows(after) == ledger
    assert after.poll(task).json()["result"] | {"sample": ""} == told["result"] | {"sample": ""}
    assert after.http.get(f"{url.path}?{url.query}").content == image
    line.clock.at += 600
    assert after.http.get(f"{url.path}?{url.query}").status_code == 403, "it dies by its own ten minutes"


def test_the_dice_go_on_where_they_lay(line: Line, rehearsal: Rehearsal) -> None:
    def run(provider: Rehearsal) -> None:
        provider.turn(**FAULTS)
        for number in range(10):
            provider.submit(f"a pier {number % 10}")
        provider.finish()

    before = line.first()
    run(before)
    after = line.next()
    run(after)
    rehearsal.turn(**FAULTS)
    for number in range(20):
        rehearsal.submit(f"a pier {number % 10}")
    rehearsal.finish()
    unbroken = rehearsal.ledger()["submissions"]
    assert {row["outcome"] for row in unbroken} == {"ready", "moderated", "failed"}
    of = "prompt", "seed", "outcome", "billed"
    assert [[row[name] for name in of] for row in rows(after)] == [[row[name] for name in of] for row in unbroken]


def test_a_task_runs_on_from_when_it_was_accepted(line: Line) -> None:
    before = line.first()
    before.turn(latency_s=60)
    task = before.submit()
    line.clock.at += 30
    after = line.next()
    told = after.poll(task).json()
    assert (told["status"], told["progress"]) == ("Generating", 0.5)
    assert after.ledger()["outstanding"] == 1


def test_what_should_have_ended_meanwhile_ends_at_once_and_calls_back(line: Line, mailbox: Mailbox) -> None:
    before = line.first()
    before.turn(latency_s=60)
    task = before.submit(webhook_url=mailbox.url, webhook_secret="s3cret")
    line.clock.at += 61
    after = line.next()
    letter = mailbox.next().payload
    assert (letter["task_id"], letter["status"]) == (task, "SUCCESS")
    assert "s3cret" in letter.values()
    assert after.poll(task).json()["status"] == "Ready"


def test_a_callback_that_was_taken_is_not_sent_again_and_one_that_was_not_is(line: Line, mailbox: Mailbox) -> None:
    before = line.first()
    taken = before.submit(webhook_url=mailbox.url)
    mailbox.next()
    line.await_noted("settled")
    before.turn(callback_delay_s=3600)
    before.submit(webhook_url=mailbox.url)
    late = before.submit(webhook_url=mailbox.url)
    before.finish()
    assert before.poll(late).json()["status"] == "Ready"
    after = line.next()
    assert late in {mailbox.next().payload["task_id"] for _ in range(2)}
    assert after.poll(late).json()["status"] == "Ready"
    (row,) = after.ledger(id=taken)["submissions"]
    assert row["callbacks_sent"] == 0


def test_a_line_cut_off_in_the_writing_is_dropped_with_a_word(line: Line, capsys: pytest.CaptureFixture[str]) -> None:
    before = line.first()
    before.turn(stuck=1)
    first, cut = before.submit(), before.submit()
    line.file.write_bytes(line.file.read_bytes()[:-9])
    after = line.next()
    assert "its last line was cut off" in capsys.readouterr().err
    assert (after.poll(first).status_code, after.poll(cut).status_code) == (200, 404)
    later = after.submit()
    assert line.next().poll(later).status_code == 200


def test_the_file_is_cut_down_at_a_start_to_what_is_younger_than_a_day(line: Line) -> None:
    before = line.first()
    old = before.submit()
    line.await_noted("settled")
    line.clock.at += FORGOTTEN_AFTER_S - 1
    young = before.submit()
    line.clock.at += 1
    after = line.next()
    assert (after.poll(old).status_code, after.poll(young).status_code) == (404, 200)
    assert old not in line.file.read_text()


def test_a_reset_empties_it(line: Line) -> None:
    before = line.first()
    forgotten = before.submit("a secret pier")
    before.http.post("/_reset").raise_for_status()
    kept = before.submit()
    assert "a secret pier" not in line.file.read_text()
    assert [row["id"] for row in rows(line.next())] == [kept]
    assert forgotten != kept


def test_it_is_its_owners_alone_and_holds_no_input_image(line: Line) -> None:
    provider = line.first()
    provider.submit(model="flux-kontext-pro", input_image="A" * 100_000)
    assert line.file.stat().st_mode & 0o777 == 0o600
    assert line.file.stat().st_size < 1_000


@pytest.mark.parametrize("text", ["PASSWORD=1\n", '{"id": "x"}\n', "[]\n", '{"url_key": "00"}\n[]\n', "\x00\x00"])
def test_a_file_that_is_something_else_is_left_alone(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "precious"
    file.write_text(text)
    with pytest.raises(JournalError):
        Journal(file, 0)
    assert main(["--port", "0", "--journal", str(file)]) == 1
    assert "is not the journal of a rehearsal" in capsys.readouterr().err
    assert file.read_text() == text


@pytest.mark.processes
@pytest.mark.skipif(sys.platform != "linux", reason="a limit is set on another process")
def test_a_provider_killed_when_its_disk_was_full_has_all_that_it_accepted_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "journal"
    command = [sys.executable, "-m", "deploy.rehearsal", "--port", "0", "--latency-s", "60", "--journal", str(file)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        provider = Rehearsal(process.stdout.readline().rsplit(maxsplit=1)[1], Hands())
        provider.http.headers["Connection"] = "close"  # a connection does not outlive the server's error
        with provider.http, killed(process):
            first = provider.submit()
            room = psutil.Process(process.pid).rlimit
            room(psutil.RLIMIT_FSIZE, (file.stat().st_size + 50, psutil.RLIM_INFINITY))
            assert provider.post().status_code == httpx.codes.INTERNAL_SERVER_ERROR
            room(psutil.RLIMIT_FSIZE, (psutil.RLIM_INFINITY, psutil.RLIM_INFINITY))
            second = provider.submit()
            assert [row["id"] for row in rows(provider)] == [first, second]
    assert [record["id"] for record in Journal(file, 0).records] == [first, second]
