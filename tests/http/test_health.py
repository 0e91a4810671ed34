"""Health, figures, what SERVE leaves out, and the process as its supervisor sees it."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from deploy.local.ports import free_port
from service.storage.connection import connect
from service.storage.store import Store
from service.storage.terms import Limits
from tests.contract.valkey import Valkey
from tests.serving import PEOPLE, Serving, person, serving

pytest_plugins = ["tests.fixtures_web"]
pytestmark = [pytest.mark.anyio, pytest.mark.processes]

ROOT = Path(__file__).parents[2]
WITHIN_S = 20.0
ORDER = {"model": "flux-dev", "prompt": "a fox"}


async def test_readyz_names_each_check(web: Serving) -> None:
    async with httpx.AsyncClient(base_url=web.url, trust_env=False) as probe:
        assert (await probe.get("/healthz")).status_code == 200
        answer = await probe.get("/readyz")
    assert answer.status_code == 503  # the bucket is nowhere
    assert answer.json()["checks"] == {
        "redis": {"ok": True},
        "configuration": {"ok": False, "detail": "BucketUnavailable"},  # not known to keep what is put first
        "storage": {"ok": True},
        "bucket": {"ok": False, "detail": "BucketUnavailable"},
    }


async def test_submissions_that_pause_for_want_of_storage_are_told_and_intake_stays_ready(own_valkey: Valkey) -> None:
    redis = connect(own_valkey.url, timeout_s=5)
    await Store(redis, Limits()).hold("storage", WITHIN_S)
    await redis.aclose()
    with serving(own_valkey.url, SERVE="webhooks,metrics", S3_CONDITIONAL_WRITES="off") as web:
        async with httpx.AsyncClient(base_url=web.url, trust_env=False) as probe:
            ready = await probe.get("/readyz")
            assert (ready.status_code, ready.json()["checks"]["storage"]["ok"]) == (200, True)
            assert ready.json()["checks"]["storage"]["detail"].startswith("submissions pause")
            assert 'darkroom_gate_closed{reason="storage"} 1.0' in (await probe.get("/metrics")).text


async def test_callbacks_that_stop_raise_an_alarm_and_those_that_come_again_end_it(own_valkey: Valkey) -> None:
    """What became of the last callbacks is put down by hand; tests/contract/test_callback_health.py learns it."""
    redis = connect(own_valkey.url, timeout_s=5)
    served = serving(
        own_valkey.url, SERVE="webhooks,metrics", S3_CONDITIONAL_WRITES="off", PUBLIC_BASE_URL="https://us.example"
    )
    with served as web:
        async with httpx.AsyncClient(base_url=web.url, trust_env=False) as probe:

            async def told(share: str, lost: int) -> set[str]:
                """Once it is so in the metrics: what `/readyz` says of callbacks. It is ready all along."""
                lines = {f"darkroom_callbacks_lost_share {share}", f'darkroom_images_told{{by="lost"}} {lost}.0'}
                assert lines <= set((await probe.get("/metrics")).text.splitlines())
                async with asyncio.timeout(WITHIN_S):
                    while True:
                        ready = await probe.get("/readyz")
                        assert ready.status_code == 200
                        said = ready.json()["checks"]["callbacks"].get("detail", "")
                        if bool(said) == (lost > 0 and float(share) > 0.2):
                            return {said}

            assert await told("0.0", 0) == {""}
            await redis.lpush("dr1:found", *["lost"] * 10)
            assert await told("1.0", 10) == {"100% of the last callbacks never came; polling makes up for it"}
            await redis.lpush("dr1:found", *["webhook"] * 70)
            assert await told("0.125", 10) == {""}
    await redis.aclose()


async def test_what_is_due_and_left_undone_shows_by_its_age(own_valkey: Valkey) -> None:
    """F07: no sweep and no worker is there."""
    redis = connect(own_valkey.url, timeout_s=5)
    await redis.zadd("dr1:due", {"job:job_x": await Store(redis, Limits()).now_ms() - 31_000})
    await redis.aclose()
    with serving(own_valkey.url, SERVE="metrics", S3_CONDITIONAL_WRITES="off") as web:
        async with httpx.AsyncClient(base_url=web.url, trust_env=False) as probe:
            lines = (await probe.get("/metrics")).text.splitlines()
    [age] = [line for line in lines if line.startswith("darkroom_oldest_due_age_seconds")]
    assert 31 <= float(age.split()[1]) < 31 + WITHIN_S


async def test_a_process_for_callbacks_alone_serves_nothing_else(own_valkey: Valkey) -> None:
    with serving(own_valkey.url, SERVE="webhooks", S3_CONDITIONAL_WRITES="off") as web:
        async with person("alice", web.url) as alice:
            for path in ("/v1/jobs", "/openapi.json", "/docs", "/metrics", "/"):
                assert (await alice.get(path)).status_code == 404
            ready = await alice.get("/readyz")
            assert (ready.status_code, ready.json()["status"]) == (200, "ready")
            assert ready.json()["checks"]["configuration"]["detail"].startswith("S3_CONDITIONAL_WRITES=off")
            assert (await alice.post("/webhooks/flux/x/y")).status_code == 404
            own_valkey.kill()
            async with asyncio.timeout(WITHIN_S):
                while (await alice.get("/readyz")).status_code == 200:
                    pass
            assert (await alice.get("/healthz")).status_code == 200


async def test_metrics_tell_of_jobs_slots_and_answers_and_name_nobody(web: Serving, alice: httpx.AsyncClient) -> None:
    job_id = (await alice.post("/v1/jobs", json=ORDER)).json()["id"]
    await alice.get(f"/v1/jobs/{job_id}")
    await alice.get("/nowhere")
    await alice.post("/webhooks/flux/x/y", json={})
    text = (await alice.get("/metrics")).text
    for line in (
        'darkroom_jobs{status="queued"} 1.0',
        "darkroom_slots_in_use 1.0",
        "darkroom_slots_cap 24.0",
        'darkroom_gate_closed{reason="held"} 0.0',
        'darkroom_http_requests_total{route="/v1/jobs",status="202"} 1.0',
        'darkroom_http_requests_total{route="/v1/jobs/{job_id}",status="200"} 1.0',
        'darkroom_http_requests_total{route="none",status="404"} 1.0',
        'darkroom_callbacks_total{outcome="wrong_token"} 1.0',
        "darkroom_redis_up 1.0",
    ):
        assert line in text.splitlines()
    assert job_id not in text
    assert "alice" not in text


@contextmanager
def process(**environ: str) -> Iterator["subprocess.Popen[str]"]:
    bare = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"}
    started = subprocess.Popen(
        [sys.executable, "-m", "service"], cwd=ROOT, env=bare | environ, stderr=subprocess.PIPE, text=True
    )
    try:
        yield started
    finally:
        started.kill()
        started.communicate(timeout=WITHIN_S)


def test_bad_settings_are_told_at_once_with_exit_2() -> None:
    with process(API_TOKENS="alice:short", PORT="99999999") as started:
        _, said = started.communicate(timeout=WITHIN_S)
        assert started.returncode == 2
    for name in ("API_TOKENS", "PORT", "S3_BUCKET"):
        assert name in said
    assert "short" not in said.replace("too short", "")


def test_a_redis_that_would_forget_is_refused_with_the_line_to_change_and_exit_2(own_valkey: Valkey) -> None:
    environ = {"REDIS_URL": own_valkey.url, "S3_BUCKET": "nowhere", "SERVE": "metrics"}
    with process(**environ) as started:
        _, said = started.communicate(timeout=WITHIN_S)
        assert started.returncode == 2
    assert "redis.conf: appendonly yes" in said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_stop_answers_waiters_and_ends_with_0(redis_url: str, number: signal.Signals) -> None:
    port = free_port()
    environ = {
        "PORT": str(port), "REDIS_URL": redis_url, "REDIS_CHECKS": "warn", "LOG_LEVEL": "error",
        "S3_BUCKET": "nowhere", "S3_ENDPOINT_URL": "http://127.0.0.1:9",
        "API_TOKENS": f"alice:{PEOPLE['alice']}", "FLUX_API_KEY": "key-of-nobody",
        "WEBHOOK_KEYS": "k1:" + "QUJD" * 10 + "QUI=",
    }  # fmt: skip
    with process(**environ) as started:
        async with person("alice", f"http://127.0.0.1:{port}") as alice:
            await listening(alice)
            waiting = asyncio.create_task(alice.post("/v1/jobs", json=ORDER, headers={"Prefer": "wait=60"}))
            async with asyncio.timeout(WITHIN_S):
                while not (await alice.get("/v1/jobs")).json()["jobs"]:
                    pass
                started.send_signal(number)
                assert (await waiting).status_code == 202
        _, said = await asyncio.to_thread(started.communicate, timeout=WITHIN_S)
    assert (started.returncode, said) == (0, "")


async def listening(client: httpx.AsyncClient) -> None:
    async with asyncio.timeout(WITHIN_S):
        while True:
            try:
                await client.get("/healthz")
            except httpx.ConnectError:
                await asyncio.sleep(0.05)
            else:
                return
