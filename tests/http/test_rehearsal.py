"""The rehearsal provider's two routes, read as the service reads them, over real sockets."""

from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.domain import answers
from service.domain.answers import (
    Accepted,
    Failed,
    Held,
    Moderated,
    NotAccepted,
    NotFound,
    Pending,
    Ready,
    Rejected,
    Throttled,
    Unknown,
)
from tests.rehearsal import WITHIN_S, Rehearsal

pytest_plugins = ["tests.fixtures_rehearsal"]

HOUR_S = 3600.0


def submitted(answer: httpx.Response) -> answers.Answer:
    return answers.submit_answer(
        answer.status_code, answer.headers.get("content-type", ""), answer.content, answer.headers
    )


def told(answer: httpx.Response) -> answers.Answer:
    return answers.result_answer(
        answer.status_code, answer.headers.get("content-type", ""), answer.content, answer.headers
    )


def test_without_a_webhook_the_answer_has_a_polling_url_that_works(rehearsal: Rehearsal) -> None:
    answer = rehearsal.post().json()
    rehearsal.finish()
    assert set(answer) == {"id", "polling_url", "cost"}
    assert rehearsal.http.get(answer["polling_url"]).json()["status"] == "Ready"


def test_with_a_webhook_the_url_is_echoed_and_there_is_no_polling_url(rehearsal: Rehearsal) -> None:
    rehearsal.turn(callback_loss=1)
    answer = rehearsal.post(webhook_url="http://127.0.0.1:9/hook/token").json()
    assert set(answer) == {"id", "status", "webhook_url", "cost"}
    assert answer["webhook_url"] == "http://127.0.0.1:9/hook/token"


def test_black_forest_labs_paths_and_header_work_alike(rehearsal: Rehearsal) -> None:
    keyed = {"x-key": "any"}
    with httpx.Client(base_url=rehearsal.url, trust_env=False, headers=keyed, timeout=WITHIN_S) as http:
        task = http.post("/v1/flux-dev", json={"prompt": "x"}).json()["id"]
        assert told(http.get("/v1/get_result", params={"id": task})) != NotFound()


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer"}, {"Authorization": "Basic key"}, {"x-key": ""}])
@pytest.mark.parametrize(("method", "path"), [("POST", "/flux/v1/flux-dev"), ("GET", "/v1/get_result?id=1")])
def test_a_missing_key_is_401(rehearsal: Rehearsal, headers: dict[str, str], method: str, path: str) -> None:
    assert httpx.request(method, rehearsal.url + path, headers=headers, trust_env=False).status_code == 401


@pytest.mark.parametrize(
    ("model", "body", "field"),
    [
        ("flux-pro-1.1", {}, "prompt"),
        ("flux-pro-1.1", {"prompt": 5}, "prompt"),
        ("flux-pro-1.1", {"prompt": "x", "width": "wide"}, "width"),
        ("flux-pro-1.1", {"prompt": "x", "width": 1000}, "width"),
        ("flux-pro-1.1", {"prompt": "x", "webhook_url": ""}, "webhook_url"),
        ("flux-pro-1.1", {"prompt": "x", "webhook_url": "h" * 2084}, "webhook_url"),
        ("flux-kontext-pro", {"prompt": "x", "width": 1024}, "width"),
        ("flux-dev", {"prompt": "x", "output_format": "gif"}, "output_format"),
    ],
)
def test_a_wrong_submission_is_422_with_the_field(
    rehearsal: Rehearsal, model: str, body: dict[str, Any], field: str
) -> None:
    answer = rehearsal.http.post(f"/flux/v1/{model}", json=body)
    (fault,) = answer.json()["detail"]
    assert (answer.status_code, fault["loc"]) == (422, ["body", field])
    assert set(fault) == {"type", "loc", "msg", "input"}
    assert rehearsal.ledger()["submissions"] == []


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
@given(
    model=st.sampled_from(["flux-dev", "flux-pro-1.1-ultra", "flux-kontext-pro", "flux-2-pro"]),
    body=st.binary(max_size=64)
    | st.sampled_from([b"[" * 100_000, b'{"prompt":"\\ud800"}', b'{"prompt":"x","guidance":1e999}', b"NaN", b"[]"])
    | st.fixed_dictionaries({"prompt": st.text(max_size=9), "aspect_ratio": st.text(max_size=5)}).map(
        lambda value: httpx.Request("POST", "http://x", json=value).content
    ),
)
def test_no_body_breaks_the_provider(rehearsal: Rehearsal, model: str, body: bytes) -> None:
    assert rehearsal.http.post(f"/flux/v1/{model}", content=body).status_code in {200, 422, 429}


