"""Settings: every row missing, junk and out of range; all mistakes at once; no secret ever shown (F66)."""

import copy
import dataclasses
import json
import os
import pickle
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest
from boto3.session import Session  # type: ignore[import-untyped]  # boto3 has no py.typed

from service.environment import take_credentials
from service.settings import BadSettings, Row, Secret, Settings, example, load, of_process, rows

KEY = b64encode(bytes(range(32))).decode()
ALICE, BOB = "alice-0123456789ab", "bob-0123456789abcd"
GOOD = {"S3_BUCKET": "images", "FLUX_API_KEY": "sk-canary-flux", "API_TOKENS": f"alice:{ALICE}"}
REQUIRED = set(GOOD)

# Per row: junk (not of the kind), and out of range (of the kind, but too small, too large, too short or not ours).
BAD = {
    "HOST": ("two words", "http://host"),
    "PORT": ("http", "65536"),
    "SERVE": ("some", "api,admin"),
    "LOG_LEVEL": ("7", "trace"),
    "METRICS_PORT": ("-1", "70000"),
    "REDIS_URL": ("localhost", "sentinel://a:1,b:99999/service/0"),
    "REDIS_REPLICAS_TO_WAIT": ("one", "17"),
    "REDIS_CHECKS": ("yes", "off"),
    "S3_ENDPOINT_URL": ("s3.example.com", "ftp://s3.example.com"),
    "S3_BUCKET": ("my bucket", "x"),
    "S3_REGION": ("us east", "u" * 65),
    "S3_PREFIX": ("a b", "a/../b"),
    "S3_PUBLIC_ENDPOINT_URL": ("//cdn", "https://cdn:99999"),
    "PRESIGN_TTL_S": ("5m", "604801"),
    "S3_CONDITIONAL_WRITES": ("1", "auto"),
    "S3_SSE_KMS_KEY_ID": ("a key", "k" * 2049),
    "S3_EXPECTED_BUCKET_OWNER": ("me", "1234"),
    "S3_STORAGE_CLASS": ("cold storage", "S" * 65),
    "S3_TAGS": ("team", "aws:team=images"),
    "S3_TIMEOUT_S": ("soon", "0"),
    "FLUX_API_BASE_URL": ("flux", "https://user:pw@flux.example"),
    "FLUX_API_KEY": ("a key with spaces", "short"),
    "FLUX_API_AUTH": ("basic", "header"),
    "FLUX_TIMEOUT_S": ("30s", "301"),
    "FLUX_MAX_IN_FLIGHT": ("abc", "-1"),
    "FLUX_EXTRA_MODELS": ("Flux", "f" * 65),
    "FLUX_RESULT_HOSTS": ("a b", "host:99999"),
    "PUBLIC_BASE_URL": ("example.com", "http://example.com"),
    "WEBHOOK_KEYS": ("a-lone-key", "k1:" + b64encode(bytes(15)).decode()),
    "API_TOKENS": ("alice", "alice:tooshort"),
    "NOTIFY_HOSTS": ("a b", "host:0"),
    "NOTIFY_SECRETS": (f"alice:{KEY}", "alice:whsec_" + b64encode(bytes(23)).decode()),
    "UNKNOWN_OUTCOME": ("maybe", "retry"),
    "UNKNOWN_WAIT_S": ("long", "86401"),
    "GENERATION_TIMEOUT_S": ("15m", "0"),
    "POLL_MAX_S": ("1e9", "601"),
    "BUDGETS": ("alice", "alice:-1"),
    "SPOOL_DIR": ("a\x00b", "a\nb"),
    "SPOOL_MAX_BYTES": ("10 gigs", "1025TiB"),
    "SPOOL_LOST_S": ("inf", "0"),
    "TEMP_DIR": ("a\x00b", "a\x7fb"),
    "BACKLOG_MAX": ("many", "0"),
    "MAX_BODY_BYTES": ("256KB", "17MiB"),
    "INPUT_IMAGE_MAX_BYTES": ("big", "1TiB"),
    "JOB_RETENTION_DAYS": ("1.5", "0"),
    "EVENTS_MAX": ("1_000", "1"),
    "WEB_WAIT_MAX_S": ("nan", "61"),
    "SUBMIT_SLOTS": ("\u0661\u0662", "0"),
    "COLLECT_SLOTS": ("all", "10001"),
    "LEASE_S": ("-1", "601"),
    "SWEEP_INTERVAL_S": ("0x1", "0"),
    "SWEEP_AGAIN_S": ("none", "61"),
    "PROCESS_LOST_S": ("never", "601"),
    "WATCHDOG_S": ("dog", "0"),
    "SUSPECT_RETRY_S": ("60;180", "60,86401"),
    "SHUTDOWN_GRACE_S": ("1 s", "0"),
}
ENV_EXAMPLE = Path(__file__).parents[2] / ".env.example"
ROWS = pytest.mark.parametrize("row", rows(), ids=lambda row: row.name)


