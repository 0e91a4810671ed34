"""Tokens and secrets: forgeries, flips, rotation, and totality (F42, F46)."""

import hmac
import random
import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.secret import Secret
from service.settings import WebhookKey
from service.tokens import NO_KEY, ApiTokens, CallbackKeys, Proof, VerifiedToken

OLD, NEW = WebhookKey("k1", b"o" * 32), WebhookKey("k2", b"n" * 32)
KEYS = CallbackKeys((OLD,))
JOB = "job_0193f2a0-0000-7000-8000-000000000001"
TOKEN = KEYS.token(JOB, 3)
BODY = b'{"id": "x", "status": "Ready"}'
anything = st.text(st.characters(codec=None), max_size=200)


def proof(
    *,
    body: str | None = None,
    header: str | None = None,
    signature: str | None = None,
    raw: bytes = BODY,
    kid: str = "k1",
) -> Proof:
    return KEYS.proof(JOB, 3, kid, body_secret=body, header_secret=header, signature=signature, raw_body=raw)


def sign(raw: bytes = BODY) -> str:
    return "sha256=" + hmac.digest(KEYS.secret(JOB, 3).encode(), raw, "sha256").hex()


def test_a_token_names_its_key_and_attempt_and_has_128_bits() -> None:
    assert re.fullmatch(r"k1\.3\.[A-Za-z0-9_-]{24}", TOKEN)  # 24 characters of 6 bits
    assert KEYS.verify(JOB, TOKEN) == VerifiedToken("k1", 3)
    assert KEYS.callback_url("https://x.example", JOB, 3) == f"https://x.example/webhooks/flux/{JOB}/{TOKEN}"


def test_every_flipped_bit_of_a_token_is_refused() -> None:
    flips = [TOKEN[:i] + chr(ord(TOKEN[i]) ^ 1 << bit) + TOKEN[i + 1 :] for i in range(len(TOKEN)) for bit in range(8)]
    assert len(flips) == 8 * len(TOKEN)
    assert [flip for flip in flips if KEYS.verify(JOB, flip)] == []


def test_random_tokens_are_refused() -> None:
    seed = random.randrange(1 << 32)
    dice = random.Random(seed)
    forged = [f"k1.{dice.randint(1, 9)}.{''.join(dice.choices(TOKEN, k=24))}" for _ in range(10_000)]
    assert [token for token in forged if KEYS.verify(JOB, token)] == [], f"{seed=}"


def mac_of(keys: CallbackKeys, attempt: int) -> str:
    return keys.token(JOB, attempt).rpartition(".")[2]


REFUSED = {
    "of another job": KEYS.token(JOB[:-1] + "2", 3),
    "of another attempt": f"k1.4.{mac_of(KEYS, 3)}",
    "attempt with a leading zero": f"k1.03.{mac_of(KEYS, 3)}",
    "attempt zero, rightly signed": KEYS.token(JOB, 0),
    "attempt below zero, rightly signed": KEYS.token(JOB, -1),
    "attempt of five digits, rightly signed": KEYS.token(JOB, 10_000),
    "of an unknown key": CallbackKeys((NEW,)).token(JOB, 3),
    "made with what unknown keys are checked with": CallbackKeys((WebhookKey("k9", NO_KEY),)).token(JOB, 3),
    "cut": TOKEN[:-1],
    "with more behind it": TOKEN + ".",
    "padded": TOKEN + "=",
    "empty": "",
    "dots": "..",
    "not ASCII": "k1.3.\u00e9\ud800",
    "secret in place of a token": f"k1.3.{KEYS.secret(JOB, 3)[:24]}",
}


