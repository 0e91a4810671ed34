"""Notify: tell a caller that his job, or batch, is over.

    take → what the bucket says of it → one POST → on record

Killed before the POST: the lease runs out, and another sends it. Killed after it: the same, so that the caller hears
twice, under one `webhook-id`. What is told is read from the sidecar (the marker, of a batch), which is written once:
so each try says the same, and says it after the bucket does.
"""

import json
import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from service import signatures
from service.clock import Clock
from service.domain import batch as batches
from service.domain import flux_view, layout
from service.domain.notice import LASTS_S, Notice, NoticeState, letter, message_id
from service.domain.view import view
from service.seals import Seals
from service.secret import Secret
from service.storage.bucket import Bucket
from service.storage.desk import Desk
from service.storage.objects import BucketError
from workers import retry
from workers.courier import DEADLINE_S, Courier, Reply

LEASE_S: Final = DEADLINE_S + 5
TOLD_BYTES_MAX: Final = 4 * 2**20
LINK_S: Final = 24 * 3600  # life of the link in a notification of the provider's shape, whose own die in ten minutes
GONE: Final = 410
DELETED: Final = "deleted"  # nothing is left to tell

log = logging.getLogger(__name__)

Told = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Parcel:
    url: str
    headers: Mapping[str, str]
    body: bytes


class Notifier:
    """`keys`: callers' signing secrets, the new one first."""

    def __init__(
        self,
        desk: Desk,
        bucket: Bucket,
        courier: Courier,
        keys: Mapping[str, Sequence[Secret]],
        seals: Seals,
        clock: Clock,
        dice: random.Random,
    ) -> None:
        self._store = desk.store
        self._bucket = bucket
        self._courier = courier
        self._keys = keys
        self._seals = seals
        self._clock = clock
        self._dice = dice

    async def run(self, id_: str) -> None:
        """Send the notification, if it is due. A bell that comes too early or twice finds nothing to do."""
        notice = await self._store.notices.take(id_, LEASE_S)
        if notice is None:
            return
        began_s = self._clock.monotonic_s()
        try:
            parcel = await self._parcel(notice)
        except BucketError as error:
            log.warning("a notification waits for the store: %s", error.detail, extra={"job": id_})
            await self._later(id_)
            return
        reply = (
            await self._courier.post(parcel.url, parcel.headers, parcel.body) if isinstance(parcel, Parcel) else parcel
        )
        if reply is None:
            await self._later(id_)
        else:
            await self._tell(notice, reply, round((self._clock.monotonic_s() - began_s) * 1000))

    async def _later(self, id_: str) -> None:
        """No try was made."""
        await self._store.plan("notify", id_, retry.NOTIFY_LATER.wait_s(0, self._dice))

    async def _parcel(self, notice: Notice) -> Parcel | Reply:
        """What to send; or a Reply that nobody gave, where it cannot be sent. Raises BucketError."""
        told = await self._told(notice.id)
        if told is None:
            return Reply(error=DELETED)
        if notice.hook:
            hook = self._seals.open(notice.hook)
            if hook is None:
                return Reply(error="key_removed")
            body = json.dumps(await self._flux_state(told)).encode()
            return Parcel(hook.url, _JSON | signatures.provider(hook.secret, body), body)
        keys = self._keys.get(notice.caller, ())
        if not keys or not notice.url:
            return Reply(error="no_secret")
        body = letter(told)
        signed = signatures.standard(keys, message_id(notice.id), notice.now // 1000, body)
        return Parcel(notice.url, _JSON | signed, body)

    async def _told(self, id_: str) -> Told | None:
        """The job or batch as the bucket tells it; where something else lies there, as its record does."""
        keys = (
            [layout.sidecar_key(id_)]
            if layout.valid_id("job", id_)
            else [layout.marker_key(id_, ok=ok) for ok in (True, False)]
        )
        for key in keys:
            content = await self._bucket.get_bytes(key, TOLD_BYTES_MAX)
            if (told := _object(content)) and told.get("id") == id_:
                return told
        if layout.valid_id("job", id_):
            job = await self._store.get(id_)
            return view(job) if job else None
        batch = await self._store.batches.get(id_)
        return batches.view(batch) if batch else None

    async def _flux_state(self, told: Told) -> dict[str, Any]:
        image = told["image"]
        if image is None:
            return flux_view.state(told, None)
        name = str(image["key"]).rpartition("/")[2]
        key = layout.image_key(told["id"], name.rpartition(".")[2])  # type: ignore[arg-type]  # a wrong one is refused with a ValueError
        return flux_view.state(told, await self._bucket.presign_get(key, name, ttl_s=LINK_S))

    async def _tell(self, notice: Notice, reply: Reply, took_ms: int) -> None:
        to, again_s = self._judged(notice, reply)
        told = {"job": notice.id, "status": reply.status, "error": reply.error, "tries": notice.tries + 1}
        log.log(logging.INFO if to is NoticeState.DELIVERED else logging.WARNING, "notification: %s", to, extra=told)
        await self._store.notices.tell(
            notice.id, to, took_ms=took_ms, status=reply.status, error=reply.error, again_s=again_s
        )

    def _judged(self, notice: Notice, reply: Reply) -> tuple[NoticeState, float]:
        """What the reply means, and after how long the next try comes, if there is one. A redirect is a failure."""
        if reply.status is not None and 200 <= reply.status < 300:
            return NoticeState.DELIVERED, 0.0
        if reply.status == GONE or reply.error == DELETED:
            return NoticeState.OFF, 0.0
        left_s = LASTS_S - (notice.now - notice.since) / 1000
        if left_s <= 0:
            return NoticeState.GIVEN_UP, 0.0
        asked_s = min(reply.asked_s, retry.NOTIFY_ASKED_S_MOST)
        return NoticeState.PENDING, min(left_s, max(asked_s, retry.NOTIFY.wait_s(notice.tries, self._dice)))


_JSON: Final = {"Content-Type": "application/json"}


def _object(content: bytes | None) -> dict[str, Any]:
    try:
        told = json.loads(content or b"{}")
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}