@pytest.mark.parametrize(
    ("knob", "kind"),
    [
        ("bad_key", Held),
        ("no_credits", Held),
        ("rate_redirect", Held),
        ("rate_429", Throttled),
        ("invalid_500", Rejected),
        ("rate_html", Unknown),
        ("bare_submit", Accepted),
        ("far_polling", Accepted),
    ],
)
def test_each_refusal_is_read_by_the_service_as_meant(rehearsal: Rehearsal, knob: str, kind: type) -> None:
    rehearsal.turn(**{knob: 1})
    assert isinstance(submitted(rehearsal.post()), kind)
    assert len(rehearsal.ledger()["submissions"]) == (kind is Accepted)


@pytest.mark.parametrize(
    ("which", "status", "kind"),
    [
        ("500", 500, Unknown),
        ("502", 502, Unknown),
        ("503", 503, NotAccepted),
        ("503-html", 503, Unknown),
        ("504", 504, Unknown),
        ("524", 524, Unknown),
    ],
)
def test_each_kind_of_5xx_can_be_chosen(rehearsal: Rehearsal, which: str, status: int, kind: type) -> None:
    rehearsal.turn(rate_5xx=1, kind_5xx=which)
    answer = rehearsal.post()
    assert (answer.status_code, type(submitted(answer))) == (status, kind)
    assert rehearsal.ledger()["submissions"] == []


def test_the_cap_is_429_until_a_task_ends(rehearsal: Rehearsal) -> None:
    rehearsal.turn(latency_s=HOUR_S, max_in_flight=3, retry_after_s=7)
    answered = [rehearsal.post() for _ in range(5)]
    assert [answer.status_code for answer in answered] == [200, 200, 200, 429, 429]
    assert answered[-1].headers["retry-after"] == "7"
    rehearsal.finish()
    assert rehearsal.post().status_code == 200
    book = rehearsal.ledger()
    assert (len(book["submissions"]), book["max_outstanding"], book["refused_429"]) == (4, 3, 2)


def test_kontext_max_has_a_cap_of_its_own(rehearsal: Rehearsal) -> None:
    rehearsal.turn(latency_s=HOUR_S, max_in_flight_kontext_max=1)
    models = ["flux-kontext-max", "flux-kontext-max", "flux-dev"]
    assert [rehearsal.post(model=model).status_code for model in models] == [200, 429, 200]


@pytest.mark.parametrize("mark", ["[drop-answer]", "[accept-5xx]"])
def test_an_accepted_task_whose_answer_is_lost_is_billed_once(rehearsal: Rehearsal, mark: str) -> None:
    if mark == "[drop-answer]":
        with pytest.raises(httpx.RemoteProtocolError):
            rehearsal.post(mark)
    else:
        assert isinstance(submitted(rehearsal.post(mark)), Unknown)
    (row,) = rehearsal.ledger(prompt=mark)["submissions"]
    assert row["billed"]


@pytest.mark.parametrize(("mark", "accepted"), [("[hang]", 0), ("[accept-hang]", 1)])
def test_a_hanging_answer_never_comes(rehearsal: Rehearsal, mark: str, accepted: int) -> None:
    with pytest.raises(httpx.ReadTimeout):
        rehearsal.http.post("/v1/flux-dev", json={"prompt": mark}, timeout=httpx.Timeout(WITHIN_S, read=0.2))
    assert len(rehearsal.ledger()["submissions"]) == accepted


def test_a_task_tells_its_progress_and_ends(rehearsal: Rehearsal) -> None:
    rehearsal.turn(latency_s=100)
    task = rehearsal.submit(seed=11)
    assert rehearsal.poll(task).json()["status"] == "Pending"
    rehearsal.clock.at += 50
    running = told(rehearsal.poll(task))
    rehearsal.finish()
    ended = told(rehearsal.poll(task))
    assert running == Pending(task, 0.5)
    assert isinstance(ended, Ready)
    assert (ended.provider_id, ended.seed, ended.duration_s) == (task, 11, 50)