def bad(environ: dict[str, str], **more: Any) -> tuple[str, ...]:
    with pytest.raises(BadSettings) as caught:
        load(environ, **more)
    assert all(mistake in str(caught.value) for mistake in caught.value.mistakes)
    return caught.value.mistakes


@ROWS
def test_a_missing_setting_takes_its_default_or_is_asked_for(row: Row) -> None:
    rest = {name: text for name, text in GOOD.items() if name != row.name}
    if row.name not in REQUIRED:
        assert isinstance(load(rest), Settings)
        return
    (mistake,) = bad(rest)
    assert mistake.startswith(f"{row.name}: missing")
    assert f"{row.name}={row.example}" in mistake


@ROWS
@pytest.mark.parametrize("kind", [0, 1], ids=["junk", "out_of_range"])
def test_a_bad_value_is_refused_with_the_line_to_change(row: Row, kind: int) -> None:
    text = BAD[row.name][kind]
    (mistake,) = bad(GOOD | {row.name: text})
    assert mistake.startswith(row.name)
    assert f"e.g. {row.name}={row.example}" in mistake
    assert not row.secret or text not in mistake


def test_the_message_reads_as_promised() -> None:
    (mistake,) = bad(GOOD | {"FLUX_MAX_IN_FLIGHT": "abc"})
    assert mistake == ("FLUX_MAX_IN_FLIGHT=abc: a whole number from 0 to 100000 is wanted, e.g. FLUX_MAX_IN_FLIGHT=24")


@pytest.mark.parametrize("text", [",", " , ,"])
@pytest.mark.parametrize("name", ["SERVE", "FLUX_RESULT_HOSTS", "SUSPECT_RETRY_S"])
def test_a_list_that_something_is_taken_from_is_not_empty(name: str, text: str) -> None:
    """Without a wait, no crash of a suspect could ever be judged."""
    (mistake,) = bad(GOOD | {name: text})
    assert mistake.startswith(f"{name}={text.strip()}: ")


def test_all_mistakes_are_told_at_once() -> None:
    mistakes = bad({name: texts[0] for name, texts in BAD.items()} | {"FLUX_MAX_INFLIGHT": "7"})
    assert len(mistakes) == len(BAD) + 1


def test_no_mistake_shows_a_secret(tmp_path: Path) -> None:
    canary = "canary, with spaces"
    secrets = {row.name: canary for row in rows() if row.secret}
    assert "canary" not in "".join(bad(GOOD | secrets))
    (tmp_path / "secret").write_text(canary)
    files = {f"{name}_FILE": str(tmp_path / "secret") for name in secrets}
    assert "canary" not in "".join(bad({"S3_BUCKET": "images"} | files))
    assert "canary" not in "".join(bad(GOOD | {"S3_ENDPOINT_URL": "https://me:canary@s3.example"}))


def test_the_defaults_are_those_of_the_contract() -> None:
    settings = load(GOOD)
    assert settings.serve == {"api", "webhooks", "console", "metrics"}
    assert settings.redis_url.reveal() == "redis://127.0.0.1:6379/0"
    assert (settings.max_body_bytes, settings.input_image_max_bytes) == (262_144, 20_971_520)
    assert settings.spool_max_bytes == 10 << 30
    assert settings.flux_api_key == Secret("sk-canary-flux")
    assert settings.flux_result_hosts.startswith("*.bfl.ai,")
    assert (settings.public_base_url, settings.webhook_keys, dict(settings.notify_secrets)) == (None, (), {})
    assert settings.s3_conditional_writes is True


