"""Taking in a batch, and clearing away what was none, where the bucket is slow: in virtual time."""

import asyncio
import base64
import json
import random
from collections.abc import Mapping
from typing import Final, cast

import pytest

from service.domain.batch import BatchStatus
from service.intake import CLEARED_MOST, Intake, Upload, UploadLost
from service.storage.batches import Enrolled
from service.storage.bucket import Bucket
from service.storage.inputs import Inputs
from service.storage.objects import Conflict, Stored
from service.storage.terms import Limits
from tests.sim.bucket import Shelf, SimBucket
from tests.sim.loop import run
from tests.sim.memory import MemoryStore
from tests.sim.staff import MEBIBYTE, RULES
from tests.sim.world import Process, World

IMAGE: Final = base64.b64encode(b"\x89PNG\r\n\x1a\n").decode()
LEASE_S: Final = 12.0
DELETE_S: Final = 20.0
FIELDS: Final = ("input_image", "input_image_2", "input_image_3")


class SlowBucket(SimBucket):
    """Each of its puts takes the next of these times, in seconds."""

    def __init__(self, process: Process, shelf: Shelf, *puts_s: float) -> None:
        super().__init__(process, shelf)
        self._puts_s = iter(puts_s)

    async def put_bytes(
        self,
        key: str,
        data: bytes,
        *,
        content_type: str,
        metadata: Mapping[str, str],
        content_disposition: str | None = None,
    ) -> Stored | Conflict:
        await asyncio.sleep(next(self._puts_s))
        return await super().put_bytes(key, data, content_type=content_type, metadata=metadata)

    async def delete_prefix(self, prefix: str, limit: int) -> int:
        await asyncio.sleep(DELETE_S)
        return await super().delete_prefix(prefix, limit)


class Desk:
    """What an upload is taken in with."""

    def __init__(self, *puts_s: float) -> None:
        self.world = World(random.Random(1))
        process, self.shelf = Process(self.world, "http"), Shelf()
        self.store = MemoryStore(self.world.memory, Limits())
        bucket = cast("Bucket", SlowBucket(process, self.shelf, *puts_s))
        self.intake = Intake(self.store, Inputs(self.store, bucket, MEBIBYTE), RULES, process.clock)

    async def upload(self) -> Upload:
        upload = await self.intake.begin("alice", "key")
        assert isinstance(upload, Upload)
        return upload


def line(*images: str) -> bytes:
    return json.dumps({"model": "flux-2-pro", "prompt": "a fox", **dict.fromkeys(images, IMAGE)}).encode()


@pytest.mark.parametrize("puts_s", [(6.0, 6.0, 6.0), (40.0,)])
def test_a_line_whose_images_take_longer_than_the_lease_is_taken(puts_s: tuple[float, ...]) -> None:
    async def story() -> None:
        desk = Desk(*puts_s)
        upload = await desk.upload()
        await upload.add(line(*FIELDS[: len(puts_s)]))
        assert (await upload.seal({}, None))[0] is Enrolled.ENROLLED
        batch = await desk.store.batches.get(upload.id)
        assert batch is not None
        assert (batch.status, batch.total) == (BatchStatus.RUNNING, 1)
        assert len(desk.shelf.things) == len(puts_s)

    run(story)


def test_an_upload_that_is_lost_while_images_are_put_puts_no_more_of_them() -> None:
    async def story() -> None:
        desk = Desk(6.0, 6.0, 6.0)
        upload = await desk.upload()
        putting = asyncio.create_task(upload.add(line(*FIELDS)))
        await asyncio.sleep(1)
        await desk.store.batches.discard(upload.id)
        with pytest.raises(UploadLost):
            await putting
        await asyncio.sleep(60)
        assert desk.shelf.things == {}

    run(story)


def test_clearing_an_upload_away_comes_to_an_end_and_goes_on_later() -> None:
    async def story() -> None:
        desk = Desk(*[0.0] * (CLEARED_MOST + 1))
        batches, upload = desk.store.batches, await desk.upload()
        for _ in range(CLEARED_MOST + 1):
            await upload.add(line(*FIELDS[:1]))
        await upload.abandon()
        assert await batches.attend(upload.id, LEASE_S)
        clearing = asyncio.create_task(desk.intake.clear(upload.id, LEASE_S))
        while not clearing.done():
            assert not await batches.attend(upload.id, LEASE_S), "another begins with the same"
            await asyncio.sleep(1)
        assert (await clearing, len(desk.shelf.things)) == (False, 1)
        assert await desk.intake.clear(upload.id, LEASE_S)
        assert desk.shelf.things == {}
        assert await batches.get(upload.id) is None

    run(story)
