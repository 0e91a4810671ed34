"""What commands say: every event has its words, the table fits the terminal, and strangers' text moves no cursor."""

import io
import json
from typing import Any, cast

import pytest

from service.__main__ import main
from service.api.past_life import STEPS as PLACES
from service.client import Job, Log, ServiceError
from service.client.shapes import Moment, Next
from service.commands import batches, screen, why, words
from service.commands.caller import Unknown, address, refusal
from service.commands.facts import run_facts
from service.domain import events

HOSTILE = "a fox\x1b[2J\x1b]8;;http://evil\x07\r\n\u202e\u2066 x"


def names(kind: type[events.Event] = events.Event) -> set[str]:
    return ({kind.name} - {""}).union(*(names(each) for each in kind.__subclasses__()))


def job(**more: Any) -> Job:
    plain: Any = dict.fromkeys(Job.__annotations__)
    plain |= {
        "id": "job_1",
        "status": "queued",
        "model": "flux-dev",
        "request": {},
        "caller": "alice",
        "priority": "low",
    }
    plain |= {"created_at": "2026-11-27T10:00:00.000Z"} | more
    return cast("Job", plain)


def moment(reason: str, **more: Any) -> Moment:
    told: Any = {"at": "2026-11-27T10:00:01.500Z", "status": "queued", "from": None, "reason": reason, "by": "http a:1"}
    told |= {"detail": None} | more
    return cast("Moment", told)


def test_every_event_that_a_log_may_hold_has_its_words_and_no_other() -> None:
    assert set(words.WORDS) == names() | {"created", "corrupt"}


def test_every_step_that_a_job_may_wait_for_has_its_words() -> None:
    assert set(words.STEPS) == set(PLACES)


def test_who_wrote_it_tells_what_proves_it() -> None:
    assert words.proof(moment("accepted", by="worker a:1")) == words.SUBMITTED
    assert words.proof(moment("accepted", by="http a:1")) == words.PROVED
    assert words.proof(moment("hinted")) == "none"
    assert words.proof(moment("a word of a later release")) == "-"


def test_a_life_is_told_from_its_beginning_to_what_comes_next() -> None:
    log: Log = {
        "events": [moment("created"), moment("intended", at="2026-11-27T10:00:03.000Z", status="submitting")],
        "next": {"at": "2026-11-27T10:03:00.000Z", "what": "outcome", "paused": []},
    }
    told = " ".join(why.lines(job(status="submitting", possible_duplicate=True), log))
    assert "+1.5 s" in told
    assert "[submitting] about to be submitted" in told
    assert "bought twice" in told
    assert "a callback, or the end of the wait (looked at by 2026-11-27T10:03:00.000Z at the latest)" in told


def test_a_pause_says_why_nothing_is_bought() -> None:
    log: Log = {"events": [], "next": {"at": "2026-11-27T11:00:00.000Z", "what": "submit", "paused": ["held"]}}
    assert "submissions pause: the provider refuses the account" in " ".join(why.lines(job(), log))


@pytest.mark.parametrize(
    ("crashes", "said"),
    [
        (0, "A worker process died while it had this job in hand: it runs apart from others until"),
        (1, "Its step has taken its process down once with no other job near it: it runs alone now."),
        (2, "Its step has taken its process down 2 times with no other job near it: it runs alone now."),
    ],
)
def test_a_suspect_says_that_it_is_one_and_why(crashes: int, said: str) -> None:
    waits: Next = {"at": "2026-11-27T11:00:00.000Z", "what": "submit", "paused": [], "suspect": {"crashes": crashes}}
    log: Log = {"events": [], "next": waits}
    assert said in " ".join(why.lines(job(), log))
    assert said.rstrip(".") in str(why.document(job(), log)["suspicion"])
    waits["suspect"] = None
    assert "process" not in " ".join(why.lines(job(), log))
    assert why.document(job(), log)["suspicion"] is None


