"""Schemathesis reads our own /openapi.json and tries the running service: the document says what the service does."""

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from deploy.local.seaweed import Seaweed
from deploy.local.valkey import Valkey
from tests.faults.http_process import ROOT, HttpProcess, bearer, serving_process

pytest_plugins = ["tests.fixtures_s3"]
pytestmark = pytest.mark.processes

COMMAND: Final = Path(sys.executable).with_name("schemathesis")
# The streams of a job or a batch that waits, and that of a caller, have no end; tests/http/test_events.py reads them.
ENDLESS: Final = ("streamJob", "streamBatch", "streamEvents")
OURS: Final = "positive_data_acceptance"  # schemathesis_hooks.py asks the same, with its exceptions
SEED: Final = 7  # of the small run, which is the same each time: one worker, no --workers
SMALL: Final = ("--phases", "coverage,fuzzing", "--max-examples", "10")
WITHIN_S: Final = 120.0
LARGE: Final = ("--phases", "examples,coverage,fuzzing,stateful", "--max-examples", "200")
LARGE_WITHIN_S: Final = 3_000.0


@pytest.fixture
def service(seaweed: Seaweed, valkey: Valkey, tmp_path: Path) -> Iterator[HttpProcess]:
    store = {
        "S3_BUCKET": seaweed.bucket,
        "S3_ENDPOINT_URL": seaweed.endpoint_url,
        "AWS_ACCESS_KEY_ID": seaweed.access_key,
        "AWS_SECRET_ACCESS_KEY": seaweed.secret_key,
    }
    secrets = {"NOTIFY_SECRETS": "alice:whsec_" + "QUJD" * 10}
    with serving_process(tmp_path, valkey.url, WEB_WAIT_MAX_S="0.1", **store, **secrets) as process:
        yield process


def test_the_document_is_kept_to(service: HttpProcess, tmp_path: Path) -> None:
    examined(service, tmp_path, SEED, SMALL, WITHIN_S)


@pytest.mark.soak
@pytest.mark.timeout(LARGE_WITHIN_S * 1.1)
def test_the_document_is_kept_to_at_length(service: HttpProcess, tmp_path: Path) -> None:
    examined(service, tmp_path, random.randrange(2**32), LARGE, LARGE_WITHIN_S)


def examined(service: HttpProcess, folder: Path, seed: int, extent: tuple[str, ...], within_s: float) -> None:
    """It finds nothing, and the service has logged nothing."""
    excluded = [word for name in ENDLESS for word in ("--exclude-operation-id", name)]
    argv = [str(COMMAND), "--no-color", "run", f"{service.url}/openapi.json", "--seed", str(seed)]
    argv += ["-H", f"Authorization: {bearer('alice')['Authorization']}", "--exclude-checks", OURS, *excluded, *extent]
    hooks = {"SCHEMATHESIS_HOOKS": "tests.faults.schemathesis_hooks", "PYTHONPATH": str(ROOT), "NO_PROXY": "*"}
    run = subprocess.run(
        argv, cwd=folder, env={**os.environ, **hooks}, capture_output=True, text=True, timeout=within_s, check=False
    )
    print(run.stdout[run.stdout.find("= SUMMARY") :])
    assert run.returncode == 0, run.stdout + run.stderr
    assert service.lines() == []
