"""A server with a real bucket, and a worker for its batches.

A test module asks for it with `pytest_plugins = ["tests.fixtures_web", "tests.fixtures_s3", "tests.fixtures_batches"]`.
"""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Final

import httpx
import pytest
from boto3.session import Session  # type: ignore[import-untyped]  # boto3 has no py.typed

from service.clock import SystemClock
from service.intake import Intake
from service.storage.bucket import Bucket
from service.storage.desk import Desk
from service.storage.inputs import Inputs
from service.storage.objects import BucketConfig
from service.wiring import rules
from tests.batches import Worker
from tests.serving import Serving, person, serving, settings_of
from workers.batches import Binder, Terms

INPUT_BYTES_MAX: Final = 2**20


@pytest.fixture
async def bucket(bucket_config: BucketConfig, s3_session: Session) -> AsyncIterator[Bucket]:
    made = Bucket(bucket_config, s3_session)
    yield made
    await made.close()


@pytest.fixture
def shop(redis_url: str, bucket_config: BucketConfig, s3_session: Session) -> Iterator[Serving]:
    with serving(redis_url, Bucket(bucket_config, s3_session), S3_BUCKET=bucket_config.name) as running:
        yield running


@pytest.fixture
async def buyer(shop: Serving) -> AsyncIterator[httpx.AsyncClient]:
    """Alice, where there is a bucket."""
    async with person("alice", shop.url) as client:
        yield client


@pytest.fixture
def worker(redis_url: str, desk: Desk, bucket: Bucket, tmp_path: Path) -> Worker:
    inputs, clock = Inputs(desk.store, bucket, INPUT_BYTES_MAX), SystemClock()
    intake = Intake(desk.store, inputs, rules(settings_of(redis_url)), clock)
    return Worker(desk, bucket, Binder(desk, bucket, inputs, intake, clock, Terms(5.0, tmp_path)))
