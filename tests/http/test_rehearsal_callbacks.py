"""The rehearsal provider's callbacks, as they arrive at a real server."""

import hashlib
import hmac
import json

import pytest

from service.domain.answers import Failed, Moderated, Pending, Ready, callback_payload
from tests.rehearsal import Delivery, Mailbox, Rehearsal

pytest_plugins = ["tests.fixtures_rehearsal"]

SECRET = "s3cret"


def order(rehearsal: Rehearsal, mailbox: Mailbox, prompt: str = "a pier") -> str:
    return rehearsal.submit(prompt, webhook_url=mailbox.url, webhook_secret=SECRET)


def statuses(mailbox: Mailbox, count: int) -> list[str]:
    return [mailbox.next().payload["status"] for _ in range(count)]


def proven(letter: Delivery) -> bool:
    """Whether any of the three proofs is in it, and right."""
    payload, headers = letter.payload, letter.headers
    signature = "sha256=" + hmac.new(SECRET.encode(), letter.body, hashlib.sha256).hexdigest()
    return SECRET in (payload.get("webhook_secret"), payload.get("secret"), headers.get("x-webhook-secret")) or (
        headers.get("x-bfl-signature") == signature
    )


@pytest.mark.parametrize(("dialect", "name", "word"), [("old", "task_id", "SUCCESS"), ("new", "id", "Ready")])
def test_both_dialects_name_the_task_and_its_image(
    rehearsal: Rehearsal, mailbox: Mailbox, dialect: str, name: str, word: str
) -> None:
    rehearsal.turn(dialect=dialect)
    task = order(rehearsal, mailbox)
    letter = mailbox.next()
    assert (letter.payload[name], letter.payload["status"]) == (task, word)
    read = callback_payload(letter.body)
    assert read is not None
    assert isinstance(read.answer, Ready)
    assert rehearsal.http.get(read.answer.url).headers["content-type"] == "image/jpeg"


@pytest.mark.parametrize("dialect", ["old", "new"])
@pytest.mark.parametrize(("prompt", "kind"), [("[moderated]", Moderated), ("[error]", Failed)])
def test_bad_endings_are_called_back_too(
    rehearsal: Rehearsal, mailbox: Mailbox, dialect: str, prompt: str, kind: type
) -> None:
    rehearsal.turn(dialect=dialect)
    for _ in range(6):  # with and without a `result`
        order(rehearsal, mailbox, prompt)
        read = callback_payload(mailbox.next().body)
        assert read is not None
        assert isinstance(read.answer, kind | Failed)


def test_the_secret_is_in_the_body_under_either_name(rehearsal: Rehearsal, mailbox: Mailbox) -> None:
    for _ in range(12):
        order(rehearsal, mailbox)
    names = {name for _ in range(12) for name, value in mailbox.next().payload.items() if value == SECRET}
    assert names == {"webhook_secret", "secret"}


@pytest.mark.parametrize(("proof", "header"), [("header", "x-webhook-secret"), ("hmac", "x-bfl-signature")])
def test_the_secret_is_proven_in_a_header(rehearsal: Rehearsal, mailbox: Mailbox, proof: str, header: str) -> None:
    rehearsal.turn(proof=proof)
    order(rehearsal, mailbox)
    letter = mailbox.next()
    assert header in letter.headers
    assert proven(letter)
    assert header == "x-webhook-secret" or SECRET not in json.dumps(letter.headers) + letter.body.decode()


def test_without_proof_the_secret_is_nowhere(rehearsal: Rehearsal, mailbox: Mailbox) -> None:
    rehearsal.turn(proof="none")
    order(rehearsal, mailbox)
    letter = mailbox.next()
    assert SECRET not in json.dumps(letter.headers) + letter.body.decode()