def test_a_size_may_have_a_unit_or_none() -> None:
    sizes = [
        load(GOOD | {"SPOOL_MAX_BYTES": text}).spool_max_bytes for text in ("2MiB", "2 MiB", "2097152", "2097152B")
    ]
    assert sizes == [2 << 20] * 4


@pytest.mark.parametrize("text", ["k1:" + KEY, "k1:" + KEY.rstrip("="), f" new:{KEY[:-4]}AAA= , k1:{KEY} "])
def test_webhook_keys_are_decoded(text: str) -> None:
    keys = load(GOOD | {"WEBHOOK_KEYS": text}).webhook_keys
    assert keys[-1].kid == "k1"
    assert keys[-1].key == bytes(range(32))
    assert repr(keys[-1].key) not in repr(keys)


@pytest.mark.parametrize(
    "setting",
    [
        {"API_TOKENS": f"alice:{ALICE},bob:{ALICE}"},
        {"API_TOKENS": f"alice:{ALICE},alice:{BOB}"},
        {"WEBHOOK_KEYS": f"k1:{KEY},k2:{KEY}"},
        {"WEBHOOK_KEYS": f"k1:{KEY},k1:{KEY[:-4]}AAA="},
    ],
)
def test_what_must_be_unique_is(setting: dict[str, str]) -> None:
    (mistake,) = bad(GOOD | setting)
    assert "of its own" in mistake


def test_callbacks_need_keys() -> None:
    at = {"PUBLIC_BASE_URL": "https://x.example"}
    assert bad(GOOD | at)[0].startswith("WEBHOOK_KEYS: missing")
    assert bad({"S3_BUCKET": "images", "SERVE": "webhooks"})[0].startswith("WEBHOOK_KEYS: missing")
    assert load(GOOD | at | {"WEBHOOK_KEYS": f"k1:{KEY}"}).public_base_url == "https://x.example"


@pytest.mark.parametrize(
    "text", ["http://127.0.0.1:8000/", "http://[::1]:8000", "http://localhost", "https://x.y/darkroom/"]
)
def test_a_public_url_is_https_or_loopback_and_keeps_no_slash(text: str) -> None:
    settings = load(GOOD | {"PUBLIC_BASE_URL": text, "WEBHOOK_KEYS": f"k1:{KEY}"})
    assert settings.public_base_url == text.rstrip("/")


def test_each_process_needs_only_what_it_uses() -> None:
    load({"S3_BUCKET": "images", "FLUX_API_KEY": "sk-canary"}, role="workers")
    load({"S3_BUCKET": "images", "SERVE": "webhooks", "WEBHOOK_KEYS": f"k1:{KEY}"})
    load({"S3_BUCKET": "images", "PUBLIC_BASE_URL": "https://x.example"}, role="store")
    assert bad({"S3_BUCKET": "images"}, role="workers")[0].startswith("FLUX_API_KEY: missing; `make run`")


@pytest.mark.parametrize(
    "text",
    [
        "redis://:pw@redis.internal",
        "rediss://u:pw@10.0.0.1:6380/3",
        "unix:///run/redis.sock?db=1",
        "sentinel://u:pw@a:26379,b:26379/main/0",
        "sentinels://a:26379/main",
    ],
)
def test_each_kind_of_redis_url_is_taken(text: str) -> None:
    assert load(GOOD | {"REDIS_URL": text}).redis_url.reveal() == text


