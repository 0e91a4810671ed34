"""What the children of `make run` are told, whatever a developer's `.env` says."""

import json
from pathlib import Path

import pytest

from deploy.local.environment import Addresses, chosen, compose, generated, is_rehearsal
from deploy.local.seaweed import Seaweed
from service.settings import Settings, load
from tests.fake_service import Reply, fake_service

REAL = Addresses("redis://:pw@127.0.0.1:1/0", "http://127.0.0.1:2", "images", "AK", "SK", 8000, None)
REHEARSED = Addresses("redis://:pw@127.0.0.1:1/0", "http://127.0.0.1:2", "images", "AK", "SK", 8000, 9100)


def told(tmp_path: Path, dotenv: str, at: Addresses = REHEARSED) -> Settings:
    (tmp_path / ".env").write_text(dotenv)
    user = chosen({}, tmp_path / ".env")
    env = compose(user, generated(tmp_path / "secrets.json"), at, tmp_path, {})
    return load(env, dotenv=tmp_path / ".env")


def test_a_rehearsal_calls_back_and_serves_from_loopback(tmp_path: Path) -> None:
    settings = told(tmp_path, "")
    assert settings.flux_api_base_url == "http://127.0.0.1:9100/flux/v1"
    assert settings.public_base_url == "http://127.0.0.1:8000"
    assert settings.flux_result_hosts.startswith("*.bfl.ai,")
    assert settings.flux_result_hosts.endswith(",127.0.0.1:9100")
    assert list(settings.api_tokens) == ["admin"]


def test_a_real_key_means_the_real_provider_and_no_callbacks_unless_asked_for(tmp_path: Path) -> None:
    settings = told(tmp_path, "FLUX_API_KEY=sk-real-key-0123456789\n", REAL)
    assert settings.flux_api_key
    assert settings.flux_api_key.reveal() == "sk-real-key-0123456789"
    assert settings.flux_api_base_url == "https://api.cometapi.com/flux/v1"
    assert settings.public_base_url is None
    assert told(
        tmp_path, "FLUX_API_KEY=sk-real-key-0123456789\nPUBLIC_BASE_URL=https://x.example\n", REAL
    ).public_base_url


def test_a_key_in_a_file_counts_and_an_empty_one_does_not(tmp_path: Path) -> None:
    assert not is_rehearsal(chosen({"FLUX_API_KEY_FILE": "key"}, tmp_path / "absent"))
    assert is_rehearsal(chosen({"FLUX_API_KEY": " "}, tmp_path / "absent"))


def test_what_names_another_redis_or_store_is_not_used(tmp_path: Path) -> None:
    settings = told(
        tmp_path,
        "REDIS_URL_FILE=/nowhere\nREDIS_REPLICAS_TO_WAIT=2\nS3_BUCKET=live\nS3_SSE_KMS_KEY_ID=key\nHOST=0.0.0.0\n"
        "S3_PUBLIC_ENDPOINT_URL=https://cdn.example\nSERVE=webhooks\nSPOOL_DIR=/nowhere\n",
    )
    assert settings.redis_url.reveal() == REHEARSED.redis_url
    assert (settings.redis_replicas_to_wait, settings.s3_bucket, settings.s3_sse_kms_key_id) == (0, "images", None)
    assert (settings.host, settings.s3_public_endpoint_url, "api" in settings.serve) == ("127.0.0.1", None, True)
    assert settings.spool_dir == tmp_path / "spool"


def test_the_users_own_callers_and_limits_stand(tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("alice:alice-0123456789ab")
    settings = told(tmp_path, f"API_TOKENS_FILE={tmp_path / 'tokens'}\nFLUX_MAX_IN_FLIGHT=3\n")
    assert list(settings.api_tokens) == ["alice"]
    assert settings.flux_max_in_flight == 3


def test_credentials_of_the_shell_do_not_reach_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "live")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "https://s3.live.example")
    env = compose({}, generated(tmp_path / "secrets.json"), REAL, tmp_path, {})
    assert env["AWS_ACCESS_KEY_ID"] == "AK"
    assert not {"AWS_PROFILE", "AWS_ENDPOINT_URL_S3"} & env.keys()


@pytest.mark.parametrize("name", ["S3_ENDPOINT", "S3_BUCKET_NAME", "S3_REGION_NAME", "REDIS_REPLICAS"])
def test_a_strangers_variable_is_no_misspelt_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "http://minio.internal:9000")
    assert name not in compose({}, generated(tmp_path / "secrets.json"), REHEARSED, tmp_path, {})
    assert told(tmp_path, "").s3_endpoint_url == REHEARSED.s3_endpoint_url


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "no_proxy"])
def test_no_proxy_stands_between_the_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert name not in compose({}, generated(tmp_path / "secrets.json"), REAL, tmp_path, {})


def test_the_embedded_store_is_called_past_any_proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_service() as proxy, fake_service() as store:
        monkeypatch.setattr(Seaweed, "endpoint_url", store.url)
        for name in ("HTTP_PROXY", "http_proxy"):
            monkeypatch.setenv(name, proxy.url)
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        client = Seaweed(tmp_path).client()
        store.script["GET /"] = [Reply(body=b"<ListAllMyBucketsResult/>")]
        client.list_buckets()
        client.close()
        assert (len(proxy.asked), len(store.asked)) == (0, 1)


def test_secrets_are_made_once_and_for_their_owner_alone(tmp_path: Path) -> None:
    made = generated(tmp_path / "secrets.json")
    assert generated(tmp_path / "secrets.json") == made
    assert json.loads((tmp_path / "secrets.json").read_text()) == made
    assert (tmp_path / "secrets.json").stat().st_mode & 0o777 == 0o600