@pytest.mark.parametrize(("mark", "kind"), [("[moderated]", Moderated), ("[error]", Failed)])
def test_a_task_that_ends_badly_costs_nothing(rehearsal: Rehearsal, mark: str, kind: type) -> None:
    task = rehearsal.submit(mark)
    rehearsal.finish()
    assert isinstance(told(rehearsal.poll(task)), kind)
    assert [row["billed"] for row in rehearsal.ledger(id=task)["submissions"]] == [False]


def test_an_unknown_id_is_task_not_found(rehearsal: Rehearsal) -> None:
    answer = rehearsal.poll("nobody")
    assert (answer.status_code, answer.json()["status"], told(answer)) == (404, "Task not found", NotFound())


@pytest.mark.parametrize(
    ("knobs", "status", "kind"),
    [
        ({"not_found": 1}, 404, NotFound),
        ({"not_found": 1, "not_found_200": 1}, 200, NotFound),
        ({"flip_back": 1}, 200, Pending),
        ({"wrapped": 1}, 200, Ready),
        ({"bad_key": 1}, 401, Held),
    ],
)
def test_each_oddity_of_a_poll_can_be_played(
    rehearsal: Rehearsal, knobs: dict[str, object], status: int, kind: type
) -> None:
    task = rehearsal.submit()
    rehearsal.finish()
    rehearsal.turn(**knobs)
    answer = rehearsal.poll(task)
    assert (answer.status_code, type(told(answer))) == (status, kind)


def test_a_transient_not_found_passes(rehearsal: Rehearsal) -> None:
    rehearsal.turn(not_found=0.5)
    task = rehearsal.submit()
    assert {rehearsal.poll(task).status_code for _ in range(40)} == {200, 404}


@pytest.mark.parametrize(("prompt", "kind"), [("fine", Ready), ("[moderated]", Moderated), ("[error]", Failed)])
def test_every_ending_can_be_wrapped(rehearsal: Rehearsal, prompt: str, kind: type) -> None:
    rehearsal.turn(wrapped=1)
    for _ in range(8):  # both places of the sample
        task = rehearsal.submit(prompt)
        rehearsal.finish()
        assert isinstance(told(rehearsal.poll(task)), kind)


def test_a_running_task_may_say_odd_things(rehearsal: Rehearsal) -> None:
    rehearsal.turn(latency_s=HOUR_S, odd_status=1)
    task = rehearsal.submit()
    said = [rehearsal.poll(task) for _ in range(20)]
    assert len({answer.json()["status"] for answer in said}) > 1
    assert {type(told(answer)) for answer in said} == {Pending}


def test_a_failed_task_may_come_as_503(rehearsal: Rehearsal) -> None:
    rehearsal.turn(failed_503=1)
    task = rehearsal.submit("[error]")
    rehearsal.finish()
    answer = rehearsal.poll(task)
    assert (answer.status_code, type(told(answer))) == (503, Failed)


def test_polls_may_break_or_hang(rehearsal: Rehearsal) -> None:
    task = rehearsal.submit()
    rehearsal.turn(poll_5xx=1)
    assert rehearsal.poll(task).status_code >= 500
    rehearsal.turn(poll_5xx=0, poll_hang=1)
    with pytest.raises(httpx.ReadTimeout):
        rehearsal.http.get("/flux/v1/get_result", params={"id": task}, timeout=httpx.Timeout(WITHIN_S, read=0.2))


def test_the_same_id_can_be_told_twice(rehearsal: Rehearsal) -> None:
    first = rehearsal.submit()
    assert rehearsal.submit("[same-id]") == first
    assert len({row["id"] for row in rehearsal.ledger()["submissions"]}) == 2


def test_a_stuck_task_ends_only_when_told_to(rehearsal: Rehearsal) -> None:
    task = rehearsal.submit("[stuck]")
    rehearsal.clock.at += HOUR_S
    assert isinstance(told(rehearsal.poll(task)), Pending)
