"""What the history checker of the simulation says of a real system: its events, the provider's ledger, the bucket."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, cast
from urllib.parse import urlsplit

from service.storage.connection import connect_sync
from service.storage.store import PREFIX
from tests.integration.house import House, JobView
from tests.sim import history

TIMEOUT_S = 10.0
PAGE = 10_000
READS_AT_ONCE = 8


def violations(house: House, jobs: list[JobView], *, unknown_wait_s: float) -> list[str]:
    """Every promise to these jobs that was broken, as a sentence; all of them have ended."""
    ids = {job["id"] for job in jobs}
    return history.violations(
        lines=[line for line in lines(house) if line["id"] in ids],
        jobs=jobs,
        ledger=[row for row in ledger(house) if row["job_id"] in ids],
        objects={key: thing for key, thing in objects(house).items() if thing["job_id"] in ids},
        answers=[{"to": "order", "status": 202, "job_id": job["id"]} for job in jobs],
        unknown_wait_ms=round(unknown_wait_s * 1000),
    )


def bought_once_or_flagged(house: House, jobs: list[JobView]) -> int:
    """How many purchases there were beside one for each job; every one of them is owned up to."""
    purchases = house.purchases(jobs)
    extra = {job["id"]: purchases[job["request"]["prompt"]] - 1 for job in jobs}
    assert set(extra.values()) <= {0, 1}
    assert all(job["possible_duplicate"] or not extra[job["id"]] for job in jobs)
    return sum(extra.values())


def lines(house: House) -> list[dict[str, str]]:
    """The whole events stream, oldest first."""
    redis = connect_sync(house.stack.environment["REDIS_URL"], timeout_s=TIMEOUT_S)
    found: list[dict[str, str]] = []
    since = "-"
    try:
        while entries := cast("Any", redis.xrange(f"{PREFIX}events", min=since, count=PAGE)):
            found += [{name.decode(): value.decode() for name, value in fields.items()} for _, fields in entries]
            since = f"({entries[-1][0].decode()}"
    finally:
        redis.close()
    return found


def ledger(house: House) -> list[dict[str, str]]:
    """A row a purchase; the job is named by the address at which it was to be called back."""
    told = [each for each in house.ledger()["submissions"] if each["webhook_url"]]
    return [{"job_id": urlsplit(each["webhook_url"]).path.split("/")[-2], "provider_id": each["id"]} for each in told]


def objects(house: House) -> dict[str, dict[str, Any]]:
    keys = sorted(house.keys("images/"))
    with ThreadPoolExecutor(READS_AT_ONCE) as pool:
        return dict(zip(keys, pool.map(partial(thing, house), keys), strict=True))


def thing(house: House, key: str) -> dict[str, Any]:
    answer = house.s3.get_object(Bucket=house.bucket, Key=key)
    sha256 = hashlib.sha256(answer["Body"].read()).hexdigest()
    return {"job_id": answer["Metadata"].get("job-id"), "sha256": sha256}
