"""A large batch on its way in: the HTTP process's memory stays flat.

Printed: lines, megabytes, seconds, and the most memory that the HTTP process had (VmHWM).
"""

import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import httpx
import pytest

from tests.batches import NDJSON
from tests.contract.valkey import Valkey
from tests.faults.http_process import HttpProcess, bearer, serving_process

pytest_plugins = ["tests.fixtures_web"]
pytestmark = [pytest.mark.anyio, pytest.mark.processes]

PEAK_BYTES: Final = 300 * 2**20
LINE_BYTES: Final = 3_900  # 50,000 of them are just under 200 MB
PIECE_BYTES: Final = 2**16
KEY: Final = {"Idempotency-Key": "spring-2026"}


def written(folder: Path, count: int, line_bytes: int = 0) -> Path:
    """A file of so many orders, each with a prompt of its own."""
    file = folder / "orders.ndjson"
    with file.open("wb") as rows:
        for number in range(count):
            order = {"model": "flux-dev", "prompt": f"{number} foxes", "metadata": {"note": ""}}
            room = line_bytes - len(json.dumps(order)) - 1
            rows.write(json.dumps(order | {"metadata": {"note": "x" * max(room, 0)}}).encode() + b"\n")
    return file


async def pieces(file: Path, upto_bytes: int) -> AsyncIterator[bytes]:
    with file.open("rb") as rows:
        while upto_bytes > 0 and (piece := rows.read(min(PIECE_BYTES, upto_bytes))):
            yield piece
            upto_bytes -= len(piece)


def peak_bytes(service: HttpProcess) -> int:
    status = Path(f"/proc/{service.process.pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024


@pytest.mark.parametrize("count", [5_000, pytest.param(50_000, marks=[pytest.mark.soak, pytest.mark.timeout(900)])])
async def test_a_large_batch_is_taken_whole_in_flat_memory(tmp_path: Path, own_valkey: Valkey, count: int) -> None:
    file = written(tmp_path, count, LINE_BYTES)
    size_bytes = file.stat().st_size
    with serving_process(tmp_path, own_valkey.url) as service:
        before_bytes, start_s = peak_bytes(service), time.monotonic()
        async with httpx.AsyncClient(
            base_url=service.url, headers=bearer("alice"), timeout=600, trust_env=False
        ) as alice:
            answer = await alice.post("/v1/batches", content=pieces(file, size_bytes), headers=NDJSON | KEY)
            took_s = time.monotonic() - start_s
            peak = peak_bytes(service)
            assert (answer.status_code, answer.json()["total"]) == (202, count), answer.text
            again = await alice.post("/v1/batches", content=pieces(file, size_bytes), headers=NDJSON | KEY)
            assert (again.status_code, again.json()["id"]) == (200, answer.json()["id"])
        print(
            f"{count} lines, {size_bytes / 1e6:.0f} MB: taken in {took_s:.1f} s; "
            f"peak {peak / 2**20:.0f} MiB, {before_bytes / 2**20:.0f} MiB before; sent again: the same batch"
        )
        assert peak < PEAK_BYTES
        assert service.lines() == []
