"""Redis is lost with all that was in it: what had ended is known again from the bucket alone."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest

from deploy.local import banner
from service.commands.facts import RUN_ENV
from service.domain import events as e
from service.domain import layout
from service.domain.batch import Batch
from service.domain.batch import view as batch_view
from service.domain.job import Job
from service.rebuild import Rebuild, Report
from service.storage.store import PREFIX
from tests.integration.test_batch_steps import jobs_of, lines, looked_at, sealed, through
from tests.steps import Bench, Steps

pytest_plugins = ["tests.fixtures_steps"]
pytestmark = [pytest.mark.anyio, pytest.mark.processes]

ROOT: Final = Path(__file__).parents[2]


async def lost(bench: Bench, at: Steps) -> Report:
    """Redis comes back empty, and the records are made again. The bucket is this test's alone."""
    await at.house.redis.flushdb()
    return await Rebuild(at.house.desk.store, at.house.bucket).run()


def emptied(bench: Bench) -> None:
    for key in bench.keys(""):
        bench.s3.delete_object(Bucket=bench.bucket, Key=key)


def told(bench: Bench, ids: list[str]) -> list[dict[str, Any]]:
    return [bench.job(job_id) for job_id in ids]


def posted(bench: Bench, prompt: str) -> dict[str, Any]:
    answer: dict[str, Any] = bench.post(prompt).raise_for_status().json()
    return answer


async def closed(at: Steps, job: Job) -> None:
    """Its sidecar is written."""
    await at.hasten(job.id)
    await at.collect(job.id)


async def test_ended_jobs_batches_and_keys_are_known_again_as_they_were(bench: Bench) -> None:
    emptied(bench)
    async with bench.steps() as at:
        good, bad, dropped = (posted(bench, prompt)["id"] for prompt in ("good", "bad", "dropped"))
        await through(bench, at, await at.job(good))
        await closed(at, await at.tell(bad, e.DeadlinePassed()))
        await closed(at, await at.tell(dropped, e.CancelAsked()))
        again = bench.http.post(f"/v1/jobs/{bad}/retry").raise_for_status().json()["id"]
        await through(bench, at, await at.job(again))
        batch_id = await sealed(at, lines("one", "two"))
        await looked_at(at, batch_id)
        for job in await jobs_of(at, batch_id):
            await through(bench, at, job)
        batch = await looked_at(at, batch_id)
        ids = [good, bad, dropped, again, *(job.id for job in await jobs_of(at, batch_id))]
        before = told(bench, ids)
        report = await lost(bench, at)
        assert (report.jobs, report.batches, report.known, report.unreadable) == (6, 1, 0, [])
        assert (report.images, report.inputs, report.unmarked) == ([], [], [])
        assert told(bench, ids) == before
        known = await at.house.desk.store.batches.get(batch_id)
        assert known is not None
        assert batch_view(known) == batch_view(batch)
        assert [job.id for job in await jobs_of(at, batch_id)] == ids[4:]
        assert posted(bench, "good")["id"] == good
        assert bench.http.post("/v1/jobs", json={}, headers={"Idempotency-Key": "good"}).status_code in {409, 422}
        assert bench.http.post(f"/v1/jobs/{bad}/retry").json()["id"] == again
        assert (await at.house.desk.store.figures()).due == 0
        assert (await Rebuild(at.house.desk.store, at.house.bucket).run()).known == 7


async def test_a_batchs_key_is_known_again(bench: Bench) -> None:
    emptied(bench)
    async with bench.steps() as at:
        upload = await at.house.intake.begin("admin", "a digest")
        assert not isinstance(upload, Batch)
        for row in lines("one"):
            await upload.add(row)  # type: ignore[union-attr]  # nobody else has the key
        _, batch_id = await upload.seal({}, None)  # type: ignore[union-attr]
        await looked_at(at, batch_id)
        for job in await jobs_of(at, batch_id):
            await closed(at, await at.tell(job.id, e.CancelAsked()))
        await looked_at(at, batch_id)
        await lost(bench, at)
        known = await at.house.desk.store.batches.open("batch_x", "admin", "a digest")
        assert known.known_id == batch_id


