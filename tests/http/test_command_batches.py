"""`python -m service batches …` over a socket: what is sent, what is printed, and what the exit code says."""

import io
import json
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from service.client import Client
from service.commands import batches
from service.commands.caller import Call
from service.commands.screen import Screen
from tests.fake_service import FakeService, Reply, fake_service, told

pytestmark = pytest.mark.processes

TOKEN: Final = "alice-" + "a" * 32
RUNNING: Final[dict[str, Any]] = {
    "id": "batch_1",
    "status": "running",
    "total": 2,
    "counts": {"queued": 2, "succeeded": 0, "failed": 0},
    "progress": 0.0,
    "eta_s": 90,
    "retry_of": None,
    "manifest_key": "batches/batch_1/manifest.ndjson",
}
HALF: Final = RUNNING | {"counts": {"queued": 1, "succeeded": 1}, "progress": 0.5}
DONE: Final = RUNNING | {"status": "completed", "counts": {"succeeded": 2}, "progress": 1.0}
LOST: Final = DONE | {"counts": {"succeeded": 1, "failed": 1}}
LINES: Final = b'{"model": "flux-dev", "prompt": "a fox"}\n{"model": "flux-dev", "prompt": "a hen"}\n'


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeService]:
    with fake_service() as made:
        monkeypatch.setenv("SERVICE_URL", made.url)
        monkeypatch.setenv("API_TOKEN", TOKEN)
        yield made


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "orders.ndjson"
    path.write_bytes(LINES)
    return str(path)


def test_a_file_is_submitted_whole_with_its_key(
    fake: FakeService, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.script["POST /v1/batches"] = [told(RUNNING, 202)]
    assert batches.main(["submit", file, "--key", "spring", "--metadata", '{"season": "spring"}']) == 0
    (asked,) = fake.asked
    assert (asked.body, asked.headers["idempotency-key"]) == (LINES, "spring")
    assert asked.headers["authorization"] == f"Bearer {TOKEN}"
    assert "season" in asked.path
    assert json.loads(capsys.readouterr().out) == RUNNING


def test_bad_lines_are_named_and_nothing_is_printed(
    fake: FakeService, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    errors = [{"line": 2, "pointer": "/width", "detail": "Must be at most 1440"}]
    problem = {"code": "invalid_request", "detail": "Some lines are wrong.", "errors": errors, "more_lines": [7, 9]}
    fake.script["POST /v1/batches"] = [told(problem, 422)]
    assert batches.main(["submit", file]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[1:] == ["  line 2 /width: Must be at most 1440", "  and 2 more"]


def test_a_file_that_is_not_there_is_named_and_nothing_is_asked(
    fake: FakeService, capsys: pytest.CaptureFixture[str]
) -> None:
    assert batches.main(["submit", "no-such.ndjson"]) == 2
    assert "no-such.ndjson" in capsys.readouterr().err
    assert fake.asked == []


def test_a_batch_of_which_some_failed_says_so_by_its_exit_code_and_is_retried(
    fake: FakeService, capsys: pytest.CaptureFixture[str]
) -> None:
    again = RUNNING | {"id": "batch_2", "retry_of": "batch_1"}
    fake.script["GET /v1/batches/batch_1"] = [told(LOST)]
    fake.script["POST /v1/batches/batch_1/retry"] = [told(again, 202)]
    fake.script["GET /v1/batches/batch_2"] = [told(DONE | {"id": "batch_2"})]
    assert batches.main(["get", "batch_1"]) == 1
    assert batches.main(["retry", "batch_1", "--watch"]) == 0
    assert [json.loads(line)["id"] for line in capsys.readouterr().out.splitlines()] == ["batch_1", "batch_2"]


def test_a_batch_is_cancelled_and_its_manifest_read(fake: FakeService, capsys: pytest.CaptureFixture[str]) -> None:
    jobs = [{"id": "job_1", "status": "succeeded"}, {"id": "job_2", "status": "failed"}]
    rows = b"".join(json.dumps(job).encode() + b"\n" for job in jobs)
    fake.script["POST /v1/batches/batch_1/cancel"] = [told(RUNNING | {"status": "cancelled"})]
    fake.script["GET /v1/batches/batch_1/manifest"] = [Reply(200, rows)]
    assert batches.main(["cancel", "batch_1"]) == 0
    assert batches.main(["manifest", "batch_1"]) == 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()][1:] == jobs


def listed(fake: FakeService, out: io.StringIO, limit: int) -> int:
    some = [HALF | {"id": "batch_2"}, LOST]
    fake.script["GET /v1/batches"] = [told({"batches": some, "next_cursor": None})]
    with Client(fake.url, TOKEN, sleep=lambda _: None) as darkroom:
        return batches.list_(Call(darkroom, Namespace(limit=limit), Screen(json_asked=False, out=out)))


def test_a_person_reads_a_table_of_batches(fake: FakeService) -> None:
    out = Terminal()
    assert listed(fake, out, 0) == 0
    rows = [line.split() for line in out.getvalue().splitlines()]
    assert rows == [
        ["BATCH", "STATUS", "DONE", "JOBS"],
        ["batch_2", "running", "50%", "1", "queued,", "1", "succeeded"],
        ["batch_1", "completed", "100%", "1", "succeeded,", "1", "failed"],
    ]


def test_a_program_reads_a_line_of_json_for_each_batch_up_to_the_limit(fake: FakeService) -> None:
    out = io.StringIO()
    assert listed(fake, out, 1) == 0
    assert [json.loads(line)["id"] for line in out.getvalue().splitlines()] == ["batch_2"]


def watched(fake: FakeService, out: io.StringIO, err: io.StringIO) -> int:
    fake.script["GET /v1/batches/batch_1"] = [told(RUNNING), told(HALF), told(LOST)]
    with Client(fake.url, TOKEN, sleep=lambda _: None) as darkroom:
        screen = Screen(json_asked=False, out=out, err=err)
        return batches.watch(Call(darkroom, Namespace(batch="batch_1"), screen))


def test_a_person_watches_a_bar_and_is_told_the_end(fake: FakeService) -> None:
    out, err = Terminal(), Terminal()
    assert watched(fake, out, err) == 1
    assert "0%  2 queued  about 1.5 min left" in err.getvalue()
    assert f"{'█' * 12}{'░' * 12}  50%" in err.getvalue()
    assert "jobs       2: 1 succeeded, 1 failed" in out.getvalue()
    assert "\033" not in out.getvalue(), "what is kept has no moving line in it"


def test_a_program_watches_a_line_of_json_for_each_change(fake: FakeService) -> None:
    out, err = io.StringIO(), io.StringIO()
    assert watched(fake, out, err) == 1
    assert [json.loads(line) for line in out.getvalue().splitlines()] == [RUNNING, HALF, LOST]
    assert err.getvalue() == ""
