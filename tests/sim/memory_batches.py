"""The verbs of `batches.lua`, said once more in Python over the same dicts as the rest of `memory.py`."""

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from service.domain.job import Status

Args = Mapping[str, Any]
Reply = list[Any]

SAFETY_BATCH_MS: Final = 60_000


class Zset(dict[str, float]):
    """Members by score, then by name."""

    def upto(self, most: float) -> list[str]:
        return [member for _, member in sorted((score, member) for member, score in self.items() if score <= most)]

    def first(self) -> tuple[float, str] | None:
        return min(((score, member) for member, score in self.items()), default=None)


@dataclass(kw_only=True)
class Batched:
    """What Redis holds of batches. Mixed into Memory."""

    batches: dict[str, dict[str, str]] = field(default_factory=dict)
    lines: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    inputs: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    closed: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    uploads: dict[tuple[str, str], tuple[str, int]] = field(default_factory=dict)
    folded: int = 0

    if TYPE_CHECKING:  # what Memory has

        @property
        def now(self) -> int: ...
        @property
        def cfg(self) -> Args: ...
        @property
        def jobs(self) -> dict[str, dict[str, str]]: ...
        @property
        def zsets(self) -> defaultdict[str, Zset]: ...
        @property
        def keys(self) -> dict[tuple[str, str], tuple[str, str, int]]: ...
        @property
        def due(self) -> Zset: ...
        def _born(self, a: Args, fields: dict[str, str], accepted: int) -> None: ...
        def _admit(self) -> list[str]: ...
        def _notify(self, id_: str, caller: str, where: Mapping[str, str] | None) -> None: ...
        def _announce(self, a: Args, row: Mapping[str, str], was: str) -> None: ...

    def open_batch(self, a: Args, _: object) -> Reply:
        if "idem" in a:
            place = (a["caller"], a["idem"])
            known = self.keys.get(place)
            if known is not None and known[2] > self.now:
                return ["known", self.now, [], known[1], known[0]]
            _, until = self.uploads.get(place, ("", 0))
            if until > self.now:
                return ["busy", self.now, [], max(1, until - self.now)]
            self.uploads[place] = (a["id"], self.now + a["lease_ms"])
        self.batches[a["id"]] = {"id": a["id"], "caller": a["caller"], "status": "staging", "idem": a.get("idem", "")}
        self.due[f"batch:{a['id']}"] = self.now + a["lease_ms"]
        return ["opened", self.now, []]

    def _unsealed(self, batch_id: str) -> bool:
        return self.batches.get(batch_id, {}).get("status") == "staging"

    def _staged(self, batch_id: str) -> bool:
        return self._unsealed(batch_id) and "lapsed" not in self.batches[batch_id]

    def _uploads_it(self, a: Args) -> bool:
        holder, until = self.uploads.get((a["caller"], a.get("idem", "")), ("", 0))
        return "idem" not in a or (holder == a["id"] and until > self.now)

    def stage(self, a: Args, _: object) -> Reply:
        if not self._staged(a["id"]) or not self._uploads_it(a):
            return ["gone", self.now, []]
        if "idem" in a:
            self.uploads[a["caller"], a["idem"]] = (a["id"], self.now + a["lease_ms"])
        self.due[f"batch:{a['id']}"] = self.now + a["lease_ms"]
        self.lines[a["id"]] += a["words"]
        self.inputs[a["id"]] += a["inputs"]
        for job_id in a["inputs"]:
            self.due.pop(f"stage:{job_id}", None)
        return ["staged", self.now, []]

    def enroll(self, a: Args, _: object) -> Reply:
        row = self.batches.get(a["id"])
        if row is not None and not self._unsealed(a["id"]):
            return ["already", self.now, []]
        whole = self._staged(a["id"]) and len(self.lines[a["id"]]) == a["total"]
        if row is None or not whole or not self._uploads_it(a):
            return ["gone", self.now, []]
        most = self.cfg["backlog_max"]
        if most > 0 and "retry_of" not in a and self.backlog() + a["total"] > most:
            return ["full", self.now, []]
        if "retry_of" in a:
            old = self.batches.get(a["retry_of"])
            if old is None:
                return ["gone", self.now, []]
            if "retried_by" in old:
                return ["retried", self.now, [], old["retried_by"]]
            old["retried_by"] = a["id"]
        if "idem" in a:
            place = (a["caller"], a["idem"])
            self.keys[place] = (a["hash"], a["id"], self.now + self.cfg["idem_ms"])
            self.uploads.pop(place, None)
        row |= {
            "status": "running",
            "created_at": str(self.now),
            "total": str(a["total"]),
            "made": "0",
            "hash": a["hash"],
            "body": a["body"],
            "retry_of": a.get("retry_of", ""),
        }
        self.folded += a["total"]
        for name in ("batches", f"batches@{a['caller']}"):
            self.zsets[name][a["id"]] = 0
        self.inputs.pop(a["id"], None)
        self.due[f"batch:{a['id']}"] = self.zsets["rung"][f"batch:{a['id']}"] = self.now
        return ["enrolled", self.now, []]

    def discard(self, a: Args, _: object) -> Reply:
        row = self.batches.get(a["id"], {})
        if row and not self._unsealed(a["id"]):
            return ["kept", self.now, []]
        place = (row.get("caller", ""), row.get("idem", ""))
        if self.uploads.get(place, ("", 0))[0] == a["id"]:
            del self.uploads[place]
        self.lines.pop(a["id"], None)
        if row and self.inputs.get(a["id"]):
            if "lapsed" not in row:
                row["lapsed"] = "1"
                self.due[f"batch:{a['id']}"] = self.now
            return ["clearing", self.now, []]
        self.batches.pop(a["id"], None)
        self.inputs.pop(a["id"], None)
        self._unplan(a["id"])
        return ["discarded", self.now, []]

    def cleared(self, a: Args, _: object) -> Reply:
        if not self._unsealed(a["id"]):
            return ["gone", self.now, []]
        self.inputs[a["id"]] = [job_id for job_id in self.inputs[a["id"]] if job_id not in a["words"]]
        self.due[f"batch:{a['id']}"] = self.now + a["lease_ms"]
        return ["cleared", self.now, []]

    def look(self, a: Args, _: object) -> Reply:
        row = self.batches.get(a["id"], {})
        flat = [word for pair in row.items() for word in pair]
        counts = [len(self.zsets[f"jobs#{a['id']}:{status}"]) for status in Status]
        rest, closed = len(self.lines.get(a["id"], ())), len(self.closed.get(a["id"], ()))
        return ["seen" if row else "none", self.now, [], flat, rest, closed, counts]

    def staged_inputs(self, a: Args, _: object) -> Reply:
        return ["told", self.now, [], self.inputs.get(a["id"], [])[: a["most"]]]

    def attend(self, a: Args, _: object) -> Reply:
        member = f"batch:{a['id']}"
        at = self.due.get(member)
        if at is None or at > self.now:
            return ["none", self.now, []]
        if self.batches.get(a["id"], {"marked": "1"}).get("marked") == "1":
            self._unplan(a["id"])
            return ["none", self.now, []]
        if self._unsealed(a["id"]):
            self.batches[a["id"]]["lapsed"] = "1"
        self.due[member] = self.now + a["lease_ms"]
        self.zsets["rung"].pop(member, None)
        return ["attended", self.now, []]

    def rest(self, a: Args, _: object) -> Reply:
        total = self.batches.get(a["id"], {}).get("total")
        over = total is not None and len(self.closed[a["id"]]) >= int(total)
        self.due[f"batch:{a['id']}"] = self.now + (0 if over else a.get("due_ms", SAFETY_BATCH_MS))
        return ["resting", self.now, []]

    def unfold(self, a: Args, _: object) -> Reply:
        row = self.batches.get(a["id"], {})
        if "created_at" not in row:
            return ["gone", self.now, []]
        taken, self.lines[a["id"]] = self.lines[a["id"]][: a["most"]], self.lines[a["id"]][a["most"] :]
        for line in taken:
            item = json.loads(line)
            told = item["arguments"] | {"by": a["by"], "stamps": []}
            words = item["fields"]
            fields = dict(zip(words[::2], words[1::2], strict=True)) | {"created_at": row["created_at"]}
            if row["status"] == "cancelled":
                told |= {"to": "cancelled", "stamps": ["finished_at"]}
                fields |= {"status": "cancelled", "reason": "cancel_asked", "queue": "collect"}
            if told["id"] not in self.jobs:
                self._born(told, fields, int(row["created_at"]))
        row["made"] = str(int(row["made"]) + len(taken))
        self.folded -= len(taken)
        admitted = self._admit()
        return ["unfolded", self.now, admitted, len(taken), len(self.lines[a["id"]])]

    def peek(self, a: Args, _: object) -> Reply:
        made = int(self.batches.get(a["id"], {}).get("made", 0))
        return ["peeked", self.now, [], made, self.lines[a["id"]][: a["most"]]]

    def drop_lines(self, a: Args, _: object) -> Reply:
        gone = self._take_lines(a)
        if row := self.batches.get(a["id"]):
            row["total"] = str(int(row["total"]) - gone)
        return ["dropped", self.now, []]

    def pass_lines(self, a: Args, _: object) -> Reply:
        self._take_lines(a)
        return ["passed", self.now, []]

    def _take_lines(self, a: Args) -> int:
        gone = sum(self._take_line(a["id"], job_id) for job_id in a["words"])
        if row := self.batches.get(a["id"]):
            row["made"] = str(int(row["made"]) + gone)
        self.folded -= gone
        return gone

    def _take_line(self, batch_id: str, job_id: str) -> bool:
        there = job_id in self.lines[batch_id]
        if there:
            self.lines[batch_id].remove(job_id)
        return there

    def _line_became(self, batch_id: str, job_id: str) -> None:
        self._take_line(batch_id, job_id)
        row = self.batches[batch_id]
        row["made"] = str(int(row["made"]) + 1)
        self.folded -= 1

    def _unwanted(self, job_id: str) -> bool:
        batch_id = self.jobs[job_id].get("batch_id", "")
        return self.batches.get(batch_id, {}).get("status") == "cancelled"

    def cancel_batch(self, a: Args, _: object) -> Reply:
        row = self.batches.get(a["id"], {"status": "staging"})
        if row["status"] == "staging":
            return ["gone", self.now, []]
        if row["status"] != "running" or "finished_at" in row:
            return ["over", self.now, []]
        row["status"] = "cancelled"
        self.due[f"batch:{a['id']}"] = self.zsets["rung"][f"batch:{a['id']}"] = self.now
        return ["cancelled", self.now, []]

    def count_up(self, a: Args, _: object) -> Reply:
        row = self.batches.get(a["id"], {})
        if "total" not in row or self.lines[a["id"]] or len(self.closed[a["id"]]) < int(row["total"]):
            return ["open", self.now, []]
        if "counts" not in row:
            counts = {status: len(self.zsets[f"jobs#{a['id']}:{status}"]) for status in Status}
            row |= {"counts": json.dumps(counts), "finished_at": str(self.now)}
        return ["counted", self.now, []]

    def mark(self, a: Args, _: object) -> Reply:
        row = self.batches.get(a["id"])
        if row is None:
            return ["gone", self.now, []]
        if row.get("marked") == "1":
            return ["already", self.now, []]
        was = row["status"]
        old = self.batches.get(row.get("retry_of", ""), {})
        if was == "cancelled" and old.get("retried_by") == a["id"]:
            del old["retried_by"]
        row |= {"status": "cancelled" if was == "cancelled" else "completed", "marked": "1"}
        self.closed.pop(a["id"], None)
        self._unplan(a["id"])
        self.zsets["ended"][a["id"]] = self.now
        self._notify(a["id"], row["caller"], a.get("notify"))
        self._announce(a, row, was)
        return ["marked", self.now, []]

    def backlog(self) -> int:
        """Jobs that wait for a slot, and lines that are not jobs yet."""
        return len(self.zsets["jobs:queued"]) + self.folded

    def _awaiting(self, batch_id: str) -> int | None:
        row = self.batches.get(batch_id, {})
        return None if "total" not in row or row.get("marked") == "1" else int(row["total"])

    def _close(self, job_id: str, batch_id: str) -> None:
        total = self._awaiting(batch_id)
        if total is None:
            return
        self.closed[batch_id].add(job_id)
        if len(self.closed[batch_id]) >= total:
            self.due[f"batch:{batch_id}"] = self.now

    def _forget_batch(self, batch_id: str) -> None:
        row = self.batches.pop(batch_id, {})
        for name in ("batches", f"batches@{row.get('caller', '')}", "ended"):
            self.zsets[name].pop(batch_id, None)

    def _unplan(self, batch_id: str) -> None:
        for name in ("due", "rung"):
            self.zsets[name].pop(f"batch:{batch_id}", None)
