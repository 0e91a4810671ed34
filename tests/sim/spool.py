"""A machine's spool in a dict: the same answers as the real one. It is the machine's, and outlives its processes."""

from pathlib import Path

from tests.sim.bucket import Shelf, digest
from workers.fetch import Fetched
from workers.images import Image


class SimSpool:
    """Stands where `workers.spool.Spool` does."""

    def __init__(self, machine: str, shelf: Shelf) -> None:
        self.id = f"spool-of-{machine}"
        self._files = shelf.files

    async def keep(self, job_id: str, got: Fetched) -> bool:
        self._files[self._path(job_id)] = self._files[str(got.path)]
        return True

    async def find(self, job_id: str) -> Fetched | None:
        path = self._path(job_id)
        data = self._files.get(path)
        if data is None:
            return None
        return Fetched(Path(path), len(data), digest(data), Image("image/jpeg", "jpeg", 64, 64))

    async def drop(self, job_id: str) -> None:
        self._files.pop(self._path(job_id), None)

    def _path(self, job_id: str) -> str:
        return f"/{self.id}/{job_id}"