def test_a_secret_may_stand_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("sk-from-file\r\n")
    rest = {name: text for name, text in GOOD.items() if name != "FLUX_API_KEY"}
    assert load(rest | {"FLUX_API_KEY_FILE": str(file)}).flux_api_key == Secret("sk-from-file")
    assert "not both" in bad(GOOD | {"FLUX_API_KEY_FILE": str(file)})[0]
    assert "No such file" in bad(rest | {"FLUX_API_KEY_FILE": str(tmp_path / "gone")})[0]
    file.write_bytes(b"\xff\xfe")
    assert "not UTF-8" in bad(rest | {"FLUX_API_KEY_FILE": str(file)})[0]


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(f"bob:{BOB}")
    (tmp_path / ".env").write_text(f"S3_BUCKET=other\nPORT=1\nHOST=${{HOME}}\nAPI_TOKENS=alice:{ALICE}\n")
    environ = {"S3_BUCKET": "images", "FLUX_API_KEY": "sk-canary", "API_TOKENS_FILE": str(tmp_path / "token")}
    assert bad(environ, dotenv=tmp_path / ".env")[0].startswith("HOST=${HOME}")  # nothing is interpolated
    settings = load(environ | {"HOST": "::1"}, dotenv=tmp_path / ".env")
    assert (settings.s3_bucket, settings.port, list(settings.api_tokens)) == ("images", 1, ["bob"])
    assert load(GOOD, dotenv=tmp_path / "absent").port == 8000
    (tmp_path / ".env").write_text('PORT=1\nBACKLOG_MAX="3\n')
    [mistake] = [line for line in bad(GOOD, dotenv=tmp_path / ".env") if "line 2" in line]
    assert "no NAME=value" in mistake
    (tmp_path / ".env").write_bytes(b"PORT=\xff\n")
    assert "cannot be read" in bad(GOOD, dotenv=tmp_path / ".env")[0]


AWS_LINES = 'AWS_ACCESS_KEY_ID=key-of-the-file\nexport AWS_SECRET_ACCESS_KEY="secret #1"\nAWS_SESSION_TOKEN=\n'


def test_boto3_finds_the_credentials_that_stand_in_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, "")  # empty is unset; and set, it is as before when the test is over
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text(AWS_LINES + "".join(f"{name}={text}\n" for name, text in GOOD.items()))
    assert of_process("workers").s3_bucket == "images"
    found = Session().get_credentials()
    assert (found.method, found.access_key, found.secret_key) == ("env", "key-of-the-file", "secret #1")
    assert found.token is None


@pytest.mark.parametrize("own", ["AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_SHARED_CREDENTIALS_FILE"])
def test_credentials_are_not_mixed_of_the_environment_and_the_file(tmp_path: Path, own: str) -> None:
    (tmp_path / ".env").write_text(AWS_LINES)
    environ = {own: "mine", "PATH": "/bin"}
    take_credentials(environ, tmp_path / ".env")
    assert environ == {own: "mine", "PATH": "/bin"}


@pytest.mark.parametrize("text", [None, "S3_BUCKET=images\n", AWS_LINES + "PORT='80\n", "AWS_PROFILE=\xff"])
def test_a_file_without_credentials_or_with_a_mistake_brings_none(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / ".env").write_text(text, "latin-1")
    environ: dict[str, str] = {}
    take_credentials(environ, tmp_path / ".env")
    assert not environ


def test_a_misspelt_name_is_told() -> None:
    (mistake,) = bad(GOOD | {"FLUX_MAX_INFLIGHT": "24"})
    assert mistake == "FLUX_MAX_INFLIGHT: no such setting; FLUX_MAX_IN_FLIGHT is meant?"
    load(GOOD | {"PORTS": "1", "REDIS_URI": "x", "S3CMD_HOME": "x", "FLUX_CAPACITOR_GIGAWATTS": "1.21"})


def test_the_example_lists_every_setting_and_works(tmp_path: Path) -> None:
    assert ENV_EXAMPLE.read_text(encoding="utf-8") == example()
    (tmp_path / ".env").write_text(example(), encoding="utf-8")
    assert load(GOOD, dotenv=tmp_path / ".env") == load(GOOD)
    assert sorted(BAD) == sorted(row.name for row in rows())
    assert all(row.doc for row in rows())


def test_settings_can_be_shown_without_their_secrets() -> None:
    settings = load(GOOD | {"WEBHOOK_KEYS": f"k1:{KEY}", "REDIS_URL": "redis://:canary@h"})
    shown = repr(settings) + f"{settings.flux_api_key} {settings.flux_api_key!s:>20}"
    assert not any(word in shown for word in ("canary", ALICE, KEY))


def test_a_secret_cannot_be_taken_along() -> None:
    secret = Secret("canary")
    for take in (pickle.dumps, json.dumps, copy.copy, copy.deepcopy, hash, lambda s: dataclasses.asdict(load(GOOD))):
        with pytest.raises(TypeError):
            take(secret)
    assert secret == Secret("canary")
    assert secret != Secret("other")
    assert secret != "canary"
