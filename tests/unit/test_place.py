"""Which Redis and bucket `fsck` and `rebuild` look at: what is set, or a `make run` beside them, never some of both."""

from pathlib import Path

import pytest

from service.commands.place import settled
from service.settings import BadSettings

RUN = """# Facts of the run with process id 1; without that process they are of the past.
SERVICE_URL=http://127.0.0.1:8000
API_TOKEN=token-of-the-run
REDIS_URL=redis://:pass-of-the-run@127.0.0.1:7001/0
S3_ENDPOINT_URL=http://127.0.0.1:7002
S3_BUCKET=darkroom
AWS_ACCESS_KEY_ID=key-of-the-run
AWS_SECRET_ACCESS_KEY=secret-of-the-run
FLUX_API_BASE_URL=http://127.0.0.1:7003/flux/v1
"""
SHELL = {"PATH": "/bin", "AWS_PROFILE": "work", "AWS_SESSION_TOKEN": "of another store", "FLUX_MAX_IN_FLIGHT": "3"}


@pytest.fixture
def dotenv(tmp_path: Path) -> Path:
    return tmp_path / ".env"


@pytest.fixture
def facts(tmp_path: Path) -> Path:
    (tmp_path / "run.env").write_text(RUN)
    return tmp_path / "run.env"


def test_a_run_is_found_with_its_own_credentials_and_no_others(
    dotenv: Path, facts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    environ = dict(SHELL)
    dotenv.write_text("FLUX_API_KEY=sk-real-key-0123456789\nS3_BUCKET=\n")
    found = settled(environ, dotenv, facts)
    assert found.redis_url.reveal() == "redis://:pass-of-the-run@127.0.0.1:7001/0"
    assert (found.s3_endpoint_url, found.s3_bucket) == ("http://127.0.0.1:7002", "darkroom")
    assert found.flux_max_in_flight == 3, "what is no place stays as it is set"
    assert {name: text for name, text in environ.items() if name.startswith("AWS_")} == {
        "AWS_ACCESS_KEY_ID": "key-of-the-run",
        "AWS_SECRET_ACCESS_KEY": "secret-of-the-run",
    }
    said = capsys.readouterr().err
    assert said == (
        f"`make run` of {facts}: Redis 127.0.0.1:7001, database 0; bucket darkroom at http://127.0.0.1:7002\n"
    )


def test_a_strangers_variable_names_no_place(dotenv: Path, facts: Path) -> None:
    found = settled(SHELL | {"S3_ENDPOINT": "http://minio.internal:9000", "S3_BUCKET_NAME": "live"}, dotenv, facts)
    assert found.s3_endpoint_url == "http://127.0.0.1:7002"
    with pytest.raises(BadSettings, match="S3_ENDPOINT_URL is meant"):
        settled(SHELL | {"S3_ENDPOINT": "http://minio.internal:9000", "S3_BUCKET": "images"}, dotenv, facts)


def test_a_place_of_the_file_is_opened_by_the_credentials_of_the_file(dotenv: Path, facts: Path) -> None:
    dotenv.write_text("S3_BUCKET=images\nAWS_ACCESS_KEY_ID=key\nAWS_SECRET_ACCESS_KEY=secret\n")
    environ = {"PATH": "/bin"}
    settled(environ, dotenv, facts)
    assert environ == {"PATH": "/bin", "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
    environ = dict(SHELL)
    settled(environ, dotenv, facts)
    assert environ == SHELL


def test_a_run_is_called_past_the_proxies_of_the_shell_and_another_place_through_them(
    dotenv: Path, facts: Path
) -> None:
    proxies = {"HTTP_PROXY": "http://proxy.internal:3128", "https_proxy": "http://proxy.internal:3128"}
    environ = SHELL | proxies
    settled(environ, dotenv, facts)
    assert not proxies.keys() & environ.keys()
    environ = SHELL | proxies | {"S3_BUCKET": "images"}
    settled(environ, dotenv, facts)
    assert proxies.items() <= environ.items()


@pytest.mark.parametrize(
    "named", ["REDIS_URL=redis://redis.internal/0", "S3_BUCKET=images", "S3_ENDPOINT_URL=https://s3.example.com"]
)
@pytest.mark.parametrize("in_file", [True, False], ids=[".env", "environment"])
def test_whoever_names_any_place_is_taken_to_none_of_the_run(
    dotenv: Path, facts: Path, named: str, *, in_file: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    name, _, text = named.partition("=")
    environ = SHELL if in_file else SHELL | {name: text}
    dotenv.write_text(f"{named}\n" if in_file else "")
    if name == "S3_BUCKET":
        found = settled(dict(environ), dotenv, facts)
        assert (found.redis_url.reveal(), found.s3_endpoint_url) == ("redis://127.0.0.1:6379/0", None)
        assert capsys.readouterr().err == "Redis 127.0.0.1:6379, database 0; bucket images at AWS\n"
    else:
        with pytest.raises(BadSettings, match="S3_BUCKET: missing"):
            settled(dict(environ), dotenv, facts)


def test_a_secret_in_a_file_names_a_place_too(dotenv: Path, facts: Path, tmp_path: Path) -> None:
    (tmp_path / "url").write_text("redis://redis.internal/0")
    with pytest.raises(BadSettings, match="S3_BUCKET: missing"):
        settled({"REDIS_URL_FILE": str(tmp_path / "url")}, dotenv, facts)


@pytest.mark.parametrize("text", ["", "REDIS_URL=redis://127.0.0.1:1/0\n", "S3_BUCKET='no end"])
def test_facts_that_are_not_whole_are_none(dotenv: Path, facts: Path, text: str) -> None:
    facts.write_text(text)
    with pytest.raises(BadSettings, match="S3_BUCKET: missing"):
        settled({}, dotenv, facts)


def test_no_password_is_said_of_any_place(dotenv: Path, facts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = "sentinel://user:pass-word@one:26379,two:26380/prime/2"
    settled({"REDIS_URL": url, "S3_BUCKET": "images"}, dotenv, facts)
    assert capsys.readouterr().err == "Redis prime of one:26379, two:26380, database 2; bucket images at AWS\n"
