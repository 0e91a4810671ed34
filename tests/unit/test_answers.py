"""What a foreign answer means: tables of captured shapes, and a verdict of the closed set for every byte string."""

import itertools
import json
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.domain.answers import (
    Accepted,
    Answer,
    Callback,
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
    callback_payload,
    result_answer,
    submit_answer,
)
from service.domain.redaction import TEXT_CHARS_MAX, clean

ID = "9f3c1a52-7d0e-4f36-9a5e-0c6b1d2e3f40"
SAMPLE = "https://delivery-eu1.bfl.ai/results/a/sample.jpeg?se=2026-11-22T10%3A10%3A00Z&sp=r&sig=c2ln"
SAMPLE_EXPIRES_AT = 1_795_342_200_000  # 2026-11-22T10:10:00Z
CALLBACK_URL = "https://jobs.example/webhooks/flux/job_01/k1.1.c2VjcmV0LW1hYw"

JSON = "application/json"
HTML = "text/html; charset=utf-8"
PAGE = b"<html><body>upstream timed out</body></html>"


def submit(status: int, body: Any, content_type: str = JSON, **headers: str) -> Answer:
    return submit_answer(status, content_type, _bytes(body), headers)


def result(status: int, body: Any, content_type: str = JSON, **headers: str) -> Answer:
    return result_answer(status, content_type, _bytes(body), headers)


def called_back(body: Any) -> Callback:
    callback = callback_payload(_bytes(body))
    assert callback is not None
    return callback


def _bytes(body: Any) -> bytes:
    return body if isinstance(body, bytes) else json.dumps(body).encode()


# ---- submit ------------------------------------------------------------------------------------------------------

ACCEPTED = [
    ({"id": ID, "polling_url": "https://api.us3.bfl.ai/v1/get_result?id=" + ID, "cost": 4.0, "input_mp": 0}, 4.0),
    ({"id": ID, "polling_url": None}, None),
    ({"id": ID, "status": "Pending", "webhook_url": CALLBACK_URL, "cost": 4}, 4.0),
    ({"id": ID, "status": "Pending"}, None),
    ({"code": "success", "data": {"task_id": ID, "status": "NOT_START", "data": None}}, None),
]


@pytest.mark.parametrize(("body", "cost"), ACCEPTED)
def test_an_id_is_an_acceptance(body: Any, cost: float | None) -> None:
    assert submit(200, body) == Accepted(ID, cost)
    assert submit(202, body, "text/plain") == Accepted(ID, cost)


@pytest.mark.parametrize(
    ("body", "verdict"),
    [
        ({"id": ID, "status": "Request Moderated"}, Moderated),
        ({"id": ID, "status": "Failed", "details": {"message": "no"}}, Failed),
        ({"id": ID, "status": "Ready", "result": {"sample": SAMPLE}}, Ready),
    ],
)
def test_a_task_may_have_ended_by_the_time_it_is_accepted(body: Any, verdict: type) -> None:
    assert isinstance(submit(200, body), verdict)


REJECTED = [
    (400, {"detail": "Invalid aspect ratio"}, "HTTP 400: Invalid aspect ratio"),
    (
        422,
        {"detail": [{"type": "less_than_equal", "loc": ["body", "width"], "msg": "too wide", "input": "the prompt"}]},
        "HTTP 422: width: too wide",
    ),
    (422, {"detail": [{"msg": "one"}, {"loc": ["body", "images", 0], "msg": "two"}]}, "HTTP 422: one; images.0: two"),
    (
        500,
        {"error": {"message": "prompt is required", "type": "comet_api_error", "code": "invalid_request"}},
        "HTTP 500: prompt is required",
    ),
    (404, PAGE, "HTTP 404"),
    (413, b"", "HTTP 413"),
]


@pytest.mark.parametrize(("status", "body", "message"), REJECTED)
def test_a_wrong_request_is_rejected_and_says_where(status: int, body: Any, message: str) -> None:
    assert submit(status, body) == Rejected(message)


@pytest.mark.parametrize("status", [301, 302, 307, 308, 401, 402, 403])
@pytest.mark.parametrize("body", [{"detail": "Insufficient credits"}, PAGE, b"", {"id": ID, "status": "Ready"}])
def test_a_wrong_account_or_route_holds(status: int, body: Any) -> None:
    answer = submit(status, body)
    assert isinstance(answer, Held)
    assert answer.status == status