async def test_what_had_not_ended_is_told_as_traces_and_what_is_no_sidecar_as_unreadable(bench: Bench) -> None:
    emptied(bench)
    async with bench.steps() as at:
        [job_id, other] = [layout.new_id("job", 1_790_000_000_000, bytes([n] * 10)) for n in (1, 2)]
        batch_id = layout.new_id("batch", 1_790_000_000_000, bytes(10))
        bench.put(layout.image_key(job_id, "png"), b"image")
        bench.put(layout.input_key(other, "input_image.png"), b"input")
        bench.put(layout.manifest_key(batch_id), b"{}")
        bench.put(layout.sidecar_key(other), json.dumps({"id": other, "status": "queued"}).encode())
        report = await lost(bench, at)
        assert (report.images, report.inputs, report.unmarked) == ([job_id], [other], [batch_id])
        assert (report.jobs, report.unreadable) == (0, [layout.sidecar_key(other)])


async def test_an_old_job_is_answered_from_the_bucket_and_leaves_redis_again(bench: Bench) -> None:
    emptied(bench)
    async with bench.steps() as at:
        job_id = posted(bench, "old")["id"]
        await closed(at, await at.tell(job_id, e.CancelAsked()))
        before = bench.job(job_id)
        await lost(bench, at)
        await at.house.redis.zadd(f"{PREFIX}ended", {job_id: 0})
        await at.house.desk.store.expire()
        assert await at.house.desk.store.get(job_id) is None
        assert bench.job(job_id) == before


def command(bench: Bench, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """As an operator runs it, who has at hand what it needs: Redis, the bucket, and its credentials."""
    names = ("REDIS_URL", "S3_BUCKET", "S3_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    return ran({name: bench.stack.environment[name] for name in names}, folder, *arguments)


def ran(environ: dict[str, str], folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    argv, given = [sys.executable, "-m", "service", *arguments], environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(argv, env=given, cwd=folder, capture_output=True, text=True, timeout=60, check=False)


async def test_the_commands_find_a_run_beside_them(bench: Bench, tmp_path: Path) -> None:
    """With no setting at all, and a shell that knows another store."""
    (tmp_path / ".local").mkdir()
    (tmp_path / RUN_ENV).write_text(banner.facts(bench.stack))
    emptied(bench)
    async with bench.steps() as at:
        await at.house.redis.flushdb()
    posted(bench, "of the run")
    for name, said in (("fsck", "1 jobs, 0 batches"), ("rebuild", "0 jobs and 0 batches made again")):
        done = ran({"AWS_PROFILE": "nobody"}, tmp_path, name)
        assert (done.returncode, done.stdout.startswith(said)) == (0, True), done.stdout + done.stderr
        assert done.stderr.startswith("`make run` of .local/run.env: Redis 127.0.0.1:")
        assert bench.stack.addresses.s3_endpoint_url in done.stderr


async def test_the_commands_need_redis_and_the_bucket_alone(bench: Bench, tmp_path: Path) -> None:
    emptied(bench)
    async with bench.steps() as at:
        job_id = posted(bench, "old")["id"]
        await closed(at, await at.tell(job_id, e.CancelAsked()))
        await at.house.redis.flushdb()
        rebuilt = command(bench, tmp_path, "rebuild", "--json")
        assert (rebuilt.returncode, json.loads(rebuilt.stdout)["jobs"]) == (0, 1), rebuilt.stderr
        assert await at.house.desk.store.get(job_id)
        checked = command(bench, tmp_path, "fsck", "--json")
        assert (checked.returncode, json.loads(checked.stdout)["jobs"]) == (0, 1), checked.stderr
        unknown = command(bench, tmp_path, "rebuilt")
        assert (unknown.returncode, unknown.stdout) == (2, "")
        assert "python -m service rebuild " in unknown.stderr
