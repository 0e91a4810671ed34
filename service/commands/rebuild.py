"""`python -m service rebuild`: make records of ended jobs and batches again, from the bucket alone.

For a Redis that was lost. Nothing that is on record is touched; it may be run twice, and while the service runs.
Exit code 0: done; 1: done, and the bucket holds what nobody could make sense of; 2: Redis or the bucket cannot be used.
"""

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Final

from service.commands.place import settled
from service.rebuild import Rebuild, Report
from service.settings import BadSettings, Settings
from service.storage.bucket import Bucket
from service.storage.connection import RedisError, connect
from service.storage.objects import BucketError
from service.storage.store import Store
from service.wiring import bucket_config, limits

ABOUT: Final = "make records of ended jobs and batches again, from the bucket alone"
REDIS_TIMEOUT_S: Final = 5.0
SHOWN: Final = 20


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m service rebuild", description=ABOUT)
    parser.add_argument("--json", action="store_true", help="print the whole report as one JSON object")
    asked = parser.parse_args(argv)
    try:
        report = asyncio.run(_rebuilt(settled(os.environ), quiet=asked.json))
    except (BadSettings, RedisError, BucketError) as error:
        print(error, file=sys.stderr)
        return 2
    print(json.dumps(asdict(report)) if asked.json else "\n".join(lines(report)))
    return 1 if report.unreadable else 0


async def _rebuilt(settings: Settings, *, quiet: bool) -> Report:
    redis = connect(settings.redis_url.reveal(), timeout_s=REDIS_TIMEOUT_S, max_connections=16)
    bucket = Bucket(bucket_config(settings))
    try:
        return await Rebuild(Store(redis, limits(settings), actor="rebuild"), bucket, _quiet if quiet else _tell).run()
    finally:
        await redis.aclose()
        await bucket.close()


def lines(report: Report) -> list[str]:
    """The report in plain words."""
    told = [f"{report.jobs} jobs and {report.batches} batches made again; {report.known} were on record"]
    if report.overruled:
        told.append(f"{report.overruled} of these had not ended on record: Redis was older than the bucket")
    if report.aged:
        told.append(f"{report.aged} ended longer than JOB_RETENTION_DAYS ago: the bucket alone tells of them")
    traces = [
        *_named(report.unreadable, "objects are no sidecar or marker of ours"),
        *_named(report.images, "jobs have an image but no sidecar: they had not ended, or were deleted half-way"),
        *_named(report.inputs, "jobs have inputs but no sidecar: they had not ended"),
        *_named(report.unmarked, "batches have no marker: they were not over"),
    ]
    return told + (traces or ["the bucket shows no trace of a job that had not ended (one without images shows none)"])


def _named(found: list[str], what: str) -> list[str]:
    if not found:
        return []
    more = [f"    and {len(found) - SHOWN} more (--json names all)"] if len(found) > SHOWN else []
    return [f"{len(found)} {what}:", *(f"    {each}" for each in found[:SHOWN]), *more]


def _tell(progress: str) -> None:
    print(progress, file=sys.stderr)


def _quiet(_: str) -> None:
    """The report is for a program."""