def test_a_job_of_which_only_the_bucket_knows_is_told_by_its_instants() -> None:
    ended = job(status="succeeded", finished_at="2026-11-27T10:00:09.000Z", submitted_at="2026-11-27T10:00:01.000Z")
    told = list(why.lines(ended, {"events": [], "next": None}))
    assert "  submitted  2026-11-27T10:00:01.000Z" in told
    assert any("everything is written" in line for line in told)


def test_what_strangers_wrote_moves_no_cursor() -> None:
    poisoned = job(request={"prompt": HOSTILE}, error={"code": "x", "message": HOSTILE, "retryable": True})
    log: Log = {"events": [moment("polled", detail=HOSTILE)], "next": None}
    told = "".join(
        [*why.lines(poisoned, log), screen.row(("1", HOSTILE), (3,)), *refusal(ServiceError(422, "x", HOSTILE))]
    )
    assert not {c for c in told if not c.isprintable()}
    assert "fox" in told


def test_a_row_fits_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    line = screen.row(("job_1", "succeeded", "a prompt that is far too long for this line"), (8, 10))
    assert (len(line), line[-1]) == (40, "…")


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(3e-5, "0 s"), (0.42, "0.42 s"), (12.4, "12 s"), (210, "3.5 min"), (4_320, "1.2 h"), (345_600, "4 d")],
)
def test_durations_are_short(seconds: float, told: str) -> None:
    assert screen.duration(seconds) == told


@pytest.mark.parametrize(("share", "full"), [(-1, 0), (0, 0), (0.5, 12), (1, 24), (7, 24)])
def test_a_bar_is_as_full_as_its_share(share: float, full: int) -> None:
    assert screen.bar(share).count("█") == full


def test_a_batch_moves_in_one_line() -> None:
    told: Any = {"progress": 0.25, "counts": {"succeeded": 1_000, "queued": 3_000, "failed": 0}, "eta_s": 90}
    assert batches.moving(told).endswith(" 25%  1,000 succeeded, 3,000 queued  about 1.5 min left")


def test_what_is_piped_is_json_and_nothing_else() -> None:
    out, err = io.StringIO(), io.StringIO()
    shown = screen.Screen(json_asked=False, out=out, err=err)
    shown.move("half")
    shown.tell({"id": "job_1"}, ["for people"])
    assert (json.loads(out.getvalue()), err.getvalue()) == ({"id": "job_1"}, "")


def test_a_refusal_names_every_field_and_counts_the_rest() -> None:
    errors = [{"pointer": "/width", "detail": "Too wide"}, {"line": 7, "pointer": "", "detail": "Is not JSON"}]
    error = ServiceError(422, "invalid_request", "Mistakes.", errors=errors, more_lines=[8, 9])
    assert refusal(error) == [
        "Mistakes. (invalid_request)",
        "  /width: Too wide",
        "  line 7 the whole: Is not JSON",
        "  and 2 more",
    ]


def test_the_token_of_a_run_is_for_its_own_address_alone(tmp_path: Any) -> None:
    facts = tmp_path / "run.env"
    facts.write_text("# process 1\nSERVICE_URL=http://127.0.0.1:8000\nAPI_TOKEN='local token'\n")
    assert address(None, {}, facts) == ("http://127.0.0.1:8000", "local token")
    with pytest.raises(Unknown, match="API_TOKEN"):
        address("https://images.example.com", {}, facts)
    assert address("https://images.example.com", {"API_TOKEN": "t"}, facts) == ("https://images.example.com", "t")
    with pytest.raises(Unknown, match="SERVICE_URL"):
        address(None, {}, tmp_path / "none")
    assert run_facts(tmp_path / "none") == {}


@pytest.mark.parametrize(
    ("command", "named"),
    [
        (["jobs", "list", "--limit", "-1"], "--limit: should be a number, 0 or more"),
        (["batches", "submit", "x.ndjson", "--metadata", "{bad"], "--metadata: should be a JSON object"),
    ],
)
def test_an_option_that_cannot_be_says_what_it_should_be(
    command: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(command)
    assert ended.value.code == 2
    assert named in capsys.readouterr().err