@pytest.mark.parametrize(
    ("header", "wait_s"),
    [
        ("0", 0.0),
        ("7", 7.0),
        (" 2.5 ", 2.5),
        ("300", 300.0),
        ("301", None),
        ("-1", None),
        ("inf", None),
        ("nan", None),
        ("٣", None),
        ("9" * 5_000, None),
        ("Sun, 22 Nov 2026 10:00:00 GMT", None),
        ("", None),
    ],
)
def test_retry_after_is_honoured_if_it_is_sane(header: str, wait_s: float | None) -> None:
    assert submit_answer(429, HTML, PAGE, {"Retry-After": header}) == Throttled(wait_s)
    assert result_answer(429, HTML, PAGE, {"retry-after": header}) == Throttled(wait_s)
    assert submit_answer(429, HTML, PAGE, {}) == Throttled(None)


def test_only_a_503_in_json_that_names_no_task_is_a_refusal() -> None:
    assert submit(503, {"detail": "Service unavailable"}) == NotAccepted("HTTP 503: Service unavailable")
    assert submit(503, {"status": "error", "message": "busy"}, "application/problem+json") == NotAccepted(
        "HTTP 503: busy"
    )
    assert submit(503, {"id": ID, "status": "Error", "details": "no luck"}) == Failed(ID, "no luck")
    assert submit(503, {"id": ID, "status": "Pending"}) == Accepted(ID)
    assert isinstance(submit(503, {"id": ID, "message": "busy"}), Unknown)
    assert isinstance(submit(503, {"detail": "Service unavailable"}, HTML), Unknown)
    assert isinstance(submit(503, PAGE), Unknown)
    assert isinstance(submit(503, b'"busy"'), Unknown)


BODIES = [b"", PAGE, b"{", b"null", {}, {"detail": "timeout"}, {"error": {"message": "x", "code": "y"}}, {"id": ID}]


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("content_type", [JSON, HTML, ""])
@pytest.mark.parametrize("status", [100, 408, 500, 501, 502, 504, 520, 524, 529, 599, 0, -1, 999])
def test_whatever_happens_after_the_bytes_left_is_unknown(status: int, content_type: str, body: Any) -> None:
    assert isinstance(submit(status, body, content_type), Unknown)


@pytest.mark.parametrize("body", BODIES[:-1])
@pytest.mark.parametrize("content_type", [JSON, HTML])
def test_a_200_that_names_no_task_is_unknown(content_type: str, body: Any) -> None:
    assert isinstance(submit(200, body, content_type), Unknown)


@pytest.mark.parametrize("bad", ["", "a b", "é", "x" * 201, "a\n", "a\x00", 7, None, True, [ID], {"id": ID}])
def test_an_id_that_is_no_id_is_absent(bad: object) -> None:
    assert isinstance(submit(200, {"id": bad}), Unknown)
    assert submit(200, {"id": bad, "task_id": ID}) == Accepted(ID)


# ---- get_result --------------------------------------------------------------------------------------------------


def a_task(status: object, **fields: Any) -> dict[str, Any]:
    return {"id": ID, "status": status, "result": None, "progress": None, "details": None, "preview": None} | fields


def test_ready_carries_all_that_the_provider_tells() -> None:
    made = {"sample": SAMPLE, "prompt": "a lighthouse", "seed": 42, "start_time": 1e9, "end_time": 1e9 + 5.5}
    assert result(200, a_task("Ready", result=made, cost=4.0)) == Ready(ID, SAMPLE, 42, 4.0, 5.5, SAMPLE_EXPIRES_AT)


def test_ready_without_the_trimmings_is_ready() -> None:
    bare = {"sample": "https://x.blob.core.windows.net/a.png", "seed": "7", "start_time": 1e9, "duration": -1}
    assert result(200, a_task("Ready", result=bare, cost=True)) == Ready(ID, bare["sample"])  # type: ignore[arg-type]  # the dict is mixed


@pytest.mark.parametrize(
    "sample",
    [
        "https://a\ud800.bfl.ai/x.png",
        None,
        "",
        7,
        [SAMPLE],
        "ftp://x/y",
        "x.png",
        "https://",
        "https://u:p@x/",
        "https://x/ y",
        "https://x/\n",
    ],
)
def test_ready_without_a_usable_sample_is_unknown(sample: object) -> None:
    assert isinstance(result(200, a_task("Ready", result={"sample": sample})), Unknown)
    assert isinstance(result(200, a_task("Ready", result=sample)), Unknown)
    assert isinstance(result(200, a_task("Ready")), Unknown)


