"""Serves the images: from signed URLs that expire, drawn when first asked for, or spoilt as the task's fate says."""

import asyncio
import hmac
from base64 import b64encode
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from urllib.parse import quote

from starlette.responses import HTMLResponse, RedirectResponse, Response

from deploy.rehearsal.pictures import Picture, draw
from deploy.rehearsal.tasks import Desk, Task
from deploy.rehearsal.wire import Cut, Stream

PRIVATE_URL = "http://10.0.0.1/delivery/sample"
"""RFC 1918: whoever dials it has no guard."""
OVERSIZED_BYTES = 5 * 1024**3
CHUNK_BYTES = 64 * 1024
DRIP_S = 1.0
STALE_S = 3600.0
DRAWING_THREADS = 2
KEPT_PICTURES = 24
FAULTS = ("image_truncated", "image_html", "image_oversized", "image_wrong_size", "image_drip", "image_redirect")
NOT_A_PICTURE = "<!doctype html><title>502 Bad Gateway</title><h1>502 Bad Gateway</h1>"


class Gallery:
    """`base_url` is where the images are reached; another `key` than the last process had ends all its URLs."""

    def __init__(self, desk: Desk, base_url: str, closing: asyncio.Event, key: bytes) -> None:
        self._desk, self._base_url, self._closing, self._key = desk, base_url, closing, key
        self._drawings: OrderedDict[Picture, asyncio.Future[bytes]] = OrderedDict()
        self._hands = ThreadPoolExecutor(DRAWING_THREADS, thread_name_prefix="draw")

    def close(self) -> None:
        self._hands.shutdown(wait=False, cancel_futures=True)

    def sample_url(self, task: Task) -> str:
        if "image_private" in task.fate:
            return PRIVATE_URL
        now = self._desk.now()
        told_at = now if "fresh_url" in task.fate or task.ended_at is None else task.ended_at
        life_s = -STALE_S if "image_expired" in task.fate else self._desk.control.url_life_s
        return self._signed(f"/delivery/{task.id}/sample.{task.asked.format}", told_at + life_s)

    def decoy_url(self, task: Task) -> str:
        """A live URL of an image that is not the task's."""
        return self._signed(f"/delivery/{task.id}/other.{task.asked.format}", self._desk.now() + STALE_S)

    async def serve(self, task_id: str, name: str, query: Mapping[str, str]) -> Response:
        task = self._desk.tasks.get(task_id)
        if task is None or name not in {f"{kind}.{task.asked.format}" for kind in ("sample", "other")}:
            return _refused(404, "BlobNotFound", "The specified blob does not exist.")
        expiry = query.get("se", "")
        if not hmac.compare_digest(
            self._signature(f"/delivery/{task_id}/{name}", expiry), query.get("sig", "").encode()
        ):
            return _refused(403, "AuthenticationFailed", "Signature did not match.")
        if self._desk.now() >= datetime.fromisoformat(expiry).timestamp():
            return _refused(
                403, "AuthenticationFailed", f"Signature not valid in the specified time frame: Expiry [{expiry}]"
            )
        if name.startswith("other"):
            return await self._whole(decoy(task))
        task.pulls += 1
        return await self._sample(task)

    async def _sample(self, task: Task) -> Response:
        times = self._desk.control.image_fault_times
        faults = [fault for fault in FAULTS if fault in task.fate] if not times or task.pulls <= times else []
        if not faults:
            return await self._whole(task.picture)
        return await self._spoilt(task, faults[0])

    async def _whole(self, picture: Picture) -> Response:
        return Response(await self.drawn(picture), media_type=picture.content_type)

    async def _spoilt(self, task: Task, fault: str) -> Response:
        picture = task.picture
        media = {"content-type": picture.content_type}
        if fault == "image_html":
            return HTMLResponse(NOT_A_PICTURE, headers=media)
        if fault == "image_redirect":
            return RedirectResponse(PRIVATE_URL, 302)
        if fault == "image_wrong_size":
            return await self._whole(wrong_size(picture))
        data = await self.drawn(picture)
        if fault == "image_truncated":
            return Cut(data, media_type=picture.content_type)
        if fault == "image_drip":
            return Stream(_drip(data), media | {"content-length": str(len(data))}, self._closing)
        promised = {"content-length": str(OVERSIZED_BYTES)} if task.dice.roll("promise") < 0.5 else {}
        return Stream(_endless(data), media | promised, self._closing)

    async def drawn(self, picture: Picture) -> bytes:
        """Drawn once, in a thread, however many ask at once; the last few are kept."""
        drawing = self._drawings.get(picture)
        if drawing is None or drawing.cancelled():
            drawing = asyncio.ensure_future(asyncio.get_running_loop().run_in_executor(self._hands, draw, picture))
            self._drawings[picture] = drawing
        self._drawings.move_to_end(picture)
        while len(self._drawings) > KEPT_PICTURES:
            self._drawings.popitem(last=False)
        return await asyncio.shield(drawing)

    def _signed(self, path: str, expires_at: float) -> str:
        """As Azure's shared access signatures look; `se` has whole seconds, rounded down."""
        expiry = datetime.fromtimestamp(int(expires_at), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        signature = quote(self._signature(path, expiry), safe="")
        return f"{self._base_url}{path}?se={quote(expiry, safe='')}&sp=r&sv=2024-11-04&sr=b&sig={signature}"

    def _signature(self, path: str, expiry: str) -> bytes:
        return b64encode(hmac.digest(self._key, f"{path}\n{expiry}".encode(), "sha256"))


def decoy(task: Task) -> Picture:
    return Picture("an image that somebody else asked for", task.seed, *task.asked.size, task.asked.format)


def wrong_size(picture: Picture) -> Picture:
    """Half the width, and the height beside it."""
    return Picture(picture.prompt, picture.seed, max(64, picture.width // 2), picture.height + 32, picture.format)


def _refused(status: int, code: str, message: str) -> Response:
    xml = f'<?xml version="1.0" encoding="utf-8"?><Error><Code>{code}</Code><Message>{message}</Message></Error>'
    return Response("\ufeff" + xml, status, media_type="application/xml", headers={"x-ms-error-code": code})


async def _endless(start: bytes) -> AsyncIterator[bytes]:
    """A real image, then zeros, as much as was promised."""
    yield start
    sent = len(start)
    zeros = bytes(CHUNK_BYTES)
    while sent < OVERSIZED_BYTES:
        yield zeros[: OVERSIZED_BYTES - sent]
        sent += CHUNK_BYTES


async def _drip(data: bytes) -> AsyncIterator[bytes]:
    for byte in data:
        yield bytes([byte])
        await asyncio.sleep(DRIP_S)
