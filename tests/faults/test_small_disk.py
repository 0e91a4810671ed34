"""Disks that are really full, read-only or out of inodes: small file systems in memory, where this user may mount one.

Elsewhere a limit on the size of files stands for a full disk: test_spool.py, test_download.py.
"""

import asyncio
import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import psutil
import pytest

from deploy.local.valkey import Valkey
from tests.faults.http_process import serving_process
from tests.faults.test_redis_outages import job_in, on_record, order, taken_again
from tests.faults.wire import Answer, Wire
from tests.http.test_download import IMAGE, answer, failure
from workers.download import FailureKind

pytestmark = [pytest.mark.anyio, pytest.mark.processes, pytest.mark.timeout(120)]

MIB: Final = 2**20
MOUNT_S: Final = 10
ORDERS_MOST: Final = 20_000
Mount = Callable[[str], Path]


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """An empty file system with these options. Skips the test where that is not allowed."""
    places: list[Path] = []

    def mounted(options: str) -> Path:
        place = tmp_path / f"disk-{len(places)}"
        place.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)],
            capture_output=True,
            timeout=MOUNT_S,
            check=False,
        )
        if done.returncode != 0:
            pytest.skip("this user may not mount a file system")
        places.append(place)
        return place

    yield mounted
    for place in places:
        subprocess.run(["umount", "--lazy", str(place)], check=True, timeout=MOUNT_S)


def read_only(place: Path) -> str:
    subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True, timeout=MOUNT_S)
    return os.strerror(errno.EROFS)


def too_small(_: Path) -> str:
    return os.strerror(errno.ENOSPC)


@pytest.mark.parametrize(
    ("options", "spoil"),
    [("size=64k", too_small), ("size=4m,nr_inodes=1", too_small), ("size=4m", read_only)],
    ids=["full", "no_inodes", "read_only"],
)
async def test_a_disk_that_takes_no_image_is_our_own_fault_and_is_left_clean(
    mount: Mount, options: str, spoil: Callable[[Path], str]
) -> None:
    """F58: the step failed for want of a disk, not the job for want of an image."""
    place = mount(options)
    why = spoil(place)
    assert await failure(answer(IMAGE), place) == (FailureKind.LOCAL, f"disk: {why}")


async def test_a_redis_whose_disk_is_full_takes_no_job_and_loses_none(mount: Mount, tmp_path: Path) -> None:
    """F19: with `appendfsync always` it stops rather than say what it cannot keep; its supervisor starts it again."""
    disk = mount("size=3m")
    valkey = Valkey(disk / "valkey")
    valkey.start()
    try:
        with serving_process(tmp_path, valkey.url) as http, disk.joinpath("room").open("wb") as room:
            room.write(bytes(2 * MIB))
            room.flush()
            async with Wire(http.port) as wire:
                acked, refused = await ordered_until_full(wire)
                assert refused.status == 503
                assert refused.header("retry-after")
                assert (await wire.ask(order())).status == 503
            stopped = not psutil.pid_exists(valkey.pid) or psutil.Process(valkey.pid).status() == psutil.STATUS_ZOMBIE
            room.truncate(0)
            if stopped:
                await asyncio.to_thread(valkey.start)
            back_s = await taken_again(http)
            kept = await on_record(valkey, acked)
    finally:
        valkey.stop()
    print(
        f"disk full after {len(acked)} jobs (Redis stopped: {stopped}); {kept} kept; taken again after {back_s:.2f} s"
    )
    assert kept == len(acked) > 0


async def ordered_until_full(wire: Wire) -> tuple[list[str], Answer]:
    """Ids of what was taken, and the first answer that was no 202."""
    acked: list[str] = []
    while len(acked) < ORDERS_MOST:
        told = await wire.ask(order())
        if told.status != 202:
            return acked, told
        acked.append(job_in(told))
    raise AssertionError("the disk was never full")