@pytest.mark.parametrize("token", REFUSED.values(), ids=REFUSED.keys())
def test_a_wrong_token_is_refused_at_the_cost_of_any_other(token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = counted(monkeypatch, "digest"), counted(monkeypatch, "compare_digest")
    assert KEYS.verify(JOB, token) is None
    assert [len(each) for each in calls] == [1, 1]


def counted(monkeypatch: pytest.MonkeyPatch, name: str) -> list[str]:
    calls: list[str] = []
    real: Callable[..., object] = getattr(hmac, name)

    def count(*args: object) -> object:
        calls.append(name)
        return real(*args)

    monkeypatch.setattr(hmac, name, count)
    return calls


def test_both_keys_serve_while_both_are_listed() -> None:
    rolling, rolled = CallbackKeys((NEW, OLD)), CallbackKeys((NEW,))
    assert rolling.token(JOB, 3).startswith("k2.")
    assert rolling.verify(JOB, TOKEN) == VerifiedToken("k1", 3)
    assert rolling.secret(JOB, 3, "k1") == KEYS.secret(JOB, 3)
    assert rolled.verify(JOB, TOKEN) is None
    assert rolled.verify(JOB, rolling.token(JOB, 3)) == VerifiedToken("k2", 3)


def test_secrets_differ_by_job_attempt_and_key_and_from_the_token() -> None:
    rolling = CallbackKeys((NEW, OLD))
    secrets = {rolling.secret(job, n, kid) for job in (JOB, "job_2") for n in (1, 2) for kid in ("k1", "k2")}
    assert len(secrets) == 8
    assert not any(mac_of(rolling, n) in secret for secret in secrets for n in (1, 2))


def test_one_right_proof_suffices_wherever_it_stands() -> None:
    secret = KEYS.secret(JOB, 3)
    assert proof(body=secret) is proof(header=secret) is proof(signature=sign()) is Proof.RIGHT
    assert proof(signature=sign().upper()) is proof(body="wrong", header=secret) is Proof.RIGHT


def test_null_and_empty_are_no_proof() -> None:
    assert proof() is proof(body="", header="", signature="") is Proof.NONE


def test_a_wrong_proof_is_no_hint() -> None:
    assert proof(body="x") is proof(header=KEYS.secret(JOB, 4)) is proof(signature="sha256=") is Proof.WRONG
    assert proof(signature=sign(), raw=BODY + b" ") is Proof.WRONG  # an altered body
    unknown = CallbackKeys(()).secret(JOB, 3, "k9")
    assert proof(body=unknown, kid="k9") is Proof.WRONG


@given(anything, anything)
def test_verify_has_a_verdict_for_any_text(job_id: str, token: str) -> None:
    assert KEYS.verify(job_id, token) is None
    assert CallbackKeys(()).verify(job_id, token) is None


@given(anything, anything, anything, anything, st.binary(max_size=200))
def test_proof_has_a_verdict_for_any_text(kid: str, body: str, header: str, signature: str, raw: bytes) -> None:
    shown = proof(body=body, header=header, signature=signature, raw=raw, kid=kid)
    assert shown is (Proof.WRONG if body or header or signature else Proof.NONE)


PEOPLE = ApiTokens({"alice": Secret("alice-0123456789ab"), "bob": Secret("bob-0123456789abcd")})


def test_a_caller_is_known_by_its_token() -> None:
    assert PEOPLE.caller("Bearer alice-0123456789ab") == "alice"
    assert PEOPLE.caller("bearer  bob-0123456789abcd ") == "bob"


@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", "Bearer ", "Basic alice-0123456789ab", "alice-0123456789ab", "Bearer alice-0123456789aB"],
)
def test_charlie_without_access_is_nobody(header: str | None) -> None:
    assert PEOPLE.caller(header) is None


@given(anything)
def test_caller_has_a_verdict_for_any_header(header: str) -> None:
    assert PEOPLE.caller(header) is PEOPLE.caller("Bearer " + header) is None


def test_every_token_is_compared_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = counted(monkeypatch, "compare_digest")
    for header in ("Bearer alice-0123456789ab", "Bearer x", None):
        PEOPLE.caller(header)
    assert len(calls) == 6
