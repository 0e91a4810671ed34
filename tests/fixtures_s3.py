"""A real S3 store for tests. A test module asks for it with `pytest_plugins = ["tests.fixtures_s3"]`."""

from collections.abc import Iterator
from uuid import uuid4

import pytest
from boto3.session import Session  # type: ignore[import-untyped]  # boto3 has no py.typed

from deploy.local.seaweed import Seaweed
from service.storage.objects import BucketConfig


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seaweed]:
    """One SeaweedFS for the whole run, for tests that leave it running; the others start their own."""
    server = Seaweed(tmp_path_factory.mktemp("seaweed"))
    server.start()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def bucket_config(seaweed: Seaweed) -> BucketConfig:
    """The session's store, under a prefix that no other test has."""
    return BucketConfig(seaweed.bucket, seaweed.endpoint_url, prefix=f"test-{uuid4()}")


@pytest.fixture
def s3_session(seaweed: Seaweed) -> Session:
    """The store's credentials, as boto3 wants them."""
    return Session(seaweed.access_key, seaweed.secret_key)
