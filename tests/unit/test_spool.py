"""The spool on a real disk, and on one whose power is cut between any two steps."""

import hashlib
import os
from itertools import count
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.rehearsal.pictures import Picture, draw
from service.clock import SystemClock
from workers import images
from workers.fetch import Fetched
from workers.spool import RECOUNT_S, Disk, Spool

pytestmark = pytest.mark.anyio

MANY = 10**9
NAMES_LOST = ["all", "none", "image", "facts"]


class Later:
    """A clock that is `RECOUNT_S` on at every look: nothing is remembered."""

    def __init__(self) -> None:
        self._ticks = count()

    def now_ms(self) -> int:
        return 0

    def monotonic_s(self) -> float:
        return next(self._ticks) * RECOUNT_S


class PowerCutError(Exception):
    pass


class FlickeringDisk(Disk):
    """The power goes before step number `steps`, and with it what was not synced: bytes, and names as `lost` says."""

    def __init__(self, steps: int) -> None:
        self.left = steps
        self.unsynced: set[Path] = set()
        self.renamed: list[tuple[Path, Path]] = []

    def _step(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise PowerCutError

    def copy(self, source: Path, target: Path) -> None:
        self._step()
        super().copy(source, target)
        self.unsynced.add(target)

    def write(self, target: Path, data: bytes) -> None:
        self._step()
        super().write(target, data)
        self.unsynced.add(target)

    def sync(self, path: Path) -> None:
        self._step()
        super().sync(path)
        self.unsynced.discard(path)
        if path.is_dir():
            self.renamed.clear()

    def rename(self, source: Path, target: Path) -> None:
        self._step()
        super().rename(source, target)
        self.renamed.append((source, target))
        if source in self.unsynced:
            self.unsynced.add(target)

    def unlink(self, path: Path) -> None:
        self._step()
        super().unlink(path)

    def cut(self, lost: str) -> None:
        for path in self.unsynced:
            if path.exists():
                path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        for source, target in reversed(self.renamed):
            if lost in ("all", "facts" if target.suffix == ".json" else "image"):
                target.rename(source)


class FullDisk(Disk):
    def copy(self, source: Path, target: Path) -> None:
        target.write_bytes(source.read_bytes()[:100])
        raise OSError(28, "No space left on device")


def spool(directory: Path, max_bytes: int = MANY, disk: Disk | None = None) -> Spool:
    return Spool(directory, max_bytes, Later(), disk)


def pulled(folder: Path, prompt: str = "a lighthouse") -> Fetched:
    """One whole image, as a pull leaves it."""
    data, path = draw(Picture(prompt, 1, 256, 256, "jpeg")), folder / f"{prompt}.part"
    path.write_bytes(data)
    seen = images.inspect(path)
    assert isinstance(seen, images.Image)
    return Fetched(path, len(data), hashlib.sha256(data).hexdigest(), seen)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "spool"


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


async def test_what_is_kept_is_found_by_the_next_process(directory: Path, tmp_path: Path) -> None:
    got = pulled(tmp_path)
    first = spool(directory)
    assert await first.keep("job_1", got)
    assert got.path.exists(), "the pull's own file is not the spool's to take"
    again = spool(directory)
    found = await again.find("job_1")
    assert found
    assert (found.bytes, found.sha256, found.seen) == (got.bytes, got.sha256, got.seen)
    assert found.path.read_bytes() == got.path.read_bytes()
    assert (again.id, again.used_bytes, again.usage.files) == (first.id, got.bytes, 1)
    await again.drop("job_1")
    assert await first.find("job_1") is None
    assert (first.used_bytes, names(directory)) == (0, {"id"})


@pytest.mark.parametrize("lost", NAMES_LOST)
@pytest.mark.parametrize("steps", range(7))
async def test_no_power_cut_leaves_anything_half(directory: Path, tmp_path: Path, steps: int, lost: str) -> None:
    got, disk = pulled(tmp_path), FlickeringDisk(MANY)
    cut_off = spool(directory, disk=disk)
    disk.left = steps
    with pytest.raises(PowerCutError):
        await cut_off.keep("job_1", got)
    disk.cut(lost)
    found = await spool(directory).find("job_1")
    assert found is None or found.path.read_bytes() == got.path.read_bytes()


@pytest.mark.parametrize("lost", NAMES_LOST)
async def test_what_was_said_to_be_kept_survives_a_power_cut(directory: Path, tmp_path: Path, lost: str) -> None:
    got, disk = pulled(tmp_path), FlickeringDisk(MANY)
    assert await spool(directory, disk=disk).keep("job_1", got)
    disk.cut(lost)
    assert await spool(directory).find("job_1")


async def test_every_flipped_or_missing_byte_is_noticed_and_nothing_of_it_kept(directory: Path, tmp_path: Path) -> None:
    got, at = pulled(tmp_path), spool(directory)
    spoilt = 0
    for name in ("job_1.jpeg", "job_1.json"):
        size = got.bytes if name.endswith("jpeg") else 100
        for place in range(0, size, max(1, size // 25)):
            for cut in (False, True):
                assert await at.keep("job_1", got)
                whole = (directory / name).read_bytes()
                half = whole[:place] if cut else whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
                (directory / name).write_bytes(half)
                assert await at.find("job_1") is None, (name, place)
                spoilt += 1
                assert (at.corrupt, names(directory)) == (spoilt, {"id"})


@settings(max_examples=300, deadline=None)
@given(facts=st.binary() | st.sampled_from([b"[]", b'{"extension":[]}', b'{"extension":"../x"}', b"[" * 100_000]))
def test_any_bytes_are_no_facts(tmp_path_factory: pytest.TempPathFactory, facts: bytes) -> None:
    at = spool(tmp_path_factory.getbasetemp() / "any")
    assert at._believed("job_1", facts) is None


async def test_a_full_spool_refuses_and_has_room_again_after_a_drop(directory: Path, tmp_path: Path) -> None:
    one, two = pulled(tmp_path, "one"), pulled(tmp_path, "two")
    at = spool(directory, max_bytes=one.bytes + two.bytes - 1)
    assert await at.keep("job_1", one)
    assert not await at.keep("job_2", two)
    assert await at.find("job_2") is None
    await at.drop("job_1")
    assert await at.keep("job_2", two)


async def test_it_is_crowded_when_more_than_half_full(directory: Path, tmp_path: Path) -> None:
    got = pulled(tmp_path)
    at = spool(directory, max_bytes=2 * got.bytes)
    for number, crowded in enumerate([False, False, True]):
        assert at.crowded == crowded
        assert await at.keep(f"job_{number}", got) == (number < 2)


async def test_a_spool_of_no_size_keeps_nothing_and_still_gives_what_it_had(directory: Path, tmp_path: Path) -> None:
    got = pulled(tmp_path)
    await spool(directory).keep("job_1", got)
    off = spool(directory, max_bytes=0)
    assert not await off.keep("job_2", got)
    assert await off.find("job_1")


async def test_a_full_disk_is_a_no_that_leaves_nothing(directory: Path, tmp_path: Path) -> None:
    at = spool(directory)
    full = Spool(directory, MANY, SystemClock(), FullDisk())
    assert not await full.keep("job_1", pulled(tmp_path))
    assert (full.used_bytes, names(directory)) == (0, {"id"})
    assert await at.keep("job_1", pulled(tmp_path))


async def test_two_processes_share_one_directory_its_id_and_its_bound(directory: Path, tmp_path: Path) -> None:
    one, two = pulled(tmp_path, "one"), pulled(tmp_path, "two")
    bound = one.bytes + two.bytes - 1
    alice, bob = spool(directory, bound), spool(directory, bound)
    assert alice.id == bob.id
    assert await alice.keep("job_1", one)
    assert not await bob.keep("job_2", two), "the bound is the directory's, not each one's"
    assert await bob.find("job_1")
    await bob.drop("job_1")
    assert await alice.find("job_1") is None
    assert spool(tmp_path / "another").id != alice.id


async def test_an_id_that_a_disk_has_lost_is_made_anew(directory: Path) -> None:
    before = spool(directory).id
    (directory / "id").write_bytes(b"")
    after = spool(directory).id
    assert after not in ("", before)
    assert spool(directory).id == after


async def test_it_tells_whose_bytes_lie_here_and_clears_dead_parts(directory: Path, tmp_path: Path) -> None:
    at = spool(directory)
    await at.keep("job_1", pulled(tmp_path))
    (directory / "job_2.png").write_bytes(b"its facts were never written")
    fresh, dead = directory / ".job_3.a.part", directory / ".job_4.b.part"
    for part in (fresh, dead):
        part.write_bytes(b"x")
    os.utime(dead, (0, 0))
    assert set(await at.held()) == {"job_1", "job_2"}
    assert (fresh.exists(), dead.exists()) == (True, False)
