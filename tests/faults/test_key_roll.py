"""The callback keys are rolled while callbacks come in, old and new processes side by side (F46)."""

import secrets
from base64 import b64encode
from collections import Counter
from contextlib import AbstractContextManager
from itertools import pairwise
from pathlib import Path
from typing import Final

import pytest

from deploy.local.valkey import Valkey
from service.clock import SystemClock
from service.domain import events, layout
from service.domain.job import Job
from service.parsers import WebhookKey
from service.storage.desk import Desk
from service.tokens import CallbackKeys
from tests.faults.http_process import HttpProcess, desk_at, serving_process
from tests.faults.wire import Wire, request
from tests.serving import move

pytestmark = [pytest.mark.anyio, pytest.mark.processes, pytest.mark.soak, pytest.mark.timeout(600)]

JOBS: Final = 40  # in each step of the roll
# The new key is known everywhere before it signs anywhere, and the old one until nothing signed by it is on its way.
ROLL: Final = ("k1", "k1,k2", "k2,k1", "k2")
SECRETS: Final = {name: secrets.token_bytes(32) for name in ("k1", "k2")}
HINT: Final = b'{"status": "Processing"}'


def setting(kids: str) -> str:
    return ",".join(f"{kid}:{b64encode(SECRETS[kid]).decode()}" for kid in kids.split(","))


def token(kids: str, job_id: str) -> str:
    """As a process with these keys makes it."""
    keys = CallbackKeys(tuple(WebhookKey(kid, SECRETS[kid]) for kid in kids.split(",")))
    return keys.token(job_id, 1)


async def test_no_callback_is_refused_during_the_roll_and_every_old_one_after_it(
    valkey: Valkey, tmp_path: Path
) -> None:
    told: Counter[int] = Counter()
    ids: list[str] = []
    async with desk_at(valkey.url) as desk:
        for old, new in pairwise(ROLL):
            with process(tmp_path, valkey, old) as before, process(tmp_path, valkey, new) as after:
                for number in range(JOBS):
                    ids.append(await bought(desk, f"{old} {number}"))
                    signed = token((old, new)[number % 2], ids[-1])
                    told.update([await called(http, ids[-1], signed) for http in (before, after)])
    with process(tmp_path, valkey, ROLL[-1]) as last:
        late = Counter([await called(last, job_id, token("k1", job_id)) for job_id in ids])
        right = Counter([await called(last, job_id, token("k2", job_id)) for job_id in ids])
    print(f"{len(ids)} jobs: during the roll {dict(told)}, after it the old key's {dict(late)}, the new {dict(right)}")
    assert told == {204: 2 * len(ids)}
    assert late == {404: len(ids)}
    assert right == {204: len(ids)}


def process(folder: Path, valkey: Valkey, kids: str) -> AbstractContextManager[HttpProcess]:
    return serving_process(folder, valkey.url, WEBHOOK_KEYS=setting(kids))


async def bought(desk: Desk, name: str) -> str:
    """A job that the provider has."""
    job_id = layout.new_id("job", SystemClock().now_ms(), secrets.token_bytes(10))
    await desk.store.create(Job(id=job_id, caller="alice", model="flux-dev", request={"prompt": name}))
    accepted = events.TaskAccepted(attempt=1, provider_id=f"task of {job_id}", delay_s=600)
    await move(desk, job_id, events.Intended(attempt=1, delay_s=600), accepted)
    return job_id


async def called(http: HttpProcess, job_id: str, signed: str) -> int:
    async with Wire(http.port) as wire:
        answer = await wire.ask(request("POST", f"/webhooks/flux/{job_id}/{signed}", HINT))
    return answer.status
