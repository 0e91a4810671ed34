"""The secrets of a running system, and every text in which somebody might come upon one."""

import base64
import json
import re
from collections.abc import Iterable
from typing import Final
from urllib.parse import unquote

import httpx
import psutil

from service.storage.connection import Redis, connect_sync
from service.tokens import CallbackKeys
from tests.integration.house import House, JobView

PROMPT: Final = "canary-prompt-3f9c"
IMAGE_TEXT: Final = "canary-input-image-7d1e"
IMAGE: Final = base64.b64encode(b"\x89PNG\r\n\x1a\n" + IMAGE_TEXT.encode()).decode()
HOOK_SECRET: Final = "canary-flux-webhook-secret-5b2a"
HOOK_PATH: Final = "canary-flux-webhook-path-91c4"
REDIS_WITHIN_S: Final = 10.0

Heaps = dict[str, str]


class Canaries:
    """`secrets` by name; each may have several spellings or instances."""

    def __init__(self, house: House) -> None:
        stack, settings = house.stack, house.stack.settings
        assert settings.flux_api_key
        [key] = settings.webhook_keys
        self._house = house
        self.secrets: dict[str, set[str]] = {
            "API token of admin": {settings.api_tokens["admin"].reveal()},
            "API token of alice": {settings.api_tokens["alice"].reveal()},
            "FLUX_API_KEY": {settings.flux_api_key.reveal()},
            "WEBHOOK_KEYS": {base64.b64encode(key.key).decode(), key.key.hex()},
            "S3 secret key": {stack.store.secret_key},
            "Redis password": {stack.redis.password},
            "NOTIFY_SECRETS": {each.reveal() for keys in settings.notify_secrets.values() for each in keys},
            "webhook of a Flux client": {HOOK_SECRET, HOOK_PATH},
            "input image": {IMAGE, IMAGE_TEXT},
            "prompt": {PROMPT},
        }

    def learn(self, links: Iterable[str]) -> None:
        """What only the run itself made: callback tokens and secrets, signatures of image URLs and of our links."""
        keys = CallbackKeys(self._house.stack.settings.webhook_keys)
        submissions = self._house.ledger()["submissions"]
        told = [submission["webhook_url"].rsplit("/", 2)[1:] for submission in submissions]
        self.secrets["callback tokens"] = {token.rpartition(".")[2] for _, token in told}
        self.secrets["callback secrets"] = {keys.secret(job_id, int(token.split(".")[1])) for job_id, token in told}
        self.secrets["image URLs' signatures"] = {sig for one in submissions for sig in self._signatures(one["id"])}
        self.secrets["our links' signatures"] = {httpx.URL(link).params["X-Amz-Signature"] for link in links}

    def found_in(self, heaps: Heaps, *allowed: str) -> list[tuple[str, str]]:
        """(secret, heap) of every hit; those `allowed` may be there."""
        wanted = {name: values for name, values in self.secrets.items() if name not in allowed}
        return [
            (name, heap)
            for name, values in wanted.items()
            for heap, text in heaps.items()
            if any(value in text for value in values)
        ]

    def _signatures(self, task: str) -> set[str]:
        answer = self._house.provider.get("/flux/v1/get_result", params={"id": task}, headers={"X-Key": "any"})
        found = re.findall(r"sig=([^&\s\"]{8,})", str((answer.json().get("result") or {}).get("sample")))
        return {*found, *map(unquote, found)}


def callback_tokens(house: House, jobs: Iterable[JobView]) -> list[str]:
    """Of every attempt of every job, as whoever has the key can tell."""
    keys = CallbackKeys(house.stack.settings.webhook_keys)
    return [keys.token(job["id"], attempt) for job in jobs for attempt in range(1, job["attempts"] + 1)]


def logs(house: House) -> Heaps:
    """Of every part, the provider's too: it runs beside ours here."""
    files = [*house.stack.logs.glob("*.log"), house.stack.redis.log, house.stack.store.log]
    return {f"log {file.name}": file.read_text(errors="replace") for file in files}


def command_lines(house: House) -> Heaps:
    """What `ps` shows of every part and its children."""
    parts = [psutil.Process(pid) for pid in house.stack.pids.values()]
    family = [each for part in parts for each in (part, *part.children(recursive=True))]
    return {f"command line of {each.pid}": " ".join(each.cmdline()) for each in family}


def in_redis(house: House, pattern: str) -> Heaps:
    """Every key and value that matches."""
    with connect_sync(house.stack.redis.url, timeout_s=REDIS_WITHIN_S) as client:
        keys = list(client.scan_iter(match=pattern, count=1_000))
        return {f"Redis {key.decode()}": key.decode() + " " + _value(client, key) for key in keys}


def append_only_file(house: House) -> Heaps:
    """All that Redis was ever told."""
    files = [file for file in house.stack.redis.folder.glob("appendonlydir/*") if file.is_file()]
    return {f"AOF {file.name}": file.read_bytes().decode("latin-1") for file in files}


def metadata(house: House) -> Heaps:
    """Headers and metadata of every object, not its content."""
    heads = {key: house.s3.head_object(Bucket=house.bucket, Key=key) for key in house.keys("")}
    return {f"metadata of {key}": json.dumps(head, default=str) for key, head in heads.items()}


def sidecars(house: House) -> Heaps:
    return {key: house.bytes(key).decode() for key in house.keys("jobs/")}


def event_streams(house: House, ids: Iterable[str]) -> Heaps:
    """Of ended jobs, so that each stream ends too."""
    return {f"events of {job_id}": house.http.get(f"/v1/jobs/{job_id}/events").text for job_id in ids}


def _value(client: Redis, key: bytes) -> str:
    kind = client.type(key)
    reads = {
        b"string": lambda: client.get(key),
        b"hash": lambda: client.hgetall(key),
        b"list": lambda: client.lrange(key, 0, -1),
        b"set": lambda: client.smembers(key),
        b"zset": lambda: client.zrange(key, 0, -1),
        b"stream": lambda: client.xrange(key),
    }
    return str(reads[kind]()) if kind in reads else ""  # type: ignore[no-untyped-call]  # as redis-py has it
