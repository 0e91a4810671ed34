"""Keeping: the step that brings a ready image into the bucket before its URL dies, and seals it.

    download → is it one whole image? → put once → sealed on record → sidecar → succeeded
                                             ↘ the store is away: spooled, and put from there later

Killed before the put: nothing is there; the job is rung again and pulls anew.
Killed after it was spooled: the bytes are found there by whoever serves that spool, on record or not.
Killed after the put, before the seal: the next try meets its own object (412, `job-id` ours) and adopts it.
Killed after the seal: only the sidecar and the last write are left, and they are written from the sealed record.
"""

import hashlib
import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from service.domain import events, layout
from service.domain.answers import Answer, Failed, Moderated, NotFound, Pending, Ready
from service.domain.errors import ErrorCode
from service.domain.job import Image, Job
from service.storage.bucket import Bucket
from service.storage.desk import Desk
from service.storage.objects import BucketRefused, BucketUnavailable, Conflict
from workers import images, retry
from workers.close import LATE_PUT_S, Closer
from workers.download import DownloadFailure, FailureKind
from workers.fetch import Fetched, Fetcher
from workers.flux import Flux
from workers.images import NotAnImage
from workers.lease import Lease
from workers.outage import Outage
from workers.results import RESULT_LIFE_MS
from workers.spool import Kept, NoSpool

log = logging.getLogger(__name__)

SILENCE_TIMES: Final = 4  # so much longer is asked a provider who cannot be reached, or says nothing of the task
_SAYS: Final = Ready | NotFound | Moderated | Failed | Pending
GRACE_MS: Final = 60_000  # a URL that should be dead is tried for so long before the provider is asked again


