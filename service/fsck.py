"""Does what is on record hang together, and does the bucket agree? Nothing is changed, here or there.

    every key of Redis → records, batches, tasks, notifications, entries of sets
    the bucket, from the oldest job on record (or the retention) on → sidecars, images, markers

After kill -9 of anything there is nothing to find. What there may be to find came from outside: a cut append-only file,
a replica that took over without the newest writes, a backup, a flipped byte, somebody's hand. It may run beside a
service that lives: what looks wrong in the bucket is looked at once more before it is told.
"""

import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from service.domain import layout
from service.domain.job import Job, Status
from service.storage.bucket import Bucket
from service.storage.inspection import PIECE, Seen
from service.storage.store import Store

PAGE_KEYS: Final = 1_000
_IMAGE: Final = re.compile(r"images/\d{4}/\d\d/\d\d/(job_[0-9A-Z]{26})\.\w+")
_SIDECAR: Final = re.compile(r"jobs/\d{4}/\d\d/\d\d/(job_[0-9A-Z]{26})\.json")
_MARKER: Final = re.compile(r"batches/\d{4}/\d\d/\d\d/(batch_[0-9A-Z]{26})/_(?:SUCCESS|FAILED)")

# What may be wrong, in plain words behind a count.
FINDINGS: Final = {
    "unreadable": "records cannot be read: each job ends as record_corrupt when it is next looked at",
    "undue": "jobs or batches have work left, but no time at which they are looked at",
    "unforgettable": "jobs, batches or notifications are over, but would never leave Redis",
    "unlisted": "jobs are missing in a list, or stand in one of another status",
    "slotted": "jobs hold a slot with nothing outstanding, or have something outstanding without a slot",
    "waiting": "jobs wait for a slot, but are not queued",
    "untasked": "jobs have a provider task that is on record as nobody's",
    "unbatched": "jobs that have not ended belong to a batch without a record",
    "incomplete": "batches have fewer jobs than lines that became jobs",
    "unended": "batches are over, done or cancelled, but have lines or jobs that are not",
    "untold": "jobs or batches whose caller is to be notified, but nobody will do it",
    "strays": "entries speak of jobs, batches or notifications without a record",
    "unowned": "provider tasks belong to jobs without a record",
    "misfolded": "times the count of lines that are not jobs yet is wrong",
    "rolled_back": "jobs have a sidecar in the bucket, but not ended on record, which is older: `rebuild` ends them",
    "lost": "jobs are in the bucket, and not on record although the retention is not over: `rebuild` makes them again",
    "lost_batches": "batches are in the bucket, and not on record although the retention is not over: `rebuild`, too",
    "orphans": "images belong to jobs that neither Redis nor a sidecar knows",
    "left_over": "images of failed or cancelled jobs: they go within minutes, or a lost Redis knew another end",
    "no_image": "succeeded jobs whose image is not in the bucket",
    "no_sidecar": "ended jobs whose sidecar is not in the bucket",
}


@dataclass
class Report:
    """Counts of what was looked at, and ids of what is wrong, by the names of FINDINGS. `newer`: left alone."""

    jobs: int = 0
    batches: int = 0
    entries: int = 0
    objects: int = 0
    newer: int = 0
    findings: dict[str, list[str]] = field(default_factory=dict)

    def note(self, what: str, id_: str) -> None:
        self.findings.setdefault(what, []).append(id_)