@pytest.mark.parametrize(
    ("query", "expires_at"),
    [
        ("?se=2026-11-22T10%3A10%3A00Z", SAMPLE_EXPIRES_AT),
        ("?se=2026-11-22T11:10:00%2B01:00", SAMPLE_EXPIRES_AT),
        ("?se=2026-11-22T10:10:00", SAMPLE_EXPIRES_AT),
        ("?se=soon", None),
        ("?se=0001-01-01T00:00:00%2B23:59", -62_135_683_140_000),
        ("", None),
    ],
)
def test_the_expiry_of_an_azure_url_is_read(query: str, expires_at: int | None) -> None:
    answer = result(200, a_task("Ready", result={"sample": "https://x.example/a.png" + query}))
    assert isinstance(answer, Ready)
    assert answer.expires_at == expires_at


@pytest.mark.parametrize("status", ["Pending", "Reasoning", "Generating", "Queued", "Dreaming", "", None, 7, ["Ready"]])
def test_a_word_that_nobody_has_listed_means_not_ended(status: object) -> None:
    assert result(200, a_task(status)) == Pending(ID)


@pytest.mark.parametrize(
    ("said", "read"), [(0, 0.0), (0.5, 0.5), (1, 1.0), (1.5, None), (-1, None), ("50%", None), (True, None)]
)
def test_progress_that_makes_no_sense_is_ignored(said: object, read: float | None) -> None:
    assert result(200, a_task("Pending", progress=said)) == Pending(ID, read)


@pytest.mark.parametrize("status", ["Error", "Failed"])
def test_both_spellings_of_failure(status: str) -> None:
    assert result(200, a_task(status, details={"message": "out of memory"})) == Failed(ID, "out of memory")
    assert result(200, a_task(status)) == Failed(ID, "")


@pytest.mark.parametrize("status", ["Request Moderated", "Content Moderated"])
def test_both_spellings_of_moderation(status: str) -> None:
    details = {"Moderation Reasons": ["Violence", "Gore", 7]}
    assert result(200, a_task(status, details=details)) == Moderated(ID, "Violence, Gore")
    assert result(200, a_task(status)) == Moderated(ID, "")
    assert result(200, {"status": status}) == Moderated(None, "")


def test_a_plain_error_with_moderation_reasons_is_moderation() -> None:
    assert result(200, a_task("Error", details={"Moderation Reasons": ["Violence"]})) == Moderated(ID, "Violence")


def wrapped(status: str, fail_reason: str = "", data: object = None) -> dict[str, Any]:
    inner = {"task_id": ID, "status": status, "fail_reason": fail_reason, "progress": "100%", "data": data}
    return {"code": "success", "message": "", "data": inner}


WRAPPED = [
    (wrapped("SUCCESS", data={"sample": SAMPLE}), Ready(ID, SAMPLE, expires_at=SAMPLE_EXPIRES_AT)),
    (
        wrapped("SUCCESS", data=a_task("Ready", id="inner", result={"sample": SAMPLE, "seed": 1, "duration": 5})),
        Ready(ID, SAMPLE, 1, None, 5.0, SAMPLE_EXPIRES_AT),
    ),
    (wrapped("FAILURE", "GPU fell over"), Failed(ID, "GPU fell over")),
    (wrapped("FAILURE", "Request Moderated"), Moderated(ID, "Request Moderated")),
    (wrapped("FAILURE", data=a_task("Content Moderated")), Moderated(ID, "")),
    (wrapped("SUCCESS", data=a_task("Request Moderated")), Moderated(ID, "")),
    (wrapped("FAILURE", "late", data=a_task("Pending")), Failed(ID, "late")),
    (wrapped("IN_PROGRESS"), Pending(ID)),
    ({"code": "success", "data": {"status": "FAILURE", "fail_reason": "no"}}, Failed(None, "no")),
]


@pytest.mark.parametrize(("body", "verdict"), WRAPPED)
def test_the_gateways_wrapping_is_read(body: Any, verdict: Answer) -> None:
    answer = result(200, body)
    assert type(answer) is type(verdict)
    assert answer == verdict


@pytest.mark.parametrize("body", [a_task("Task not found"), {"detail": "Task not found"}, {"status": "Task not found"}])
def test_task_not_found_comes_with_404_and_with_200(body: Any) -> None:
    assert result(200, body) == NotFound()
    assert result(404, body) == NotFound()
    assert result(404, PAGE, HTML) == NotFound()


def test_a_failed_task_can_arrive_as_503() -> None:
    assert result(503, a_task("Failed", details="broken")) == Failed(ID, "broken")
    assert result(503, a_task("Request Moderated")) == Moderated(ID, "")
    assert isinstance(result(503, a_task("Pending")), Unknown)
    assert isinstance(result(503, a_task("Failed", id=None)), Unknown)
    assert isinstance(result(503, a_task("Failed"), HTML), Unknown)


