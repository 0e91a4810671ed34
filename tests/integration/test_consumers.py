"""The consumers' guide, run as it stands: its Python and its shell lines, with boto3 and the AWS CLI alone."""

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Final

import pytest
from boto3.session import Session  # type: ignore[import-untyped]  # boto3 has no py.typed
from moto import mock_aws

from deploy.local.stack import Stack
from service.domain import layout
from tests.integration.house import House
from tests.integration.test_queue_batches import run as hand_over

pytestmark = pytest.mark.processes

ROOT: Final = Path(__file__).parents[2]
GUIDE: Final = (ROOT / "deploy" / "CONSUMERS.md").read_text("utf-8")
CLIENTS: Final = ROOT / ".venv-clients" / "bin"
WITHIN_S: Final = 150.0


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)


def consumer(stack: Stack, **facts: str) -> dict[str, str]:
    """What such a process has in its environment: the bucket, its credentials, and what it asks for."""
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "S3_BUCKET", "S3_ENDPOINT_URL")
    given = {name: stack.environment[name] for name in names}
    return given | facts | {"PATH": f"{CLIENTS}:{os.environ['PATH']}", "AWS_DEFAULT_REGION": "us-east-1"}


def told(command: list[str], environment: dict[str, str], folder: Path) -> str:
    run = subprocess.run(
        command, env=environment, cwd=folder, capture_output=True, text=True, timeout=WITHIN_S, check=False
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_the_guides_examples_do_what_they_say(house: House, tmp_path: Path) -> None:
    house.control(latency_s=1, latency_spread_s=0)
    _, answer = hand_over(house, "for-consumers", "a lighthouse", "a heron")
    manifest = layout.manifest_key(answer["batch_id"])
    folder = manifest.removesuffix("manifest.ndjson")
    python = str(CLIENTS / "python")
    of_day, check, wait = blocks("python")
    environment = consumer(house.stack, BATCH=folder)
    assert told([python, "-I", "-c", wait], environment, tmp_path).split() == ["completed", "2", "2"]
    jobs = [json.loads(row) for row in house.bytes(manifest).splitlines()]
    sidecar = layout.sidecar_key(jobs[0]["id"])
    environment |= {"DAY": sidecar[5:15], "SIDECAR": sidecar}
    listed = dict(row.split(" ", 1) for row in told([python, "-I", "-c", of_day], environment, tmp_path).splitlines())
    assert {job["id"]: f"succeeded {job['image']['key']}" for job in jobs}.items() <= listed.items()
    assert told([python, "-I", "-c", check], environment, tmp_path).strip() == "True"
    (shell,) = blocks("sh")
    assert f"{jobs[0]['id']}.json" in told(["sh", "-euc", shell], environment, tmp_path)
    assert json.loads((tmp_path / "job.json").read_text()) == jobs[0]
    for job in jobs:
        name = job["image"]["key"].rpartition("/")[2]
        assert (tmp_path / "pictures" / name).read_bytes() == house.bytes(job["image"]["key"])


def test_the_guides_rules_are_such_as_s3_takes() -> None:
    notification, lifecycle = map(json.loads, blocks("json"))
    with mock_aws():
        session = Session("moto", "moto", region_name="eu-central-1")
        s3 = session.client("s3")
        s3.create_bucket(Bucket="images", CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})
        s3.put_bucket_notification_configuration(Bucket="images", NotificationConfiguration=notification)
        s3.put_bucket_lifecycle_configuration(Bucket="images", LifecycleConfiguration=lifecycle)
        kept = s3.get_bucket_lifecycle_configuration(Bucket="images")["Rules"]
    days = {rule["Filter"]["Prefix"]: rule["Expiration"]["Days"] for rule in kept if "Expiration" in rule}
    assert days["jobs/"] >= days["images/"], "a sidecar speaks of an image that is there"
    assert notification["QueueConfigurations"][0]["Events"] == ["s3:ObjectCreated:*"]
