"""The events for those who read Redis itself: the guide's example and its ACL line, on a real Valkey."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from redis.exceptions import NoPermissionError

from service.domain import events
from service.storage.connection import Redis, connect_sync
from service.storage.desk import Desk
from service.storage.store import PREFIX
from tests.contract.conftest import sync
from tests.serving import move

__all__ = ["sync"]

pytest_plugins = ["tests.fixtures_web"]
pytestmark = [pytest.mark.anyio, pytest.mark.processes]

ROOT: Final = Path(__file__).parents[2]
EXAMPLE: Final = ROOT / "deploy" / "examples" / "follow_the_stream.py"
GUIDE: Final = (ROOT / "deploy" / "EVENTS.md").read_text("utf-8")
STREAM: Final = PREFIX + "events"
WITHIN_S: Final = 60.0

Ended = Callable[[str], Any]


def followed(url: str, most: int, *, orphaned_s: float = 60, me: str = "mailer-1") -> list[dict[str, Any]]:
    """The lines of the example, which ends after so many. `-I`: nothing lends it our code."""
    run = subprocess.run(
        [sys.executable, "-I", str(EXAMPLE), "mailer", me, str(most)],
        env={"REDIS_URL": url, "ORPHANED_S": str(orphaned_s)},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=WITHIN_S,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return [json.loads(line) for line in run.stdout.splitlines()]


async def cancelled(client: httpx.AsyncClient) -> str:
    job_id = str((await client.post("/v1/jobs", json={"model": "flux-dev", "prompt": "a fox"})).json()["id"])
    (await client.post(f"/v1/jobs/{job_id}/cancel")).raise_for_status()
    return job_id


async def test_a_group_is_told_of_every_end_also_of_those_while_nobody_followed(
    redis_url: str, alice: httpx.AsyncClient
) -> None:
    first = [await cancelled(alice) for _ in range(3)]
    told = followed(redis_url, 3)
    assert [line["id"] for line in told] == first
    assert [(line["status"], line["from"], line["caller"]) for line in told] == [("cancelled", "queued", "alice")] * 3
    later = await cancelled(alice)
    assert [line["id"] for line in followed(redis_url, 2)] == [first[-1], later], "the last one was not acknowledged"


async def test_what_a_dead_consumer_had_taken_is_taken_over(
    redis_url: str, sync: Redis, alice: httpx.AsyncClient
) -> None:
    job_id = await cancelled(alice)
    sync.xgroup_create(STREAM, "mailer", id="0")
    sync.xreadgroup("mailer", "dead", {STREAM: ">"})
    assert [line["id"] for line in followed(redis_url, 1, orphaned_s=0, me="mailer-2")] == [job_id]


async def test_a_group_that_fell_behind_is_told_so_and_goes_on(
    redis_url: str, sync: Redis, alice: httpx.AsyncClient
) -> None:
    await cancelled(alice)
    followed(redis_url, 1)
    await cancelled(alice)
    sync.xtrim(STREAM, maxlen=0, approximate=False)
    job_id = await cancelled(alice)
    reset, told = followed(redis_url, 2, me="mailer-2")
    assert list(reset) == ["reset"]
    assert told["id"] == job_id


async def test_the_guides_user_can_follow_and_nothing_else(
    redis_url: str, sync: Redis, alice: httpx.AsyncClient
) -> None:
    (line,) = re.findall(r"^```redis\n(ACL SETUSER mailer .+)\n```$", GUIDE, re.MULTILINE)
    sync.execute_command(*line.split(" "))  # type: ignore[no-untyped-call]  # redis-py has no type for it
    try:
        job_id = await cancelled(alice)
        url = redis_url.replace("redis://", "redis://mailer:a-long-password@")
        assert [told["id"] for told in followed(url, 1)] == [job_id]
        with connect_sync(url, timeout_s=5) as mailer:
            for command in (("HGETALL", f"{PREFIX}job:{job_id}"), ("XADD", STREAM, "*", "id", "x"), ("KEYS", "*")):
                with pytest.raises(NoPermissionError):
                    mailer.execute_command(*command)
    finally:
        sync.acl_deluser("mailer")


async def test_the_guide_names_every_field_and_the_key(sync: Redis, alice: httpx.AsyncClient, desk: Desk) -> None:
    named = set(re.findall(r"^\| `(\w+)` \|", GUIDE, re.MULTILINE))
    job_id = str((await alice.post("/v1/jobs", json={"model": "flux-dev", "prompt": "a fox"})).json()["id"])
    polled = events.Polled(delay_s=30, detail="not found")
    accepted = events.TaskAccepted(attempt=1, provider_id="task-1", delay_s=60)
    await move(desk, job_id, events.Intended(attempt=1, delay_s=60), accepted, polled, events.CancelAsked())
    rows: Any = sync.xrange(STREAM)
    seen = {name.decode() for _, told in rows for name in told}
    assert seen == named - {"batch_id"}
    assert [int(told[b"version"]) for _, told in rows] == [1, 2, 3, 4, 5]
    assert f"Its key is `{STREAM}`" in GUIDE
    assert f'STREAM = "{STREAM}"' in EXAMPLE.read_text("utf-8")
