"""`python -m service fsck`: does what is on record hang together, and does the bucket agree? Changes nothing.

For a Redis that came back from a cut file, an old replica or a backup, or that somebody doubts. It may run beside the
service. Exit code 0: nothing found; 1: something is wrong; 2: Redis or the bucket cannot be asked.
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
from service.fsck import FINDINGS, Fsck, Report
from service.settings import BadSettings, Settings
from service.storage.bucket import Bucket
from service.storage.connection import RedisError, connect
from service.storage.objects import BucketError
from service.storage.store import Store
from service.wiring import bucket_config, limits

ABOUT: Final = "say what is inconsistent in Redis, and between Redis and the bucket; change nothing"
REDIS_TIMEOUT_S: Final = 5.0
SHOWN: Final = 20


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m service fsck", description=ABOUT)
    parser.add_argument("--json", action="store_true", help="print the whole report as one JSON object")
    parser.add_argument("--redis-only", action="store_true", help="do not ask the bucket")
    asked = parser.parse_args(argv)
    try:
        settings = settled(os.environ)
        report = asyncio.run(_checked(settings, redis_only=asked.redis_only, quiet=asked.json))
    except (BadSettings, RedisError, BucketError) as error:
        print(error, file=sys.stderr)
        return 2
    print(json.dumps(asdict(report)) if asked.json else "\n".join(lines(report)))
    return 1 if report.findings else 0


async def _checked(settings: Settings, *, redis_only: bool, quiet: bool) -> Report:
    redis = connect(settings.redis_url.reveal(), timeout_s=REDIS_TIMEOUT_S, max_connections=4)
    bucket = None if redis_only else Bucket(bucket_config(settings))
    try:
        return await Fsck(Store(redis, limits(settings), actor="fsck"), bucket, _quiet if quiet else _tell).run()
    finally:
        await redis.aclose()
        if bucket:
            await bucket.close()


def lines(report: Report) -> list[str]:
    """The report in plain words."""
    seen = f"{report.jobs} jobs, {report.batches} batches, {report.entries} entries, {report.objects} objects looked at"
    told = [seen]
    if report.newer:
        told.append(f"{report.newer} records are of a newer release: left alone")
    for what, ids in report.findings.items():
        told += [f"{len(ids)} {FINDINGS[what]}:", *(f"    {each}" for each in ids[:SHOWN])]
        if len(ids) > SHOWN:
            told.append(f"    and {len(ids) - SHOWN} more (--json names all)")
    return told if report.findings else [*told, "nothing is wrong"]


def _tell(progress: str) -> None:
    print(progress, file=sys.stderr)


def _quiet(_: str) -> None:
    """The report is for a program."""