class Puller:
    """`generation_timeout_s` also bounds how long a URL that gives the image is asked for in vain.

    That time begins when the provider is first asked, however long the store had been away, and ends with a whole pull.
    """

    def __init__(
        self,
        desk: Desk,
        flux: Flux,
        bucket: Bucket,
        closer: Closer,
        fetcher: Fetcher,
        dice: random.Random,
        *,
        spool: Kept | None = None,
        generation_timeout_s: float,
    ) -> None:
        self._desk = desk
        self._flux = flux
        self._bucket = bucket
        self._closer = closer
        self._fetcher = fetcher
        self._dice = dice
        self._spool: Kept = spool or NoSpool()
        self._outage = Outage()
        self._patience_ms = round(generation_timeout_s * 1000)

    async def pull(self, job: Job, lease: Lease) -> None:
        """From wherever the job stands to `succeeded`, or to what can be done next and when."""
        if job.sealed:
            await self._closer.close(job, lease)
            return
        if job.spool is not None and job.spool == self._spool.id and not self._outage.may_try(lease.now()):
            await self._wait_there(job, "the store is away")
            return
        if (kept := await self._spool.find(job.id)) is not None:
            await self._keep(job, lease, kept, spooled=True)
            return
        await self._fetch(job, lease)

    async def _fetch(self, job: Job, lease: Lease) -> None:
        if job.result_url is None or lease.now() > (job.result_expires_at or 0) + GRACE_MS:
            await self._ask_again(job, lease, tried=None)
            return
        await self._take(job, lease, await self._fetcher.fetch(job.result_url))

    async def _take(self, job: Job, lease: Lease, got: Fetched | DownloadFailure | NotAnImage) -> None:
        """What a URL gave."""
        match got:
            case DownloadFailure():
                await self._not_pulled(job, lease, got)
            case NotAnImage(reason):
                await self._broken(job, lease, f"not one whole image: {reason}")
            case Fetched():
                with _deleted_at_end(got.path):
                    if self._outage.may_try(lease.now()) or not await self._set_aside(job, got, "the store is away"):
                        await self._keep(job, lease, got)

    async def _set_aside(self, job: Job, got: Fetched, detail: str) -> bool:
        """What is paid for, and dies with its URL, waits in the spool. False: there is no room."""
        safe = await self._spool.keep(job.id, got)
        if safe:
            await self._wait_there(job, detail)
        return safe

    async def _wait_there(self, job: Job, detail: str) -> None:
        delay_s = retry.SPOOLED.wait_s(0, self._dice)
        await self._desk.decide(job, events.Spooled(spool=self._spool.id or "", detail=detail, delay_s=delay_s))

    async def _keep(self, job: Job, lease: Lease, got: Fetched, *, spooled: bool = False) -> None:
        key = layout.image_key(job.id, got.seen.extension)
        image = self._image(job, key, got.sha256, got.bytes, got.seen)
        began = lease.now()
        try:
            stored = await self._bucket.put_file(
                key,
                got.path,
                content_type=got.seen.content_type,
                sha256=got.sha256,
                metadata=_metadata(job, got.sha256),
                content_disposition="attachment",
            )
            if isinstance(stored, Conflict):
                detail = "an object that is not this job's lies under its key"
                await self._lost(job, lease, ErrorCode.STORAGE_CONFLICT, detail)
                return
            # An earlier step of ours put it, perhaps other bytes: what lies there is what is true.
            kept = image if stored.created else await self._adopted(job, key)
        except (BucketUnavailable, BucketRefused) as error:
            self._outage.failed(lease.now(), began, str(error))
            if not lease.holds() and await self._unwanted(job.id):
                await self._desk.store.plan("scrub", job.id, LATE_PUT_S)  # what was put, and perhaps is there
            elif spooled:
                await self._wait_there(job, str(error))
            elif not await self._set_aside(job, got, str(error)):
                await self._later(job, str(error), serves=True)
            return
        self._outage.worked(lease.now())
        if kept is None:
            await self._broken(job, lease, "the object that was put earlier is not one whole image")
            return
        await self._seal(job, lease, kept)

    async def _seal(self, job: Job, lease: Lease, image: Image) -> None:
        sealed = await self._desk.decide(job, events.Sealed(image=image), patience_s=retry.REDIS_PATIENCE_S)
        if sealed is not None:
            await self._closer.close(sealed, lease)
            return
        if await self._unwanted(job.id):
            log.info("ended while its image was stored: the object goes", extra={"job": job.id})
            try:
                await self._closer.scrub(job.id)
            except (BucketUnavailable, BucketRefused):
                await self._desk.store.plan("scrub", job.id, 0)  # nothing else would look at this job any more

    async def _unwanted(self, job_id: str) -> bool:
        """The job has ended without an image, or is there no more, while a step of it was at work."""
        now = await self._desk.store.get(job_id)
        return now is None or (now.ended and now.image is None)

    async def _adopted(self, job: Job, key: str) -> Image | None:
        """The facts of the job's own object, read back; None if it is no whole image."""
        data = await self._bucket.get_bytes(key, self._fetcher.max_bytes)
        if data is None:
            raise BucketUnavailable("an object that was there is gone")
        seen = await self._fetcher.examine(data)
        if isinstance(seen, NotAnImage):
            return None
        return self._image(job, key, hashlib.sha256(data).hexdigest(), len(data), seen)

    def _image(self, job: Job, key: str, sha256: str, size: int, seen: images.Image) -> Image:
        return Image(
            bucket=self._bucket.name,
            key=self._bucket.full_key(key),
            sha256=sha256,
            bytes=size,
            width=seen.width,
            height=seen.height,
            content_type=seen.content_type,
            seed=job.result_seed,
        )

    async def _not_pulled(self, job: Job, lease: Lease, failure: DownloadFailure) -> None:
        match failure.kind:
            case FailureKind.EXPIRED:
                await self._ask_again(job, lease, tried=job.result_url)
            case FailureKind.REFUSED | FailureKind.TOO_LARGE:
                await self._lost(job, lease, ErrorCode.RESULT_INVALID, f"the image was not pulled: {failure.detail}")
            case FailureKind.TRUNCATED:
                await self._broken(job, lease, f"cut short: {failure.detail}")
            case FailureKind.UNAVAILABLE:
                await self._later(job, failure.detail)
            case FailureKind.LOCAL:
                await self._later(job, failure.detail, serves=True)

    async def _ask_again(self, job: Job, lease: Lease, tried: str | None) -> None:
        """The URL is dead, or should be. The provider may give a fresh one; an earlier step may have put the image.

        `tried`: what this step has pulled from in vain.
        """
        try:
            own = await self._bucket.find_image(job.id)
            image = await self._adopted(job, own.key) if own else None
        except (BucketUnavailable, BucketRefused) as error:
            await self._later(job, str(error))
            return
        if image is not None:
            await self._seal(job, lease, image)
            return
        await self._heed(job, lease, await self._flux.result(job.provider_id or ""), tried)

    async def _heed(self, job: Job, lease: Lease, answer: Answer, tried: str | None) -> None:
        """What the provider says of an image whose URL gave nothing. One 403 or 404 before its time is no death."""
        alive = job.result_url is not None and lease.now() < (job.result_expires_at or 0)
        gave_up = given_up(job, answer, lease.now(), self._patience_ms)
        match answer:
            case Ready(url=url) if url != tried and (gave_up or url == job.result_url):
                await self._try_once(job, lease, answer, last=gave_up)
            case _ if gave_up:
                detail = "the image could not be had from any URL in time"
                await self._lost(job, lease, ErrorCode.RESULT_EXPIRED, detail)
            case Ready(url=url) if url != job.result_url:
                delay_s = retry.STORE.wait_s(2, self._dice) if alive else 0.0
                expires_at = answer.expires_at or lease.now() + RESULT_LIFE_MS
                await self._desk.decide(job, events.Refreshed(url=url, expires_at=expires_at, delay_s=delay_s))
            case Ready() | NotFound() | Moderated() | Failed() if not alive:
                detail = "the image's URL died and the provider gives no other"
                await self._lost(job, lease, ErrorCode.RESULT_EXPIRED, detail)
            case _:
                await self._later(job, "the URL gave nothing, and the provider no other", serves=False)

    async def _try_once(self, job: Job, lease: Lease, ready: Ready, *, last: bool) -> None:
        """The image is not given up while the provider gives a URL for it that nobody has tried: when it dies may be a
        guess of ours. `last`: nor is it waited for any longer.
        """
        got = await self._fetcher.fetch(ready.url)
        kind = got.kind if isinstance(got, DownloadFailure) else None
        if kind is FailureKind.UNAVAILABLE and not last:
            await self._later(job, "the image cannot be reached where the provider says it is", serves=False)
        elif kind in (FailureKind.UNAVAILABLE, FailureKind.EXPIRED):
            await self._heed(job, lease, ready, tried=ready.url)
        else:
            await self._take(job, lease, got)

    async def _broken(self, job: Job, lease: Lease, detail: str) -> None:
        """The bytes are no image: pulled again a few times, since a cut transfer looks the same."""
        if job.pulls + 1 >= retry.PULLS_MOST:
            await self._lost(job, lease, ErrorCode.RESULT_INVALID, detail)
            return
        delay_s = retry.PULL.wait_s(job.pulls, self._dice)
        await self._desk.decide(job, events.PullFailed(detail=detail, delay_s=delay_s))

    async def _later(self, job: Job, detail: str, *, serves: bool | None = None) -> None:
        """Not the job's fault: nothing is burnt."""
        delay_s = retry.STORE.wait_s(2, self._dice)
        failed = events.PullFailed(detail=detail, delay_s=delay_s, counts=False, serves=serves)
        await self._desk.decide(job, failed)

    async def _lost(self, job: Job, lease: Lease, code: ErrorCode, detail: str) -> None:
        """Nothing can be kept. The lease is ours, so nobody else may still put: it is closed at once."""
        if code is not ErrorCode.STORAGE_CONFLICT and await self._may_come_back(job):
            await self._later(job, f"its bytes lie in a spool that may come back; {detail}")
            return
        lost = await self._desk.decide(job, events.Lost(code=code, detail=detail))
        if lost is not None:
            await self._closer.close(lost, lease)

    async def _may_come_back(self, job: Job) -> bool:
        """The bytes lie in another machine's spool, which is silent, but not for so long that it counts as lost."""
        if job.spool is None or job.spool == self._spool.id:
            return False
        store = self._desk.store
        return await store.silence_s(job.spool) < store.limits.spool_lost_s


def _metadata(job: Job, sha256: str) -> dict[str, str]:
    """Of the object, for consumers; `job-id` says whose it is."""
    seed = {} if job.result_seed is None else {"seed": str(job.result_seed)}
    return {"job-id": job.id, "sha256": sha256, "model": job.model, "caller": job.caller} | seed


@contextmanager
def _deleted_at_end(path: Path) -> Iterator[None]:
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def given_up(job: Job, answer: Answer, now_ms: int, patience_ms: int) -> bool:
    """Whether the image has been asked for in vain for so long; longer, where the answer says nothing of its task."""
    times = 1 if isinstance(answer, _SAYS) else SILENCE_TIMES
    return job.asked_at is not None and now_ms - job.asked_at > times * patience_ms