@pytest.mark.parametrize("status", [200, 500, 502, 503, 504])
def test_a_gateways_own_error_never_ends_a_job_that_is_paid_for(status: int) -> None:
    assert isinstance(result(status, {"status": "error", "message": "internal"}), Unknown)
    assert isinstance(result(status, {"error": {"message": "Failed", "type": "comet_api_error"}}), Unknown)
    assert isinstance(result(status, PAGE, HTML), Unknown)
    assert isinstance(result(status, b'{"id": "x", "status": "Fai'), Unknown)


@pytest.mark.parametrize("status", [100, 301, 400, 408, 410, 422, 500, 502, 504, 524, 0, 999])
@pytest.mark.parametrize("body", [PAGE, b"", {"detail": "no"}, a_task("Failed")])
def test_a_poll_that_is_refused_says_nothing_of_the_job(status: int, body: Any) -> None:
    assert isinstance(result(status, body), Unknown)


@pytest.mark.parametrize("status", [401, 402, 403])
def test_a_poll_with_a_wrong_key_holds(status: int) -> None:
    assert result(status, {"detail": "Not authenticated"}) == Held(f"HTTP {status}: Not authenticated", status)


# ---- callbacks ---------------------------------------------------------------------------------------------------

CALLBACKS = [
    ({"task_id": ID, "status": "SUCCESS", "result": {"sample": SAMPLE, "seed": 3}}, Ready),
    ({"id": ID, "status": "Ready", "result": {"sample": SAMPLE, "seed": 3}}, Ready),
    ({"task_id": ID, "status": "FAILED", "result": None}, Failed),
    ({"id": ID, "status": "Error", "result": {}}, Failed),
    ({"task_id": ID, "status": "processing", "progress": 0.4}, Pending),
    ({"id": ID, "status": "Request Moderated"}, Moderated),
    ({"task_id": ID, "status": "Content Moderated", "details": {"Moderation Reasons": ["x"]}}, Moderated),
    ({"id": ID, "status": "SUCCESS"}, Unknown),
]


@pytest.mark.parametrize(("body", "verdict"), CALLBACKS)
def test_both_dialects_of_callbacks_are_read(body: Any, verdict: type) -> None:
    callback = called_back(body)
    assert isinstance(callback.answer, verdict)
    assert (callback.provider_id, callback.secret) == (ID, None)


@pytest.mark.parametrize(
    ("proof", "secret"),
    [
        ({"webhook_secret": "s3"}, "s3"),
        ({"secret": "s3"}, "s3"),
        ({"webhook_secret": None, "secret": "s3"}, "s3"),
        ({"webhook_secret": ""}, None),
        ({"secret": None}, None),
        ({"secret": 7}, None),
        ({"secret": "\ud800"}, "?"),
        ({}, None),
    ],
)
def test_a_callback_offers_its_proof_in_either_field(proof: Any, secret: str | None) -> None:
    callback = called_back(a_task("Pending") | proof)
    assert callback.secret == secret
    assert "s3" not in repr(callback)


@pytest.mark.parametrize("body", [b"", PAGE, b"[]", b"null", b'"x"', b"\xff", b"[" * 9_999, b'{"a": NaN}', b"\x1f\x8b"])
def test_a_callback_that_is_no_object_is_none(body: bytes) -> None:
    assert callback_payload(body) is None


def test_an_object_that_says_nothing_is_still_a_callback() -> None:
    assert isinstance(called_back({}).answer, Unknown)
    assert called_back({"secret": "s3"}).secret == "s3"


# ---- texts -------------------------------------------------------------------------------------------------------

CANARIES = ["c2VjcmV0LW1hYw", "hunter2", "sig=c2ln"]
LEAKS = [
    f"could not call {CALLBACK_URL}",
    f"could not call {CALLBACK_URL.replace('/', '%2F')}",
    json.dumps({"webhook_url": CALLBACK_URL}).replace("/", r"\/"),
    "/webh\u200books/flux/job_01/k1.1.c2Vj\x00cmV0LW1hYw",
    f"expired: {SAMPLE}",
    "x.png?sig=c2ln",
    "cut off &sp=r&sig=c2ln&x=1",
    "https://me:hunter2@host/x",
    '{"webhook_secret": "hunter2"}',
    '{\\"secret\\":\\"hunter2\\"}',
    "secret = hunter2",
    "Authorization: Bearer hunter2",
    "x-key: hunter2, retry",
    "key sk-hunter2hunter2 is wrong",
    "token='hunter2 and more'",
]


