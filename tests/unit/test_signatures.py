"""Signatures as the public package reads them, and seals that nobody reads."""

import base64
import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from service import signatures
from service.parsers import WebhookKey, notify_secrets
from service.seals import Hook, Seals
from service.secret import Secret

FIRST, SECOND = ("whsec_" + base64.b64encode(bytes([n]) * 32).decode() for n in (1, 2))
BODY = json.dumps({"type": "job.succeeded"}).encode()
OLD, NEW = WebhookKey("k1", b"1" * 32), WebhookKey("k2", b"2" * 32)
HOOK = Hook("https://caller.example/hook?token=1", "a secret")


def signed(*secrets: str) -> dict[str, str]:
    now_s = int(datetime.now(UTC).timestamp())
    return signatures.standard([Secret(secret) for secret in secrets], "msg_job_1", now_s, BODY)


def test_the_public_package_verifies_what_we_sign() -> None:
    assert Webhook(FIRST).verify(BODY, signed(FIRST)) == json.loads(BODY)


def test_while_a_secret_is_changed_a_receiver_with_either_verifies_it() -> None:
    assert Webhook(FIRST).verify(BODY, signed(SECOND, FIRST)) == json.loads(BODY)
    assert Webhook(SECOND).verify(BODY, signed(SECOND, FIRST)) == json.loads(BODY)


@pytest.mark.parametrize("name", ["webhook-id", "webhook-timestamp"])
def test_the_id_and_the_time_are_signed_too(name: str) -> None:
    headers = signed(FIRST)
    with pytest.raises(WebhookVerificationError):
        Webhook(FIRST).verify(BODY, headers | {name: headers[name] + "1"})


def test_secrets_are_read_in_their_order() -> None:
    told = notify_secrets(f"alice:{SECOND},bob:{FIRST},alice:{FIRST}")
    assert [each.reveal() for each in told["alice"]] == [SECOND, FIRST]
    with pytest.raises(ValueError, match="there twice"):
        notify_secrets(f"alice:{FIRST},alice:{FIRST}")


def test_a_seal_is_opened_by_the_key_that_made_it_also_when_another_is_first() -> None:
    sealed = Seals((OLD,)).seal(HOOK)
    assert HOOK.secret not in sealed
    assert Seals((NEW, OLD)).open(sealed) == HOOK
    assert Seals((NEW,)).open(sealed) is None
    assert Seals((NEW, OLD)).seal(HOOK).startswith("k2.")
    assert Seals((OLD,)).seal(HOOK) != sealed, "the same twice does not look the same"


@given(st.text() | st.binary().map(lambda raw: "k1." + base64.urlsafe_b64encode(raw).decode()))
def test_what_is_no_seal_opens_to_nothing(text: str) -> None:
    assert Seals((OLD,)).open(text) is None
