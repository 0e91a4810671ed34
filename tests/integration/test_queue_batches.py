"""Batches through the queue: the example in deploy/examples, run by a Python that has rq and nothing of ours."""

import json
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest
from rq import Queue
from rq.job import Job

from service.domain import layout
from service.storage.connection import connect_sync
from tests.integration.house import House

pytestmark = pytest.mark.processes

ROOT: Final = Path(__file__).parents[2]
PYTHON: Final = ROOT / ".venv-clients" / "bin" / "python"
EXAMPLE: Final = ROOT / "deploy" / "examples" / "batch_through_the_queue.py"
WITHIN_S: Final = 150.0


def run(house: House, *arguments: str) -> tuple[int, Any]:
    """`-I`: neither the directory nor PYTHONPATH lends it our code."""
    done = subprocess.run(
        [str(PYTHON), "-I", str(EXAMPLE), *arguments],
        env={"REDIS_URL": house.stack.addresses.redis_url},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=WITHIN_S,
        check=False,
    )
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def enqueued(house: House, name: str, told: Any) -> Any:
    """The result of an entry that RQ counts as finished."""
    with connect_sync(house.stack.addresses.redis_url, timeout_s=5) as client:
        queue = Queue("batches", connection=client, serializer="json")
        entry = queue.enqueue("workers.tasks.submit_batch", told, job_id=name)
        house.await_that(lambda: entry.get_status() in {"finished", "failed"}, WITHIN_S)
        assert entry.is_finished
        return entry.return_value(refresh=True)


def test_the_example_makes_one_batch_however_often_it_is_run(house: House) -> None:
    code, told = run(house, "spring-2026", "a lighthouse", "a heron")
    again = run(house, "spring-2026", "a lighthouse", "a heron")
    assert (code, again) == (0, (0, told))
    marker = layout.marker_key(told["batch_id"], ok=True)
    house.await_that(lambda: house.keys(marker) == {marker}, WITHIN_S)
    batch = json.loads(house.bytes(marker))
    assert (batch["caller"], batch["total"], batch["counts"]["succeeded"]) == ("catalogue", 2, 2)
    jobs = [json.loads(row) for row in house.bytes(layout.manifest_key(told["batch_id"])).splitlines()]
    assert [job["custom_id"] for job in jobs] == ["spring-2026-0", "spring-2026-1"]
    house.audit(jobs)
    assert set(house.purchases(jobs).values()) == {1}
    assert run(house, "spring-2026", "another picture")[1][0]["detail"] == (
        "This RQ job id came with another batch before"
    )


def test_what_is_wrong_with_a_batch_is_the_entrys_result(house: House) -> None:
    line = {"model": "flux-pro-1.1", "prompt": "a boat"}
    told = enqueued(house, "bad-line", {"caller": "catalogue", "jobs": [line, line | {"width": 1}]})
    assert [(error["line"], error["pointer"]) for error in told] == [(2, "/width")]
    told = enqueued(house, "bad-batch", {"caller": "Catalogue!", "jobs": [line], "surprise": 1})
    assert [error["pointer"] for error in told] == ["/surprise", "/caller"]
    assert enqueued(house, "no-batch", "nonsense")[0]["detail"] == "Input should be an object"
    assert house.ledger()["submissions"] == [row for row in house.ledger()["submissions"] if row["prompt"] != "a boat"]


def test_another_services_job_may_wait_for_a_handed_over_batch(house: House) -> None:
    line = {"model": "flux-pro-1.1", "prompt": "a ferry", "width": 256, "height": 256}
    with connect_sync(house.stack.addresses.redis_url, timeout_s=5) as client:
        queue = Queue("batches", connection=client, serializer="json")
        entry = queue.create_job("workers.tasks.submit_batch", ({"caller": "catalogue", "jobs": [line]},))
        entry.save()
        theirs = Queue("theirs", connection=client)  # pickles, as RQ does unless told otherwise
        after = theirs.enqueue("theirs.after", {"batch": "ferries"}, depends_on=entry)
        assert after.is_deferred
        queue.enqueue_job(entry)
        house.await_that(lambda: entry.get_status() in {"finished", "failed"}, WITHIN_S)
        assert entry.is_finished
        assert list(entry.return_value(refresh=True) or {}) == ["batch_id"]
        house.await_that(lambda: theirs.job_ids == [after.id], WITHIN_S)
        assert after.is_queued
        assert Job.fetch(after.id, connection=client).args == ({"batch": "ferries"},)


def test_a_batch_in_the_bucket_is_handed_over_by_its_key(house: House) -> None:
    orders = [{"model": "flux-pro-1.1", "prompt": f"a barge, study {n}", "width": 256, "height": 256} for n in range(3)]
    body = b"".join(json.dumps(order).encode() + b"\n" for order in orders)
    house.s3.put_object(Bucket=house.bucket, Key="uploads/barges.ndjson", Body=body)
    told = enqueued(house, "barges", {"caller": "catalogue", "key": "uploads/barges.ndjson"})
    marker = layout.marker_key(told["batch_id"], ok=True)
    house.await_that(lambda: house.keys(marker) == {marker}, WITHIN_S)
    jobs = [json.loads(row) for row in house.bytes(layout.manifest_key(told["batch_id"])).splitlines()]
    house.audit(jobs)
    assert list(house.purchases(jobs).values()) == [1, 1, 1]
    told = enqueued(house, "no-barges", {"caller": "catalogue", "key": "uploads/nothing.ndjson"})
    assert told[0]["pointer"] == "/key"
