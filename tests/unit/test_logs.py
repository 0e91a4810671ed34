"""Logs: one JSON object a line, and no secret in it whichever way it came (F47, F62)."""

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from service import logs
from service.secret import Secret

CANARY = "c4n4ry0123456789c4n4ry"


@pytest.fixture
def out() -> Iterator[io.StringIO]:
    """What a process configured by us would write to standard error; the test's own logging comes back."""
    root = logging.root
    before = root.handlers[:], root.level, logging.raiseExceptions
    stream = io.StringIO()
    logs.configure("info", stream)
    yield stream
    logging.captureWarnings(False)
    root.handlers[:], logging.raiseExceptions = before[0], before[2]
    root.setLevel(before[1])


def only(out: io.StringIO) -> dict[str, Any]:
    (line,) = out.getvalue().splitlines()
    fields: dict[str, Any] = json.loads(line)
    return fields


def test_a_line_is_one_json_object_with_its_fields(out: io.StringIO) -> None:
    logging.getLogger("service.x").info(
        "took %d\nlines", 2, extra={"job_id": "job_1", "wait_s": 0.5, "share": float("nan")}
    )
    line = only(out)
    assert line.pop("at").endswith("Z")
    assert line == {
        "level": "info",
        "logger": "service.x",
        "message": "took 2 lines",
        "job_id": "job_1",
        "wait_s": 0.5,
        "share": "nan",
    }


def raised(error: Exception, cause: Exception | None = None) -> Exception:
    try:
        raise error from cause
    except type(error) as caught:
        return caught


LEAKS = {
    "callback path": f"POST /webhooks/flux/job_1/k1.1.{CANARY} 404",
    "callback URL in JSON": f'{{"webhook_url": "https:\\/\\/x.example\\/webhooks\\/flux\\/job_1\\/k1.1.{CANARY}"}}',
    "signed URL": f"GET https://delivery.bfl.ai/a.png?se=2026&sig={CANARY}",
    "presigned URL": f"GET https://s3.example/b/k?X-Amz-Signature={CANARY}",
    "authorization": f"Authorization: Bearer {CANARY}",
    "header dict": str({"authorization": f"Bearer {CANARY}", "x-key": CANARY}),
    "redis URL": f"redis://user:{CANARY}@redis.internal:6379/0",
}


@pytest.mark.parametrize("text", LEAKS.values(), ids=LEAKS.keys())
def test_a_secret_is_gone_from_message_field_and_exception(text: str, out: io.StringIO) -> None:
    logger = logging.getLogger("service.x")
    logger.info(text)
    logger.info("as argument: %s", text)
    logger.info("as field", extra={"what": text, "parts": [text], "raw": text.encode()})
    logger.error("as exception", exc_info=raised(OSError(text), ValueError(text)))
    assert len(out.getvalue().splitlines()) == 4
    assert CANARY not in out.getvalue()


def test_a_field_named_like_a_secret_is_gone(out: io.StringIO) -> None:
    logging.getLogger("x").info("%s", Secret(CANARY), extra={"api_token": CANARY, "key": Secret(CANARY)})
    assert CANARY not in out.getvalue()
    assert only(out)["key"] == "Secret(…)"


def test_an_exception_is_its_type_message_and_places(out: io.StringIO) -> None:
    logging.getLogger("x").error("no", exc_info=raised(KeyError("x" * 10_000)))
    error = only(out)["error"]
    assert error["type"] == "KeyError"
    assert len(error["message"]) <= 500
    assert error["trace"][-1].startswith("unit/test_logs.py:")


def test_arguments_that_do_not_fit_do_not_raise(out: io.StringIO) -> None:
    logging.getLogger("x").info("%d jobs", "many")
    assert only(out)["message"] == "%d jobs"


def test_others_speak_only_when_something_is_wrong(out: io.StringIO) -> None:
    for name in ("httpx", "rq.worker", "botocore.auth", "uvicorn.error", "urllib3.connectionpool"):
        logging.getLogger(name).info("chatter")
    logging.getLogger("uvicorn.access").error("GET /webhooks/flux/job_1/%s", CANARY)
    assert out.getvalue() == ""
    logging.getLogger("rq.worker").warning("trouble")
    assert only(out)["logger"] == "rq.worker"


def test_a_line_carries_the_id_of_its_request(out: io.StringIO) -> None:
    token = logs.request_id.set("r-1")
    logging.getLogger("x").info("hello")
    logs.request_id.reset(token)
    assert only(out)["request_id"] == "r-1"
