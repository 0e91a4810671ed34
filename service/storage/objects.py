"""What the bucket takes and gives: its configuration, its answers, and the only two ways in which it fails."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlencode

# Metadata that says whose an object is. Two writers of the same thing carry the same value.
OWNERS = ("job-id", "batch-id")


class BucketError(Exception):
    """`detail` names the call, the HTTP status and the store's error code: fit for logs, no URL, no credential."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class BucketUnavailable(BucketError):
    """Away, overloaded, cut off, too slow or in conflict with another writer: the same call may do well later.

    A write may have happened all the same; writing again finds out.
    """


class BucketRefused(BucketError):
    """Credentials, rights, bucket or configuration are wrong: the operator's to mend, never the fault of a job."""


@dataclass(frozen=True, slots=True)
class BucketConfig:
    """Which bucket, and how to speak to it. Credentials are not here: they come from boto3's own session."""

    name: str
    endpoint_url: str | None = None  # None: AWS itself
    region: str = "us-east-1"
    prefix: str = ""  # in front of every key, with one slash in between
    public_endpoint_url: str | None = None  # whom presigned links name; None: endpoint_url
    presign_ttl_s: int = 300
    conditional_writes: bool = True  # False: HEAD before PUT, and two writers at once may overwrite each other
    sse_kms_key_id: str | None = None
    expected_bucket_owner: str | None = None
    storage_class: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    connect_timeout_s: float = 3.0
    read_timeout_s: float = 20.0  # silence on a connection
    deadline_s: float = 60.0  # of a call as a whole, its wait for a connection included
    again_deadline_s: float = 4.0  # of one after a failure; doubled while that is too short
    max_connections: int = 16

    def full_key(self, key: str) -> str:
        """The key as consumers of the bucket know it."""
        prefix = self.prefix.strip("/")
        return f"{prefix}/{key}" if prefix else key

    def where(self, key: str | None = None) -> dict[str, Any]:
        """Which bucket, and which object in it: part of every request."""
        fields = {"Bucket": self.name, "ExpectedBucketOwner": self.expected_bucket_owner}
        return _given(fields | {"Key": None if key is None else self.full_key(key)})

    def keeping(self) -> dict[str, Any]:
        """How the operator wants objects kept: part of every write."""
        encryption = "aws:kms" if self.sse_kms_key_id else None
        return _given(
            {
                "ServerSideEncryption": encryption,
                "SSEKMSKeyId": self.sse_kms_key_id,
                "StorageClass": self.storage_class,
                "Tagging": urlencode(self.tags, quote_via=quote) or None,
            }
        )


def _given(fields: dict[str, str | None]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


@dataclass(frozen=True, slots=True)
class ObjectFacts:
    """What a HEAD says of an object. `key` is without the bucket's prefix; names in `metadata` are lower case."""

    key: str
    etag: str
    size_bytes: int
    content_type: str
    metadata: Mapping[str, str]

    def is_of(self, metadata: Mapping[str, str]) -> bool:
        """Whether the object belongs to the same job or batch as something with that metadata."""
        return any(name in metadata and self.metadata.get(name) == metadata[name] for name in OWNERS)


@dataclass(frozen=True, slots=True)
class Stored:
    """The object is in the bucket and it is ours. `created` is False if an earlier try of ours had put it there:

    its bytes may then differ from those at hand, and `facts` are those of the object that stands.
    """

    facts: ObjectFacts
    created: bool

    @property
    def etag(self) -> str:
        return self.facts.etag


@dataclass(frozen=True, slots=True)
class Conflict:
    """Another's object lies under the key. It was left as it is."""

    facts: ObjectFacts


@dataclass(frozen=True, slots=True)
class ProbeReport:
    """What the store was seen to do with a probe object."""

    conditional_writes: bool
    checksums: bool

    @property
    def missing(self) -> tuple[str, ...]:
        """A sentence for each thing that the store does not do."""
        lacks = []
        if not self.conditional_writes:
            lacks.append("the store overwrites in spite of If-None-Match: set S3_CONDITIONAL_WRITES=off")
        if not self.checksums:
            lacks.append("the store accepts bytes that do not match their SHA-256 checksum")
        return tuple(lacks)