@pytest.mark.parametrize("dialect", ["old", "new"])
def test_progress_comes_before_the_end(rehearsal: Rehearsal, mailbox: Mailbox, dialect: str) -> None:
    rehearsal.turn(progress_events=1, dialect=dialect)
    order(rehearsal, mailbox)
    kinds = []
    for _ in range(2):
        read = callback_payload(mailbox.next().body)
        assert read is not None
        kinds.append(type(read.answer))
    assert kinds == [Pending, Ready]


def test_reordered_progress_comes_after_the_end(rehearsal: Rehearsal, mailbox: Mailbox) -> None:
    rehearsal.turn(progress_events=2, callback_reorder=1)
    order(rehearsal, mailbox)
    assert statuses(mailbox, 3) == ["SUCCESS", "processing", "processing"]


def test_a_duplicate_is_the_same_bytes_twice(rehearsal: Rehearsal, mailbox: Mailbox) -> None:
    order(rehearsal, mailbox, "[twice]")
    assert mailbox.next().body == mailbox.next().body


def test_a_lost_callback_is_not_sent(rehearsal: Rehearsal, mailbox: Mailbox) -> None:
    lost, sent = order(rehearsal, mailbox, "[lost]"), order(rehearsal, mailbox)
    rehearsal.finish()
    assert mailbox.next().payload["task_id"] == sent
    assert rehearsal.ledger(id=lost)["submissions"][0]["callbacks_sent"] == 0


def test_an_early_callback_comes_before_the_submit_answer(rehearsal: Rehearsal, mailbox: Mailbox) -> None:
    rehearsal.turn(latency_s=3600)
    task = order(rehearsal, mailbox, "[early]")
    assert mailbox.arrived.get_nowait().payload["task_id"] == task


def test_an_early_callback_tells_what_a_dropped_answer_could_not(rehearsal: Rehearsal, mailbox: Mailbox) -> None:
    with pytest.raises(Exception, match="disconnected"):
        order(rehearsal, mailbox, "[early] [drop-answer]")
    (row,) = rehearsal.ledger()["submissions"]
    assert mailbox.next().payload["task_id"] == row["id"]


@pytest.mark.parametrize("proof", ["body", "header", "hmac", "none"])
def test_a_forgery_comes_first_proves_nothing_and_shows_another_image(
    rehearsal: Rehearsal, mailbox: Mailbox, proof: str
) -> None:
    rehearsal.turn(proof=proof)
    for _ in range(9):  # all kinds of lie
        task = order(rehearsal, mailbox, "[forged]")
        lie, truth = mailbox.next(), mailbox.next()
        urls = [letter.payload["result"]["sample"] for letter in (lie, truth)]
        images = [rehearsal.http.get(url).content for url in urls]
        assert lie.payload["task_id"] == truth.payload["task_id"] == task
        assert images[0] != images[1]
        assert (proven(lie), proven(truth)) == (False, proof != "none")


def test_a_refused_callback_is_tried_three_times_more(rehearsal: Rehearsal, mailbox: Mailbox) -> None:
    for status in (503, 404, 302):
        mailbox.answers.put(status)
    task = order(rehearsal, mailbox)
    bodies = {mailbox.next().body for _ in range(4)}
    other = order(rehearsal, mailbox)
    assert mailbox.next().payload["task_id"] == other
    (row,) = rehearsal.ledger(id=task)["submissions"]
    assert (len(bodies), row["callbacks_sent"]) == (1, 4)


def test_a_callback_is_given_up_after_the_last_try(rehearsal: Rehearsal, mailbox: Mailbox) -> None:
    for _ in range(4):
        mailbox.answers.put(500)
    refused = order(rehearsal, mailbox)
    assert [mailbox.next().payload["task_id"] for _ in range(4)] == [refused] * 4
    taken = order(rehearsal, mailbox)
    assert mailbox.next().payload["task_id"] == taken


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/", "not a url", "http://[", "\x00", "http://127.0.0.1:99999/"])
def test_a_callback_that_cannot_be_sent_harms_nothing(rehearsal: Rehearsal, url: str) -> None:
    task = rehearsal.submit("[early]", webhook_url=url)
    assert rehearsal.poll(task).json()["status"] == "Ready"
