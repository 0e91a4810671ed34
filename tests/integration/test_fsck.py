"""fsck against the bucket: what a lost or an old Redis has forgotten, and what somebody took away (F17)."""

import json
from typing import Any

import pytest

from service.commands.fsck import main
from service.domain import events as e
from service.domain import layout
from service.fsck import Fsck, Report
from service.rebuild import Rebuild
from service.storage.connection import connect_sync
from service.storage.store import PREFIX
from tests.integration.test_batch_steps import jobs_of, lines, looked_at, sealed, through
from tests.integration.test_rebuild import closed, emptied, posted
from tests.steps import Bench, Steps
from workers.fit import Fit

pytest_plugins = ["tests.fixtures_steps"]
pytestmark = [pytest.mark.anyio, pytest.mark.processes]

Copy = dict[bytes, bytes]


async def checked(at: Steps) -> Report:
    return await Fsck(at.house.desk.store, at.house.bucket).run()


async def copied(at: Steps) -> Copy:
    """All of Redis at this moment, as a replica that is cut off keeps it."""
    keys: Any = [key async for key in at.house.redis.scan_iter(f"{PREFIX}*")]
    values: Any = [await at.house.redis.dump(key) for key in keys]
    return dict(zip(keys, values, strict=True))


async def taken_back(at: Steps, copy: Copy) -> None:
    """That replica takes over."""
    await at.house.redis.flushdb()
    for key, value in copy.items():
        await at.house.redis.restore(key, 0, value)


async def lived(bench: Bench, at: Steps) -> tuple[list[str], str]:
    """Jobs that ended in each way, and a batch."""
    good, bad, gone = (posted(bench, prompt)["id"] for prompt in ("good", "bad", "gone"))
    await through(bench, at, await at.job(good))
    await closed(at, await at.tell(bad, e.DeadlinePassed()))
    await closed(at, await at.tell(gone, e.CancelAsked()))
    bench.http.delete(f"/v1/jobs/{gone}").raise_for_status()
    await at.house.sweep.round()
    batch_id = await sealed(at, lines("one", "two"))
    await looked_at(at, batch_id)
    jobs = await jobs_of(at, batch_id)
    for job in jobs:
        await through(bench, at, job)
    await looked_at(at, batch_id)
    return [good, bad, *(job.id for job in jobs)], batch_id


async def test_what_a_lost_redis_knew_is_told_and_after_a_rebuild_nothing_is_wrong(bench: Bench) -> None:
    emptied(bench)
    async with bench.steps() as at:
        ids, batch_id = await lived(bench, at)
        running = await at.bought("still at the provider")
        report = await checked(at)
        assert (report.findings, report.jobs, report.batches) == ({}, 5, 1)
        await at.house.redis.flushdb()
        assert (await checked(at)).findings == {"lost": sorted(ids), "lost_batches": [batch_id]}
        await Rebuild(at.house.desk.store, at.house.bucket).run()
        report = await checked(at)
        assert (report.findings, report.jobs) == ({}, 4)
        assert await at.house.desk.store.get(running) is None, "what had not ended leaves no trace"


async def test_a_replica_that_is_behind_takes_over_and_no_end_is_changed(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """The new primary never heard of some jobs, and knows others as they were before they ended."""
    emptied(bench)
    async with bench.steps() as at:
        job_id = await at.bought("before the split")
        ended_id = (await closed_by_deadline(at)).id
        behind = await copied(at)
        await through(bench, at, await at.job(job_id))
        before = bench.job(job_id)
        new_id = posted(bench, "after the split")["id"]
        await through(bench, at, await at.job(new_id))
        bought = len(bench.submissions())
        await started(at)
        assert "forgotten" not in caplog.text
        await taken_back(at, behind)
        await started(at)
        assert "Redis has forgotten its newest: 1 ended jobs are in the bucket alone" in caplog.text
        assert (await checked(at)).findings == {"rolled_back": [job_id], "lost": [new_id]}
        await at.hasten(job_id)
        while not (await at.job(job_id)).ended:
            await at.hasten(job_id)
            await at.collect(job_id)
        await Rebuild(at.house.desk.store, at.house.bucket).run()
        assert (await checked(at)).findings == {}
        assert (bench.job(job_id)["status"], bench.job(job_id)["image"]) == ("succeeded", before["image"])
        assert bench.job(ended_id)["status"] == "failed"
        assert len(bench.submissions()) == bought, "nothing is bought again"


async def test_an_end_that_the_new_primary_changes_is_said_and_the_bucket_stays_as_it_was(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """It knows a job as one that was collecting, whose deadline has passed meanwhile: in the bucket it succeeded."""
    emptied(bench)
    async with bench.steps() as at:
        job_id = await at.bought("in time")
        bench.finish()
        assert (await at.collect(job_id)).status == "collecting"
        behind = await copied(at)
        await through(bench, at, await at.job(job_id))
        told = bench.job(job_id)
        await taken_back(at, behind)
        await closed(at, await at.tell(job_id, e.DeadlinePassed()))
        assert (await at.job(job_id)).status == "failed"
        assert json.loads(bench.bytes(layout.sidecar_key(job_id))) == told
        bench.audit_one(told)
        assert "Redis had forgotten how this job ended; the bucket tells another end: succeeded" in caplog.text
        last = (await at.house.desk.store.log(job_id))[-1].data
        assert (await checked(at)).findings == {"left_over": [job_id]}
        assert (last["reason"], last["detail"]) == ("sidecar_written", "the bucket tells another end: succeeded")


async def started(at: Steps) -> None:
    """What a worker process says of Redis and the bucket when it starts."""
    fit = Fit(at.house.settings, at.house.bucket, at.house.desk.store)
    await fit.begin()
    await fit.run()


async def closed_by_deadline(at: Steps) -> Any:
    job = await at.tell(await at.new("in time"), e.DeadlinePassed())
    await closed(at, job)
    return job


async def test_images_of_nobody_and_objects_that_somebody_took_away_are_named(bench: Bench) -> None:
    emptied(bench)
    async with bench.steps() as at:
        job_id = posted(bench, "taken away")["id"]
        await through(bench, at, await at.job(job_id))
        stray = layout.new_id("job", await at.house.desk.store.now_ms(), bytes(10))
        image = bench.job(job_id)["image"]["key"]
        bench.put(layout.image_key(stray, "png"), b"bought, and forgotten", **{"job-id": stray})
        bench.s3.delete_object(Bucket=bench.bucket, Key=image)
        bench.s3.delete_object(Bucket=bench.bucket, Key=layout.sidecar_key(job_id))
        assert (await checked(at)).findings == {"orphans": [stray], "no_sidecar": [job_id], "no_image": [job_id]}


def test_the_command_says_it_in_plain_words_and_by_its_exit_code(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    emptied(bench)
    for name, value in bench.stack.environment.items():
        monkeypatch.setenv(name, value)
    job_id = posted(bench, "on record")["id"]
    assert main([]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "nothing is wrong"
    redis = connect_sync(bench.stack.redis.url, timeout_s=5)
    redis.zrem(f"{PREFIX}due", f"job:{job_id}")
    redis.close()
    assert main(["--redis-only"]) == 1
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "1 jobs or batches have work left, but no time at which they are looked at:",
        f"    {job_id}",
    ]
    assert main(["--json"]) == 1
    assert json.loads(capsys.readouterr().out)["findings"] == {"undue": [job_id]}
    monkeypatch.setenv("S3_ENDPOINT_URL", "http://127.0.0.1:9")
    assert main([]) == 2
    assert capsys.readouterr().err
