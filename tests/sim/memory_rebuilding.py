"""The verbs of `rebuild.lua`, said once more in Python over the same dicts as the rest of `memory.py`."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.sim.memory_batches import Args, Reply, Zset


@dataclass(kw_only=True)
class Rebuilt:
    """Records made again. Mixed into Memory."""

    if TYPE_CHECKING:  # what Memory has

        @property
        def now(self) -> int: ...
        @property
        def jobs(self) -> dict[str, dict[str, str]]: ...
        @property
        def batches(self) -> dict[str, dict[str, str]]: ...
        @property
        def zsets(self) -> defaultdict[str, Zset]: ...
        @property
        def tasks(self) -> dict[str, str]: ...
        @property
        def tombs(self) -> dict[str, tuple[str, int]]: ...
        @property
        def keys(self) -> dict[tuple[str, str], tuple[str, str, int]]: ...
        def _write(self, job_id: str, fields: Mapping[str, str], stamps: Any) -> None: ...
        def _notify(self, id_: str, caller: str, where: Mapping[str, str] | None) -> None: ...
        def _awaiting(self, batch_id: str) -> int | None: ...
        def _close(self, job_id: str, batch_id: str) -> None: ...
        def _forget(self, job_id: str) -> None: ...
        def _unwait(self, job_id: str, group: str) -> None: ...
        def _index(self, job_id: str, caller: str, batch: str, was: str | None, to: str | None) -> None: ...

    def rebuild(self, a: Args, fields: dict[str, str]) -> Reply:
        if self.tombs.get(a["id"], ("", 0))[1] > self.now:
            return ["known", self.now, []]
        made = "rebuilt"
        if a["id"] in self.jobs:
            if not self._outdated(a["id"]):
                return ["known", self.now, []]
            made = "overruled"
        elif self._aged(a) and self._awaiting(a["batch"]) is None:
            return ["aged", self.now, []]
        self._write(a["id"], fields, ())
        self._index(a["id"], a["caller"], a["batch"], None, a["to"])
        for task in a["tasks"]:
            self.tasks.setdefault(task, a["id"])
        self.zsets["ended"][a["id"]] = a["ended_at"]
        self._close(a["id"], a["batch"])
        self._known_key(a)
        self._notify(a["id"], a["caller"], a.get("notify"))
        return [made, self.now, []]

    def _outdated(self, job_id: str) -> bool:
        row = self.jobs[job_id]
        if row.get("finished_at") or row.get("image"):
            return False
        self._unwait(job_id, row["group"])
        self.zsets[f"spooled:{row.get('spool', '')}"].pop(job_id, None)
        self._forget(job_id)
        return True

    def link(self, a: Args, _: object) -> Reply:
        row = self.jobs.get(a["id"])
        if row is None:
            return ["gone", self.now, []]
        if not row["retried_by"]:
            self._write(a["id"], {"retried_by": a["retried_by"]}, ())
        return ["linked", self.now, []]

    def rebuild_batch(self, a: Args, _: object) -> Reply:
        if a["id"] in self.batches:
            return ["known", self.now, []]
        if self._aged(a):
            return ["aged", self.now, []]
        words = iter(a["words"])
        self.batches[a["id"]] = dict(zip(words, words, strict=True))
        for name in ("batches", f"batches@{a['caller']}"):
            self.zsets[name][a["id"]] = 0
        self.zsets["ended"][a["id"]] = a["ended_at"]
        self._known_key(a)
        self._notify(a["id"], a["caller"], a.get("notify"))
        return ["rebuilt", self.now, []]

    def link_batch(self, a: Args, _: object) -> Reply:
        row = self.batches.get(a["id"])
        if row is None:
            return ["gone", self.now, []]
        row.setdefault("retried_by", a["retried_by"])
        return ["linked", self.now, []]

    def _aged(self, a: Args) -> bool:
        return bool(a["ended_at"] <= self.now - a["retention_ms"])

    def _known_key(self, a: Args) -> None:
        place = (a["caller"], a.get("idem", ""))
        if a.get("idem_ms", 0) > 0 and self.keys.get(place, ("", "", 0))[2] <= self.now:
            self.keys[place] = (a["hash"], a["id"], self.now + a["idem_ms"])
