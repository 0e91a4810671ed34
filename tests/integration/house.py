"""The running system as a test meets it: over HTTP, through the bucket, and in the provider's ledger."""

import hashlib
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import httpx

from deploy.local.environment import ROOT
from deploy.local.stack import Stack
from deploy.rehearsal.pictures import Picture, draw
from service.domain import layout

ENDED: Final = ("succeeded", "failed", "cancelled")
POSTS_AT_ONCE: Final = 16
WAIT_S: Final = 240.0
LEDGER_S: Final = 120.0  # it may have tens of thousands of rows
PROGRESS_S: Final = 0.25

JobView = dict[str, Any]


class House:
    """Posts jobs and audits what became of them. `ask` retries nothing."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.url = stack.addresses.service_url
        self.auth = {"Authorization": f"Bearer {stack.caller[1]}"}
        self.http = httpx.Client(base_url=self.url, headers=self.auth, timeout=70, trust_env=False)
        self.provider = httpx.Client(base_url=stack.addresses.rehearsal_url, timeout=10, trust_env=False)
        self.s3 = stack.store.client()
        self.bucket = stack.store.bucket

    def close(self) -> None:
        self.http.close()
        self.provider.close()
        self.s3.close()

    def control(self, **knobs: Any) -> None:
        """Begin a scenario: the provider forgets everything, then behaves as told."""
        self.provider.post("/_reset").raise_for_status()
        self.provider.post("/_control", json=knobs).raise_for_status()

    def ledger(self) -> dict[str, Any]:
        told: dict[str, Any] = self.provider.get("/_ledger", timeout=LEDGER_S).raise_for_status().json()
        return told

    def post(self, prompt: str, **more: Any) -> httpx.Response:
        body = {"model": "flux-pro-1.1", "prompt": prompt, "width": 256, "height": 256} | more
        return self.http.post("/v1/jobs", json=body, headers={"Idempotency-Key": prompt})

    def post_many(self, count: int, name: str) -> list[str]:
        """The ids of `count` new jobs; a post that is not answered is sent again with its key."""
        with ThreadPoolExecutor(POSTS_AT_ONCE) as pool:
            return list(pool.map(self.insist, [f"{name} {number}" for number in range(count)]))

    def insist(self, prompt: str) -> str:
        deadline = time.monotonic() + 60
        while True:
            try:
                answer = self.post(prompt)
                if answer.status_code in (200, 202):
                    job_id: str = answer.json()["id"]
                    return job_id
                assert answer.status_code == 503, answer.text
            except httpx.TransportError:
                pass
            assert time.monotonic() < deadline, "the service took no job for a minute"
            pause()

    def job(self, job_id: str) -> JobView:
        answer = self.http.get(f"/v1/jobs/{job_id}")
        assert answer.status_code == 200, answer.text
        view: JobView = answer.json()
        return view

    def statuses(self, ids: Iterable[str]) -> Counter[str]:
        """Counts by status; jobs that cannot be read just now count as unknown."""
        wanted, cursor, found = set(ids), None, Counter[str]()
        while wanted:
            params = {"limit": 200} | ({"cursor": cursor} if cursor else {})
            try:
                page = self.http.get("/v1/jobs", params=params).raise_for_status().json()
            except httpx.HTTPError:
                break
            for job in page["jobs"]:
                if job["id"] in wanted:
                    wanted.discard(job["id"])
                    found[job["status"]] += 1
            cursor = page["next_cursor"]
            if cursor is None:
                break
        found["unknown"] = len(wanted)
        return found

    def await_ended(self, ids: list[str], deadline_s: float = WAIT_S) -> list[JobView]:
        """All of them as they ended, each waited for as a client does."""
        until = time.monotonic() + deadline_s
        with ThreadPoolExecutor(POSTS_AT_ONCE) as pool:
            return list(pool.map(lambda job_id: self.follow(job_id, until), ids))

    def follow(self, job_id: str, until: float) -> JobView:
        while time.monotonic() < until:
            try:
                answer = self.http.get(f"/v1/jobs/{job_id}", headers={"Prefer": "wait=20"})
                if answer.status_code == 200 and answer.json()["status"] in ENDED:
                    view: JobView = answer.json()
                    return view
                assert answer.status_code in (200, 503), answer.text
            except httpx.TransportError:
                pause()
        raise AssertionError(f"{job_id} did not end in time: {self.job(job_id)}")

    def await_that(self, holds: Callable[[], bool], deadline_s: float = WAIT_S) -> float:
        """Seconds until it held. AssertionError after the deadline."""
        began = time.monotonic()
        while not holds():
            assert time.monotonic() - began < deadline_s, "it did not come to hold in time"
            pause()
        return time.monotonic() - began

    def bytes(self, key: str) -> bytes:
        data: bytes = self.s3.get_object(Bucket=self.bucket, Key=key)["Body"].read()
        return data

    def keys(self, prefix: str) -> set[str]:
        pages = self.s3.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
        return {entry["Key"] for page in pages for entry in page.get("Contents", [])}

    def fsck(self) -> dict[str, list[str]]:
        """What `python -m service fsck` finds, by kind: nothing, whatever died."""
        argv = [sys.executable, "-m", "service", "fsck", "--json"]
        told = subprocess.run(argv, env=self.stack.environment, cwd=ROOT, capture_output=True, text=True, check=False)
        assert told.returncode in (0, 1), told.stderr
        findings: dict[str, list[str]] = json.loads(told.stdout)["findings"]
        return findings

    def audit(self, jobs: list[JobView]) -> None:
        """Every job succeeded, with its own picture, stored once, whole, and told alike everywhere."""
        assert {job["status"] for job in jobs} == {"succeeded"}, [job["error"] for job in jobs if job["error"]]
        with ThreadPoolExecutor(POSTS_AT_ONCE) as pool:
            list(pool.map(self.audit_one, jobs))

    def audit_one(self, job: JobView) -> None:
        image = job["image"]
        data = self.bytes(image["key"])
        assert hashlib.sha256(data).hexdigest() == image["sha256"], "the object is what was hashed"
        assert data == draw(Picture(job["request"]["prompt"], image["seed"], 256, 256, "jpeg")), "and its own picture"
        sidecar = json.loads(self.bytes(layout.sidecar_key(job["id"])))
        assert sidecar == job, "the bucket says what the service says"
        assert self.keys(image["key"].rpartition(".")[0]) == {image["key"]}, "stored once"

    def purchases(self, jobs: list[JobView]) -> Counter[str]:
        """How often each job was submitted, by its prompt: every job of a scenario has one of its own."""
        mine = {job["request"]["prompt"] for job in jobs}
        return Counter(each["prompt"] for each in self.ledger()["submissions"] if each["prompt"] in mine)


def opened(folder: Path, workers: int, **overrides: str) -> Iterator[House]:
    rehearsal = ["--latency-s", "2", "--latency-spread-s", "1", "--max-in-flight", "24"]
    with Stack(folder, workers=workers, rehearsal=rehearsal, overrides=overrides) as stack:
        house = House(stack)
        try:
            yield house
        finally:
            house.close()


def pause() -> None:
    """Before asking again what cannot be waited for: a part that is down, or a count. The caller has the deadline."""
    time.sleep(PROGRESS_S)