@pytest.mark.parametrize("text", LEAKS)
def test_a_detail_never_carries_a_secret(text: str) -> None:
    assert not any(canary in clean(text) for canary in CANARIES), clean(text)
    for answer in (submit(400, {"detail": text}), result(200, a_task("Error", details={"webhook": {"said": text}}))):
        assert not any(canary in repr(answer) for canary in CANARIES), answer


def test_an_echoed_callback_address_does_not_reach_a_detail() -> None:
    echo = {"detail": {"webhook_url": CALLBACK_URL, "webhook_secret": "hunter2", "input": "the prompt"}}
    said = repr(submit(422, echo))
    assert not any(text in said for text in [*CANARIES, "the prompt"])


def test_a_detail_is_short_printable_and_otherwise_left_alone() -> None:
    assert clean("Invalid aspect ratio: 3:1 (why? because)") == "Invalid aspect ratio: 3:1 (why? because)"
    assert clean("two\r\nlines\x1b[31m\u202e\ud800") == "two lines[31m"
    assert len(clean("x" * 10_000_000)) == TEXT_CHARS_MAX


# ---- whatever comes ----------------------------------------------------------------------------------------------

WORDS = [
    "Ready",
    "SUCCESS",
    "FAILURE",
    "Error",
    "Request Moderated",
    "Task not found",
    "Pending",
    ID,
    SAMPLE,
    "invalid_request",
]
NAMES = [
    "id",
    "task_id",
    "status",
    "result",
    "data",
    "detail",
    "details",
    "error",
    "code",
    "message",
    "msg",
    "loc",
    "sample",
]
NAMES += [
    "seed",
    "cost",
    "progress",
    "duration",
    "start_time",
    "end_time",
    "fail_reason",
    "secret",
    "Moderation Reasons",
]
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(), max_size=8)
    | st.sampled_from(WORDS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
    max_leaves=8,
)
PAYLOADS = st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=6).map(lambda value: json.dumps(value).encode())
STATUSES = st.sampled_from([200, 201, 204, 301, 400, 402, 404, 408, 422, 429, 500, 502, 503, 504, 524]) | st.integers()
CONTENT_TYPES = st.sampled_from([JSON, HTML, ""]) | st.text(max_size=8)
HEADERS = st.dictionaries(st.sampled_from(["Retry-After", "x"]), st.text(max_size=8))
CLOSED_SET = get_args(Answer)


@pytest.mark.parametrize("examples", [2_000, pytest.param(5_000, marks=pytest.mark.soak)])
def test_every_answer_gets_a_verdict(examples: int) -> None:
    any_answer = given(STATUSES, CONTENT_TYPES, st.binary(max_size=100) | PAYLOADS, HEADERS)
    settings(deadline=None, max_examples=examples)(any_answer(_has_a_verdict))()
    print(f"{examples} answers: each has a verdict of the closed set")


def _has_a_verdict(status: int, content_type: str, body: bytes, headers: dict[str, str]) -> None:
    submitted = submit_answer(status, content_type, body, headers)
    polled = result_answer(status, content_type, body, headers)
    callback = callback_payload(body)
    verdicts = [submitted, polled] + ([callback.answer] if callback else [])
    assert all(type(verdict) in CLOSED_SET for verdict in verdicts)
    # A second purchase is risked only where none can have been made.
    assert not isinstance(submitted, NotAccepted) or (
        status == 503 and content_type != HTML and not _names_a_task(body)
    )
    assert status not in range(200, 300) or not isinstance(submitted, Rejected | Held | Throttled | NotAccepted)
    # What is paid for is not given up because a poll went wrong.
    assert not isinstance(polled, Accepted | NotAccepted | Rejected)
    assert not isinstance(polled, Failed | Moderated) or status == 503 or status in range(200, 300)
    assert all(len(text) <= TEXT_CHARS_MAX and text.isprintable() for verdict in verdicts for text in _texts(verdict))


def _names_a_task(body: bytes) -> bool:
    value = json.loads(body)
    return isinstance(value, dict) and ID in (value.get("id"), value.get("task_id"))


def _texts(answer: Answer) -> list[str]:
    names = ("message", "reasons", "reason", "detail")
    return [getattr(answer, name) for name in names if hasattr(answer, name)]


def test_the_table_of_verdicts_is_closed() -> None:
    statuses, types = [200, 301, 400, 401, 404, 429, 500, 503], [JSON, HTML]
    seen = {type(submit(s, b, t)) for s, t, b in itertools.product(statuses, types, [*BODIES, a_task("Failed")])}
    seen |= {type(result(200, body)) for body, _ in WRAPPED}
    assert seen <= set(CLOSED_SET)
    assert seen >= {Accepted, Failed, Held, Moderated, NotAccepted, Pending, Ready, Rejected, Throttled, Unknown}
