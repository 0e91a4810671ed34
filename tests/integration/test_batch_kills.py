"""kill -9 of the HTTP process at many places of an upload, and the same file with the same key after each."""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

import httpx
import pytest

from service.domain import layout
from service.storage.connection import connect_sync
from service.storage.store import PREFIX
from tests.integration.house import House

pytestmark = pytest.mark.processes

LINES: Final = 120
NOTE: Final = "x" * 14_000  # so that lines are staged long before the last has come
PIECE_BYTES: Final = 2**15
HEADERS: Final = {"Content-Type": "application/x-ndjson", "Idempotency-Key": "killed-in-between"}
WITHIN_S: Final = 120.0


def file_of(count: int) -> bytes:
    order = {"model": "flux-pro-1.1", "width": 256, "height": 256, "metadata": {"note": NOTE}}
    return b"".join(json.dumps(order | {"prompt": f"upload {n}"}).encode() + b"\n" for n in range(count))


def cut_at(house: House, body: bytes, place_bytes: int) -> Iterator[bytes]:
    """The body up to a place, where the HTTP process is killed; then the rest, which nobody takes.

    Before the end of the body the process has surely begun to stage when it is killed, however slow it is.
    """
    for start in range(0, place_bytes, PIECE_BYTES):
        yield body[start : min(start + PIECE_BYTES, place_bytes)]
    if place_bytes < len(body):
        house.await_that(lambda: staged(house) != [], WITHIN_S)
    house.stack.kill("http")
    yield body[place_bytes:]


def staged(house: House) -> list[str]:
    """What Redis holds of uploads that are not whole."""
    with connect_sync(house.stack.addresses.redis_url, timeout_s=5) as client:
        names = [key.decode().removeprefix(PREFIX) for key in client.scan_iter(match=f"{PREFIX}*", count=1_000)]
        batches = [name for name in names if name.startswith("batch:")]
        known = [name for name in batches if client.hget(PREFIX + name, "status") == b"staging"]
    return known + [name for name in names if name.startswith(("upload:", "lines:", "inputs:"))]


def hasten(house: House) -> None:
    """The leases of uploads are over now; what is due for them is done as ever."""
    with connect_sync(house.stack.addresses.redis_url, timeout_s=5) as client:
        for name in staged(house):
            if name.startswith("batch:"):
                client.zadd(f"{PREFIX}due", {name: 0}, xx=True)


def killed(house: House, body: bytes, place_bytes: int) -> int:
    """How much was staged of the file when the HTTP process died, before all of that was cleared away."""
    before = house.stack.pids["http"]
    with suppress(httpx.TransportError):
        house.http.post("/v1/batches", content=cut_at(house, body, place_bytes), headers=HEADERS)
    left = len(staged(house))
    hasten(house)
    house.stack.await_next("http", before)
    house.await_that(lambda: staged(house) == [], WITHIN_S)
    return left


@pytest.mark.parametrize("kills", [3, pytest.param(10, marks=[pytest.mark.soak, pytest.mark.timeout(600)])])
def test_a_file_whose_upload_is_killed_again_and_again_is_bought_once(fragile_house: House, kills: int) -> None:
    house, body = fragile_house, file_of(LINES)
    house.control(latency_s=0.2, latency_spread_s=0.1)
    places = [len(body) * number // kills for number in range(1, kills)] + [len(body)]
    found = [killed(house, body, place) for place in places]
    assert all(found[:-1]), "each kill but the last, at the end of the body, finds something staged"
    first, again = (house.http.post("/v1/batches", content=body, headers=HEADERS) for _ in range(2))
    batch_id = first.json()["id"]
    assert (first.status_code in (200, 202), again.status_code, again.json()["id"]) == (True, 200, batch_id)
    path = f"/v1/batches/{batch_id}"
    house.await_that(lambda: house.http.get(path).json()["status"] == "completed")
    batch = house.http.get(path).json()
    assert (batch["counts"]["succeeded"], batch["total"]) == (LINES, LINES)
    assert [each["id"] for each in house.http.get("/v1/batches").json()["batches"]] == [batch_id]
    assert house.http.post("/v1/batches", content=body, headers=HEADERS).json()["id"] == batch_id
    purchases = Counter(each["prompt"] for each in house.ledger()["submissions"])
    mid_way = sum(map(bool, found))
    print(f"{kills} kills, {mid_way} with lines staged; {LINES} lines, {purchases.total()} purchases, 1 batch")
    assert purchases == dict.fromkeys((f"upload {number}" for number in range(LINES)), 1)
    assert staged(house) == []
    house.audit([json.loads(row) for row in house.bytes(layout.manifest_key(batch_id)).splitlines()])
    marker = json.loads(house.bytes(layout.marker_key(batch_id, ok=True)))
    assert {name: value for name, value in marker.items() if name != "idempotency"} == batch
