"""A batch handed over through the queue, step by step: at hand or in the bucket, with the limits of each."""

import json
from typing import Any

import pytest

from service.storage.bucket import PART_BYTES
from service.storage.objects import BucketUnavailable
from tests.batches import NDJSON, keys, named
from tests.steps import Bench, Steps
from workers.handover import INLINE_BYTES_MOST

pytest_plugins = ["tests.fixtures_steps"]
pytestmark = [pytest.mark.anyio, pytest.mark.processes]

KEY = "uploads/spring.ndjson"
CALLER = "catalogue"
ORDER = {"model": "flux-dev", "prompt": "a fox"}


async def put(at: Steps, body: bytes) -> None:
    await at.house.bucket.delete(KEY)
    await at.house.bucket.put_bytes(KEY, body, content_type=NDJSON["Content-Type"], metadata={})


async def handed(at: Steps, entry: str | None = None, **told: Any) -> Any:
    return await at.house.handover.submit({"caller": CALLER} | told, entry)


async def test_a_batch_in_the_bucket_is_taken_line_by_line_and_once(bench: Bench) -> None:
    async with bench.steps() as at:
        wide = "x" * 8_000
        lines = [json.dumps(ORDER | {"prompt": wide, "custom_id": str(number)}) for number in range(600)]
        body = "\n".join(lines).encode()
        assert len(body) > PART_BYTES
        await put(at, body)
        told = await handed(at, "spring", key=KEY, metadata={"season": "spring"})
        batch = await at.house.desk.store.batches.get(told["batch_id"])
        assert batch
        assert (batch.total, batch.caller, batch.metadata) == (600, CALLER, {"season": "spring"})
        assert await handed(at, "spring", key=KEY, metadata={"season": "spring"}) == told
        assert (
            await handed(at, "spring", jobs=[json.loads(line) for line in lines], metadata={"season": "spring"}) == told
        )
        other = await handed(at, "spring", key=KEY)
        assert other[0]["detail"] == "This RQ job id came with another batch before"
        await at.house.desk.store.batches.unfold(batch.id, 1_000)
        ids = await at.house.desk.store.members(batch.id, None, 1_000)
        jobs = await at.house.desk.store.several(ids)
        assert [job.custom_id for job in jobs] == [str(number) for number in range(600)]


async def test_what_is_wrong_with_an_object_is_told_and_leaves_nothing(bench: Bench) -> None:
    async with bench.steps() as at:
        before = await keys(at.house.desk)
        assert (await handed(at, key="no/such"))[0]["pointer"] == "/key"
        for key in ("", "../../x", "a/./b"):
            assert (await handed(at, key=key))[0]["pointer"] == "/key"
        assert (await handed(at, key=KEY, jobs=[ORDER]))[0]["pointer"] == "/jobs"
        await put(at, b"\n")
        assert (await handed(at, key=KEY))[0]["detail"] == "A batch has at least one line"
        await put(at, named(2) + b"{\n")
        assert [error["line"] for error in (await handed(at, "e", key=KEY))] == [3]
        assert await keys(at.house.desk) == before


async def test_what_is_too_large_to_be_at_hand_belongs_into_the_bucket(bench: Bench) -> None:
    async with bench.steps() as at:
        for jobs in ([ORDER] * 5_001, [ORDER | {"x": "y" * (INLINE_BYTES_MOST // 2)}] * 2, []):
            (error,) = await handed(at, jobs=jobs)
            assert (error["pointer"], "`key`" in error["detail"]) == ("/jobs", True)


async def test_an_object_that_changes_while_it_is_read_is_not_taken(bench: Bench) -> None:
    async with bench.steps() as at:
        await put(at, named(2))
        facts = await at.house.bucket.head(KEY)
        assert facts
        await put(at, named(3))
        with pytest.raises(BucketUnavailable):
            [part async for part in at.house.bucket.parts(facts)]
