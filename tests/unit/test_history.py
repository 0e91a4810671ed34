"""The history checker believes a good story and names the lie in each bad one."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.sim import history

Story = dict[str, Any]
KEY = "images/2026/11/27/job_1.png"


def line(reason: str, was: str | None, status: str, version: int, at: int = 0) -> dict[str, Any]:
    return {"id": "job_1", "reason": reason, "from": was, "status": status, "version": str(version), "at": str(at)}


def good() -> Story:
    """A job that was bought, called back and stored."""
    image = {"key": KEY, "sha256": "aa"}
    return {
        "lines": [
            line("created", None, "queued", 1),
            line("intended", "queued", "submitting", 2),
            line("accepted", "submitting", "generating", 3),
            line("ready", "generating", "collecting", 4),
            line("sidecar_written", "collecting", "succeeded", 5),
        ],
        "jobs": [
            {"id": "job_1", "status": "succeeded", "image": image, "retry_of": None, "possible_duplicate": False},
        ],
        "ledger": [{"job_id": "job_1", "provider_id": "task-1"}],
        "objects": {KEY: {"job_id": "job_1", "sha256": "aa", "made_for": "task-1"}},
        "answers": [{"to": "order", "status": 202, "job_id": "job_1", "key": "k", "caller": "alice"}],
        "unknown_wait_ms": 1000,
    }


def test_a_good_story_is_believed() -> None:
    assert history.violations(**good()) == []


def posted_again(story: Story) -> None:
    story["lines"][2:2] = [line("intended", "submitting", "submitting", 3, at=999)]
    story["lines"][3:] = []
    story["jobs"] = []


def failed_with_an_image(story: Story) -> None:
    story["jobs"][0] |= {"status": "failed", "image": None}


LIES: dict[str, Callable[[Story], Any]] = {
    "P1 its first event is intended": lambda story: story["lines"].pop(0),
    "P1 accepted, and not on record": lambda story: story["answers"].append(
        {"to": "order", "status": 202, "job_id": "x"}
    ),
    "P2 still collecting": lambda story: story["jobs"][0].update(status="collecting"),
    "P2 ready at version 4 left generating, but the job was submitting": lambda story: story["lines"].pop(2),
    "P2 ready at version 3 follows version 3": lambda story: story["lines"][3].update(version="3"),
    "P2 late at version 6 changed succeeded to failed": lambda story: story["lines"].append(
        line("late", "succeeded", "failed", 6)
    ),
    "P3 succeeded without its object": lambda story: story["objects"].clear(),
    "P3 the object is not what was hashed": lambda story: story["objects"][KEY].update(sha256="bb"),
    "P3 the object belongs to job_2": lambda story: story["objects"][KEY].update(job_id="job_2"),
    "P3 shows the image of set()": lambda story: story["objects"][KEY].update(made_for="task-2"),
    f"P3 failed, and yet ['{KEY}'] is there": failed_with_an_image,
    "P4 bought 2 times, possible_duplicate=False": lambda story: story["ledger"].append(dict(story["ledger"][0])),
    "P4 posted again 999 ms after an attempt whose outcome was not known": posted_again,
    "P5 its key had made job_1": lambda story: (
        story["lines"].append(line("created", None, "queued", 1) | {"id": "job_2"}),
        story["answers"].append(story["answers"][0] | {"job_id": "job_2"}),
    ),
    "P6 a callback was answered 500": lambda story: story["answers"].append({"to": "callback", "status": 500}),
    "P10 cancel was answered 502": lambda story: story["answers"].append({"to": "cancel", "status": 502}),
}


@pytest.mark.parametrize("fault", LIES)
def test_a_lie_is_named(fault: str) -> None:
    story = good()
    LIES[fault](story)
    assert fault in "\n".join(history.violations(**story))


FOLDER = "batches/2026/11/27/batch_1"


def sealed() -> Story:
    """A batch of two, with all that belongs to it in the bucket."""
    jobs = [{"id": "job_1", "status": "succeeded"}, {"id": "job_2", "status": "failed"}]
    sidecars = {f"jobs/2026/11/27/{job['id']}.json": b"{}" for job in jobs}
    manifest = b"\n".join(json.dumps(job).encode() for job in jobs)
    record = {"id": "batch_1", "caller": "alice", "idem": "k", "status": "completed", "lines": ["job_1", "job_2"]}
    return {
        "uploads": [{"key": "k", "id": "batch_1", "prompts": ["a", "b"]}],
        "batches": {"batch_1": record},
        "objects": sidecars | {f"{FOLDER}/manifest.ndjson": manifest, f"{FOLDER}/_SUCCESS": b"{}"},
    }


def test_a_whole_batch_is_believed_also_without_what_was_deleted() -> None:
    assert list(history.batch_faults(**sealed())) == []
    story = sealed()
    story["batches"]["batch_1"]["lines"].insert(1, "job_1b")
    story["uploads"][0]["prompts"].append("c")
    assert list(history.batch_faults(**story, deleted={"job_1b"})) == []


def put_last(story: Story, name: str) -> None:
    key = next(key for key in story["objects"] if key.endswith(name))
    story["objects"][key] = story["objects"].pop(key)


def second_batch(story: Story) -> None:
    story["batches"]["batch_2"] = story["batches"]["batch_1"] | {"id": "batch_2"}


HALVES: dict[str, Callable[[Story], Any]] = {
    "P1 accepted, and not on record": lambda story: story["batches"].clear(),
    "P5 its key had made batch_1": second_batch,
    "2 jobs for 3 lines": lambda story: story["uploads"][0]["prompts"].append("c"),
    "half a batch is left": lambda story: story["batches"]["batch_1"].update(status="staging"),
    "its markers are []": lambda story: story["objects"].pop(f"{FOLDER}/_SUCCESS"),
    "not of its 2 in their order": lambda story: story["batches"]["batch_1"]["lines"].reverse(),
    "the bucket was not filled in its order": lambda story: put_last(story, "job_1.json"),
    "its manifest says otherwise": lambda story: story["objects"].update(
        {f"{FOLDER}/_FAILED": story["objects"].pop(f"{FOLDER}/_SUCCESS")}
    ),
}


@pytest.mark.parametrize("fault", HALVES)
def test_half_a_batch_is_named(fault: str) -> None:
    story = sealed()
    HALVES[fault](story)
    assert fault in "\n".join(history.batch_faults(**story))