class Fsck:
    """Keeps the ids of all jobs on record in memory: 200 MB for a million. Without `bucket` only Redis is looked at."""

    def __init__(self, store: Store, bucket: Bucket | None, tell: Callable[[str], None] = lambda _: None) -> None:
        self._store = store
        self._there = store.inspection
        self._bucket = bucket
        self._tell = tell
        self._report = Report()
        self._awaited: dict[
            str, bool
        ] = {}  # ended jobs whose sidecar should be there -> whether an image should be, too
        self._marked: set[str] = set()
        self._oldest = "~"

    async def run(self) -> Report:
        """Raises RedisError, BucketError: it cannot be said."""
        looks = {
            "job": self._jobs,
            "batch": self._batches,
            "task": self._tasks,
            "notice": self._notices,
            "set": self._sets,
        }
        async for kind, names in self._there.names():
            await looks[kind](names)
        if off := await self._there.misfolded():
            self._report.note("misfolded", f"{off:+}")
        if self._bucket is not None:
            await self._compare(self._bucket)
        # A scan may tell of a key twice.
        self._report.findings = {what: sorted(set(ids)) for what, ids in self._report.findings.items()}
        return self._report

    # ---- Redis -----------------------------------------------------------------------------------------------------

    async def _jobs(self, ids: list[str]) -> None:
        for seen in await self._there.jobs(ids):
            self._report.jobs += seen.absent == ""
            self._report.newer += seen.absent == "" and seen.job is None and not seen.faults
            for fault in seen.faults:
                self._report.note(fault, seen.id)
            if seen.job is not None and seen.job.sidecar:
                self._awaited[seen.id] = _has_image(seen.job)
                self._oldest = min(self._oldest, seen.id)
        self._tell(f"{self._report.jobs} jobs on record")

    async def _batches(self, ids: list[str]) -> None:
        for seen in await self._there.batches(ids):
            self._report.batches += seen.there
            for fault in seen.faults:
                self._report.note(fault, seen.id)
            if seen.marked:
                self._marked.add(seen.id)

    async def _tasks(self, names: list[str]) -> None:
        self._report.entries += len(names)
        for task in await self._there.unowned(names):
            self._report.note("unowned", task)

    async def _notices(self, ids: list[str]) -> None:
        self._report.entries += len(ids)
        for id_, fault in await self._there.notices(ids):
            self._report.note(fault, id_)

    async def _sets(self, names: list[str]) -> None:
        for name in names:
            async for members in self._there.members(name):
                self._report.entries += len(members)
                for member in await self._there.strays(name, members):
                    self._report.note("strays", f"{name} {member}")

    # ---- the bucket ------------------------------------------------------------------------------------------------

    async def _compare(self, bucket: Bucket) -> None:
        """What is in the bucket against what is on record, and the other way round."""
        retained = await self._store.now_ms() - self._store.limits.retention_s * 1000
        since = min(retained, layout.id_time_ms(self._oldest) or retained)
        sidecars = {id_ async for id_ in self._listed(bucket, "jobs/", since, _SIDECAR)}
        images = {id_ async for id_ in self._listed(bucket, "images/", since, _IMAGE)}
        await self._known(bucket, sidecars - self._awaited.keys(), retained)
        await self._unknown(bucket, images - sidecars - self._awaited.keys())
        await self._unwanted(bucket, {id_ for id_ in images & self._awaited.keys() if not self._awaited[id_]})
        await self._kept(bucket, self._awaited.keys() - sidecars, "no_sidecar")
        await self._kept(bucket, {id_ for id_, image in self._awaited.items() if image} - images, "no_image")
        async for id_ in self._listed(bucket, "batches/", retained, _MARKER):
            if id_ not in self._marked and (layout.id_time_ms(id_) or 0) > retained:
                [seen] = await self._there.batches([id_])
                if not seen.there:
                    self._report.note("lost_batches", id_)

    async def _listed(self, bucket: Bucket, prefix: str, since_ms: int, shape: re.Pattern[str]) -> AsyncIterator[str]:
        """Whose objects there are, of that day and later: a key's day is that of its id."""
        after = _day_folder(prefix, since_ms)
        while keys := await bucket.list_after(prefix, after, PAGE_KEYS):
            self._report.objects += len(keys)
            for key in keys:
                if match := shape.fullmatch(key):
                    yield match[1]
            after = keys[-1]
            self._tell(f"{self._report.objects} objects, up to {after}")

    async def _known(self, bucket: Bucket, ids: set[str], retained: int) -> None:
        """Jobs with a sidecar that were not on record as having one."""
        async for seen in self._again(ids):
            young = (layout.id_time_ms(seen.id) or 0) > retained
            if seen.absent == "gone" and young and await bucket.head(layout.sidecar_key(seen.id)):
                self._report.note("lost", seen.id)
            # A sealed job's sidecar is written a moment before the job succeeds.
            elif seen.job is not None and not seen.job.ended and not seen.job.sealed:
                self._report.note("rolled_back", seen.id)

    async def _unknown(self, bucket: Bucket, ids: set[str]) -> None:
        """Jobs with an image, but without a sidecar: whoever is on record may be at it."""
        async for seen in self._again(ids):
            if seen.absent == "gone" and await bucket.find_image(seen.id):
                self._report.note("orphans", seen.id)

    async def _unwanted(self, bucket: Bucket, ids: set[str]) -> None:
        """Jobs that failed or were cancelled, of which an image is there all the same."""
        async for seen in self._again(ids):
            if seen.job is not None and await bucket.find_image(seen.id):
                self._report.note("left_over", seen.id)

    async def _kept(self, bucket: Bucket, ids: set[str], what: str) -> None:
        """Jobs on record whose object was not in the list. Deleted meanwhile, they are on record no more."""
        async for seen in self._again(ids):
            if seen.job is not None:
                sidecar = what == "no_sidecar"
                there = await (bucket.head(layout.sidecar_key(seen.id)) if sidecar else bucket.find_image(seen.id))
                if there is None and (await self._there.jobs([seen.id]))[0].job is not None:
                    self._report.note(what, seen.id)

    async def _again(self, ids: set[str]) -> AsyncIterator[Seen]:
        rows = sorted(ids)
        for start in range(0, len(rows), PIECE):
            for seen in await self._there.jobs(rows[start : start + PIECE]):
                yield seen


async def unheard_of(store: Store, bucket: Bucket) -> list[str]:
    """Jobs in the bucket that are newer than the newest on record, a thousand at most: Redis has forgotten its latest.

    Two calls in all, for every start of a process. Raises RedisError, BucketError.
    """
    newest = [job.id for job in await store.page(caller=None, limit=1)]
    retained = await store.now_ms() - store.limits.retention_s * 1000
    since = max([retained, *(layout.id_time_ms(id_) or 0 for id_ in newest)])
    after = _day_folder("jobs/", since) + (f"{newest[0]}~" if newest else "")
    found = (_SIDECAR.fullmatch(key) for key in await bucket.list_after("jobs/", after, PAGE_KEYS))
    ids = [match[1] for match in found if match and (layout.id_time_ms(match[1]) or 0) > retained]
    return [seen.id for seen in await store.inspection.jobs(ids) if seen.absent == "gone"]


def _day_folder(prefix: str, at_ms: int) -> str:
    return f"{prefix}{datetime.fromtimestamp(max(0, at_ms) // 1000, UTC):%Y/%m/%d}/"


def _has_image(job: Job) -> bool:
    return job.status is Status.SUCCEEDED
