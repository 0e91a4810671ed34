"""The job store in dicts: `the script` said once more in Python, verb by verb, under the real store's own methods.

It passes the suite that the store on Valkey passes, and the state machine compares the two entry by entry. Whoever
changes a verb of the script changes its namesake here, and those tests say whether both still do the same.
"""

import json
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from service.domain.job import Job, Status
from service.storage import record
from service.storage.store import Store
from service.storage.terms import OVERDUE_S, Callbacks, Entry, Figures, Limits, Remains, Unconfirmed, storage_s
from tests.sim.memory_batches import Batched, Zset
from tests.sim.memory_notices import Noticed
from tests.sim.memory_rebuilding import Rebuilt

T = TypeVar("T")
Args = Mapping[str, Any]
Reply = list[Any]
Seam = Callable[[str, Callable[[], Any]], Awaitable[Any]]

PROBE_MS: Final = 30_000
REFUSALS_TO_CLOSE: Final = 5
SHRINK_GAP_MS: Final = 2_000
EASE_MS: Final = 5_000
SAFETY_MS: Final = 3_600_000
SPOOL_LOOK_MS: Final = 10_000
SPOOL_FORGET_MS: Final = 7 * 86_400_000
SEEN: Final = 6
LOG_LENGTH: Final = 200
CALLBACK_LOST_MS: Final = 60_000
ADMIT_AT_ONCE: Final = 100
PASS_AT_ONCE: Final = 1_000
TAKEN_MOST: Final = 299
FOUND_MOST: Final = 200
WEIGHT: Final = {"high": 16, "normal": 4, "low": 1}
WRITTEN: Final = frozenset({"created", "applied", "already", "enrolled"})


@dataclass
class Memory(Batched, Rebuilt, Noticed):
    """What Redis holds. `now_ms` is its own clock; `replicas` is how many confirm a write.

    `watch` is told the id of each job that was written, after the write.
    """

    now_ms: Callable[[], int]
    replicas: int = 0
    watch: Callable[[str], None] = lambda _: None
    jobs: dict[str, dict[str, str]] = field(default_factory=dict)
    parsed: dict[str, Job] = field(default_factory=dict)  # by checksum
    logs: dict[str, list[Entry]] = field(default_factory=dict)
    zsets: defaultdict[str, Zset] = field(default_factory=lambda: defaultdict(Zset))
    tasks: dict[str, str] = field(default_factory=dict)
    keys: dict[tuple[str, str], tuple[str, str, int]] = field(default_factory=dict)
    tombs: dict[str, tuple[str, int]] = field(default_factory=dict)
    remains: dict[str, dict[str, str]] = field(default_factory=dict)
    gate: dict[str, str] = field(default_factory=dict)
    tags: dict[str, float] = field(default_factory=dict)
    clock: float = 0.0
    events: list[Entry] = field(default_factory=list)
    took: defaultdict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    found: list[str] = field(default_factory=list)
    now: int = 0
    cfg: Args = field(default_factory=dict)

    def run(self, verb: str, a: Args, fields: Mapping[str, str]) -> Reply:
        """One run of the script: whole and alone."""
        self.now, self.cfg = self.now_ms(), a["cfg"]
        reply: Reply = getattr(self, verb)(a, dict(fields))
        return reply

    @property
    def due(self) -> Zset:
        return self.zsets["due"]

    # ---- verbs: what they say stands in the script ---------------------------------------------------------------

    def create(self, a: Args, fields: dict[str, str]) -> Reply:
        if refusal := self._known(a):
            return refusal
        if "idem" in a:
            self.keys[a["caller"], a["idem"]] = (a["idem_hash"], a["id"], self.now + self.cfg["idem_ms"])
        self._born(a, fields, self.now)
        if "retry_of" in a and a["batch"]:
            self._line_became(a["batch"], a["retry_of"])
        admitted = self._admit()
        self.watch(a["id"])
        return ["created", self.now, admitted]

    def _born(self, a: Args, fields: dict[str, str], accepted: int) -> None:
        deadline = accepted + a["deadline_ms"] if "deadline_ms" in a else None
        if deadline is not None:
            fields["deadline_at"] = str(deadline)
        self._write(a["id"], fields, a["stamps"])
        self._index(a["id"], a["caller"], a["batch"], None, a["to"])
        self.due.pop("stage:" + a["id"], None)
        if "retry_of" in a:
            self._hand_over(a)
        self._emit(a, a["caller"], a["batch"], None)
        if a["to"] == "queued":
            self._schedule(a, SAFETY_MS, deadline)
            self._wait(a["id"], a["group"], a["priority"], a["caller"])
        else:
            self._schedule(a, 0, None)
            self.zsets["rung"]["job:" + a["id"]] = self.now
            self._hold(a["id"], a["group"], a["holds_slot"])
            if "expires_at" in a:
                self.zsets["ripe"][a["id"]] = a["expires_at"]

    def _known(self, a: Args) -> Reply | None:
        if a["id"] in self.jobs:
            return ["already", self.now, []]
        known = self.keys.get((a["caller"], a["idem"])) if "idem" in a else None
        if known and known[2] > self.now:
            return ["replayed" if known[0] == a["idem_hash"] else "conflict", self.now, [], known[1]]
        if "idem" in a and self.uploads.get((a["caller"], a["idem"]), ("", 0))[1] > self.now:
            return ["busy", self.now, [], ""]
        if "retry_of" in a:
            old = self.jobs.get(a["retry_of"], {})
            if old.get("retried_by"):
                return ["retried", self.now, [], old["retried_by"]]
            if not _stands(old, a, a["old_version"]):
                return ["stale", self.now, []]
            dropped = a["batch"] and a["retry_of"] not in self.lines[a["batch"]]
            return ["gone", self.now, []] if dropped else None
        backlog = self.cfg["backlog_max"]
        return ["full", self.now, []] if 0 < backlog <= self.backlog() else None

    def _hand_over(self, a: Args) -> None:
        old = a["retry_of"]
        self._write(old, {"retried_by": a["id"], "open": a["left"]}, ())
        if self.jobs[old]["open"] == "[]":
            self._hold(old, self.jobs[old]["group"], holds=False)
            if self.jobs[old].get("sidecar") == "1":
                self.due.pop("job:" + old, None)
                self.zsets["ended"][old] = self.now
        for task in a["tasks"]:
            self.tasks[task] = a["id"]

    def apply(self, a: Args, fields: dict[str, str]) -> Reply:
        row = self.jobs.get(a["id"])
        if refusal := self._refusal(a, row):
            return refusal
        assert row is not None
        was, caller, batch, group = row["status"], row["caller"], row["batch_id"], row["group"]
        lay = row.get("spool", "")
        fields["seen"] = (row.get("seen", "") + a["event_id"] + ",")[-(len(a["event_id"]) + 1) * SEEN :]
        self._write(a["id"], fields, a["stamps"])
        if was != a["to"]:
            self._index(a["id"], caller, batch, was, a["to"])
        if "signal" in a:
            self._listen(a, group)
        self._hold(a["id"], group, a["holds_slot"])
        if was == "queued" and a["to"] != "queued":
            self._unwait(a["id"], group)
        self._place(a, row, lay)
        if a["event"] == "sidecar_written":
            self._close(a["id"], batch)
            self._notify(a["id"], caller, a.get("notify"))
        if a["event"] == "ready" and a["to"] == "collecting" and was != "collecting":
            self._learn(a["id"], row)
        self._emit(a, caller, batch, was)
        admitted = self._admit()
        self.watch(a["id"])
        return ["applied", self.now, admitted]

    def _refusal(self, a: Args, row: Mapping[str, str] | None) -> Reply | None:
        if row is None:
            return ["gone", self.now, []]
        if a["event_id"] in row.get("seen", ""):
            return ["already", self.now, []]
        if not _stands(row, a, a["version"]):
            return ["stale", self.now, []]
        if "own" in a and self.tasks.setdefault(a["own"], a["id"]) != a["id"]:
            return ["taken", self.now, []]
        return None

    def _place(self, a: Args, row: Mapping[str, str], lay: str) -> None:
        """Where the written job stands among what is ripe, spooled (it `lay` there), rung and due."""
        member = "job:" + a["id"]
        self.zsets["ripe"].pop(a["id"], None)
        self.zsets[f"spooled:{lay}"].pop(a["id"], None)
        if a["to"] == "collecting" and "expires_at" in a:
            waits = f"spooled:{a['spooled']}" if "spooled" in a else "ripe"
            self.zsets[waits][a["id"]] = a["expires_at"]
        if a["ring"]:
            self.zsets["rung"][member] = self.now
        else:
            self.zsets["rung"].pop(member, None)
        if "due_ms" in a:
            self._schedule(a, a["due_ms"], _int(row.get("deadline_at")))
        elif not a["keep_due"]:
            self.due.pop(member, None)
            self.zsets["ended"][a["id"]] = self.now

    def claim(self, a: Args, _: object) -> Reply:
        taken: str | None = None
        ring: list[str] = []
        if a["queue"] == "collect":
            own = [f"spooled:{a['spool']}"] if "spool" in a else []
            first = [job_id for name in ("ripe", *own) for job_id in self.zsets[name].upto(float("inf"))[:200]]
            taken = next((job_id for job_id in first if self._take(a, job_id)[0]), None)
        if not taken:
            taken, ring = self._take(a, a["id"])
        if not taken:
            return ["none", self.now, ring]
        if taken != a["id"]:
            self.zsets["rung"].pop("job:" + a["id"], None)
        if "spool" in a:
            self.zsets["spools"][a["spool"]] = self.now
        flat = [word for pair in self.jobs[taken].items() for word in pair]
        return ["claimed", self.now, ring, taken, self.now + a["lease_ms"], self.gate.get("reason", ""), flat]

    def _take(self, a: Args, job_id: str) -> tuple[str | None, list[str]]:
        member = "job:" + job_id
        at, row = self.due.get(member), self.jobs.get(job_id)
        if at is None or at > self.now:
            return None, []
        if row is None:
            del self.due[member]
            return None, []
        if row["queue"] != a["queue"]:
            return None, []
        if self._must_wait(job_id, row):
            return None, self._admit()
        if self._elsewhere(a, job_id, row):
            return None, []
        self.due[member] = self.now + a["lease_ms"]
        self.zsets["rung"].pop(member, None)
        return job_id, []

    def _must_wait(self, job_id: str, row: Mapping[str, str]) -> bool:
        deadline = _int(row.get("deadline_at"))
        if (
            row["status"] != "queued"
            or job_id in self.zsets["slots"]
            or (deadline is not None and deadline <= self.now)
        ):
            return False
        self.due["job:" + job_id] = min(self.now + SAFETY_MS, deadline or float("inf"))
        self._wait(job_id, row["group"], row["priority"], row["caller"])
        return True

    def _elsewhere(self, a: Args, job_id: str, row: Mapping[str, str]) -> bool:
        spool, deadline = row.get("spool", ""), _int(row.get("deadline_at"))
        if row["status"] != "collecting" or spool in ("", a.get("spool")):
            return False
        if deadline is not None and deadline <= self.now:
            return False
        silent, left = self._silence(spool), (_int(row.get("result_expires_at")) or 0) - self.now
        if silent < self.cfg["spool_stopped_ms"]:
            self.zsets["rung"].pop("job:" + job_id, None)
            return True
        if silent >= self.cfg["spool_lost_ms"] or 0 < left <= self.cfg["spool_rescue_ms"]:
            return False
        self.due["job:" + job_id] = min(self.now + SPOOL_LOOK_MS, deadline or float("inf"))
        self.zsets["rung"].pop("job:" + job_id, None)
        return True

    def _silence(self, spool: str) -> float:
        return self.now - self.zsets["spools"].get(spool, 0)

    def tend(self, a: Args, _: object) -> Reply:
        self.zsets["spools"][a["spool"]] = self.now
        for spool in self.zsets["spools"].upto(self.now - SPOOL_FORGET_MS):
            del self.zsets["spools"][spool]
            self.zsets.pop(f"spooled:{spool}", None)
        return ["tended", self.now, []]

    def silence(self, a: Args, _: object) -> Reply:
        return ["silent", self.now, [], self._silence(a["of"])]

    def behind(self, a: Args, _: object) -> Reply:
        ripe = self.zsets["ripe"].upto(float("inf"))
        since = [_int(self.jobs[job_id].get("ready_at")) or self.now for job_id in ripe[:200]]
        late = sum(1 for each in since if self.now - each > a["after_ms"])
        return ["behind", self.now, [], min(late, a["most"]) if len(ripe) >= a["most"] else 0]

    def pause(self, a: Args, _: object) -> Reply:
        name = f"{a['reason']}_until"
        self.gate[name] = str(max(int(self.gate.get(name, 0)), self.now + a["pause_ms"]))
        return ["paused", self.now, []]

    def renew(self, a: Args, _: object) -> Reply:
        member = "job:" + a["id"]
        if self.due.get(member) != a["lease_end"]:
            return ["lost", self.now, []]
        self.due[member] = self.now + a["lease_ms"]
        return ["renewed", self.now, [], self.now + a["lease_ms"]]

    def ripen(self, a: Args, _: object) -> Reply:
        out: list[str] = []
        ring, room, rung = self._admit(), dict(a["room"]), self.zsets["rung"]
        for member in rung.upto(self.now - a["again_ms"]):
            del rung[member]
        gone, page = 0, self.due.upto(self.now)[a["start"] : a["start"] + a["most"]]
        for member in page:
            kind, _, job_id = member.partition(":")
            row = self.jobs.get(job_id)
            if kind == "job" and row is None:
                del self.due[member]
                gone += 1
                continue
            queue = row["queue"] if kind == "job" and row else kind
            if queue == "collect" and row and row.get("finished_at"):
                queue = "close"
            if room.get(queue, 0) > 0 and member not in rung:
                rung[member] = self.now
                room[queue] -= 1
                out += [queue, job_id]
        return ["ripe", self.now, ring, out, a["start"] + len(page) - gone if len(page) == a["most"] else 0]

    def hear(self, a: Args, _: object) -> Reply:
        since = self.zsets["awaited"].pop(a["id"], None)
        if since is None:
            return ["known", self.now, []]
        self._heard(f"late:{self.now - since:.0f}")
        return ["late", self.now, [], self.now - since]

    def miss(self, _: object, __: object) -> Reply:
        missed = self.zsets["awaited"].upto(self.now - CALLBACK_LOST_MS)
        for job_id in missed:
            del self.zsets["awaited"][job_id]
            self._heard("lost")
        return ["missed", self.now, [], len(missed)]

    def plan(self, a: Args, _: object) -> Reply:
        member = f"{a['kind']}:{a['id']}"
        if "due_ms" in a:
            self.due[member] = self.now + a["due_ms"]
        else:
            self.due.pop(member, None)
            self.zsets["rung"].pop(member, None)
        return ["planned", self.now, []]

    def expire(self, a: Args, _: object) -> Reply:
        ids = self.zsets["ended"].upto(self.now - a["retention_ms"])[: a["most"]]
        for job_id in ids:
            if job_id.startswith("batch_"):
                self._forget_batch(job_id)
            elif job_id in self.closed.get(self.jobs.get(job_id, {}).get("batch_id", ""), ()):
                self.zsets["ended"][job_id] = self.now
            else:
                self._forget(job_id)
        return ["expired", self.now, [], len(ids)]

    def reap(self, _: object, __: object) -> Reply:
        """Simulated processes have no `uid`, so that none is ever in flight by name: nobody is suspect."""
        return ["watched", self.now, [], []]

    def bury(self, a: Args, _: object) -> Reply:
        row = self.jobs.get(a["id"])
        if row is None:
            return ["gone", self.now, []]
        if not _stands(row, a, a["version"]):
            return ["stale", self.now, []]
        busy = "job:" + a["id"] in self.due
        self._drop_notice(a["id"])
        self._forget(a["id"], keeps_tasks=True)
        if row["open"] != "[]":
            names = ("group", "open", "tasks", "intent_at", "submitted_at")
            self.remains[a["id"]] = {name: row[name] for name in names}
            self.due["settle:" + a["id"]] = self.now
            self._hold(a["id"], row["group"], holds=True)
        self.tombs[a["id"]] = (a["caller"], self.now + self.cfg["tomb_ms"])
        self.due["erase:" + a["id"]] = self.now + (a["busy_ms"] if busy else 0)
        return ["buried", self.now, self._admit()]

    def vacate(self, a: Args, _: object) -> Reply:
        if left := self.remains.pop(a["id"], None):
            self._hold(a["id"], left["group"], holds=False)
        return ["vacated", self.now, self._admit()]

    # ---- the record ---------------------------------------------------------------------------------------------

    def _write(self, job_id: str, fields: Mapping[str, str], stamps: Any) -> None:
        row = self.jobs.setdefault(job_id, {})
        row.update(fields, version=str(int(row.get("version", 0)) + 1))
        row.update(dict.fromkeys(stamps, str(self.now)))
        row["sum"] = record.checksum(row)

    def _index(self, job_id: str, caller: str, batch: str, was: str | None, to: str | None) -> None:
        for status in filter(None, (was, to)):
            names = ["jobs", f"jobs:{status}", f"jobs@{caller}", f"jobs@{caller}:{status}"]
            for name in names + ([f"jobs#{batch}", f"jobs#{batch}:{status}"] if batch else []):
                if status == to:
                    self.zsets[name][job_id] = 0
                else:
                    self.zsets[name].pop(job_id, None)

    def _emit(self, a: Args, caller: str, batch: str, was: str | None) -> None:
        told = {
            "id": a["id"],
            "caller": caller,
            "batch_id": batch,
            "status": a["to"],
            "from": was,
            "reason": a["event"],
            "at": self.now,
            "version": self.jobs[a["id"]]["version"],
            "by": a["by"],
            "detail": a.get("detail"),
        }
        entry = Entry(self._next_eid(), {name: str(value) for name, value in told.items() if value not in (None, "")})
        self.events.append(entry)
        self.logs[a["id"]] = [*self.logs.get(a["id"], []), entry][-LOG_LENGTH:]

    def _announce(self, a: Args, row: Mapping[str, str], was: str) -> None:
        told = {"id": a["id"], "batch_id": a["id"], "caller": row["caller"], "status": row["status"], "from": was}
        told |= {"reason": "marked", "at": str(self.now), "by": a["by"]}
        self.events.append(Entry(self._next_eid(), told))

    def _next_eid(self) -> str:
        ms, _, n = self.events[-1].eid.partition("-") if self.events else ("0", "", "0")
        return f"{self.now}-0" if self.now > int(ms) else f"{ms}-{int(n) + 1}"

    def _schedule(self, a: Args, due_ms: int, deadline: int | None) -> None:
        at = self.now + due_ms
        if deadline is not None and a["deadline_counts"]:
            at = min(at, deadline)
        self.due["job:" + a["id"]] = at

    def _learn(self, job_id: str, row: Mapping[str, str]) -> None:
        since = _int(row.get("submitted_at")) or _int(row.get("intent_at"))
        if since is None:
            return
        polled = row["found_by"] == "poll"
        at = ((_int(row.get("polled_at")) or since) + self.now) / 2 if polled else self.now
        self.took[row["model"]] = [round(max(at - since, 0)), *self.took[row["model"]][:TAKEN_MOST]]
        if row["found_by"] == "webhook":
            self._heard("webhook")
        elif self.cfg["callbacks"]:
            self.zsets["awaited"][job_id] = self.now

    def _heard(self, how: str) -> None:
        self.found = [how, *self.found][:FOUND_MOST]

    def _forget(self, job_id: str, *, keeps_tasks: bool = False) -> None:
        row = self.jobs.pop(job_id, None)
        self.logs.pop(job_id, None)
        if row:
            self._close(job_id, row["batch_id"])
            self._index(job_id, row["caller"], row["batch_id"], row["status"], None)
            self._hold(job_id, row["group"], holds=False)
            for task in json.loads(row["tasks"]).values():
                if self.tasks.get(task) == job_id and not keeps_tasks:
                    del self.tasks[task]
        for name in ("due", "rung"):
            self.zsets[name].pop("job:" + job_id, None)
        for name in ("ended", "ripe", "awaited"):
            self.zsets[name].pop(job_id, None)

    # ---- slots --------------------------------------------------------------------------------------------------

    def _hold(self, job_id: str, group: str, holds: bool) -> None:
        for name in ["slots"] + ([f"slots:{group}"] if group else []):
            if holds:
                self.zsets[name].setdefault(job_id, self.now)
            else:
                self.zsets[name].pop(job_id, None)

    def _unwait(self, job_id: str, group: str) -> None:
        for each in {"", group}:
            for priority in WEIGHT:
                self.zsets[f"wait:{each}:{priority}"].pop(job_id, None)

    def _wait(self, job_id: str, group: str, priority: str, caller: str) -> None:
        lane = self.zsets[f"wait:{group if group in self.cfg['caps'] else ''}:{priority}"]
        if job_id not in lane:
            self._unwait(job_id, group)
            who = f"{caller}|{priority}"
            self.tags[who] = max(self.clock, self.tags.get(who, 0.0)) + 1 / WEIGHT[priority]
            lane[job_id] = self.tags[who]

    def _configured(self, group: str) -> int:
        return int(self.cfg["caps"].get(group, 0) if group else self.cfg["cap"])

    def _cap_of(self, group: str) -> int:
        top, found = self._configured(group), self.gate.get("cap:" + group)
        if found is None:
            return top
        return int(min(top, float(found)) if top > 0 else float(found))

    def _used(self, group: str) -> int:
        return len(self.zsets[f"slots:{group}" if group else "slots"])

    def _full(self, group: str, priority: str) -> bool:
        cap = self._cap_of(group)
        free = cap - self._used(group)
        return cap != 0 and (free <= 0 or (priority != "high" and free <= min(2, cap // 8)))

    def _first_waiting(self) -> tuple[float, str, str, Zset] | None:
        best = None
        if not self.zsets["jobs:queued"]:
            return None
        for group in self.cfg["groups"]:
            for priority in WEIGHT:
                lane = self.zsets[f"wait:{group}:{priority}"]
                head = lane.first() if lane else None
                if head is None or (best and head[0] >= best[0]) or self._full("", priority):
                    continue
                if not group or not self._full(group, priority):
                    best = (*head, group, lane)
        return best

    def _admit(self) -> list[str]:
        ids: list[str] = []
        if any(float(self.gate.get(name) or 0) > self.now for name in ("until", "storage_until")):
            return ids
        if self.gate.get("reason") == "throttled":
            for name in ("until", "reason", "since", "detail"):
                self.gate.pop(name, None)
        probing = self.gate.get("reason") in ("held", "refused")
        self._ease()
        passed = 0
        while len(ids) < ADMIT_AT_ONCE and passed < PASS_AT_ONCE and (best := self._first_waiting()):
            self.clock, job_id, group, lane = best
            del lane[job_id]
            if self._unwanted(job_id):
                passed += 1
                continue
            self._hold(job_id, group, holds=True)
            self.due["job:" + job_id] = self.zsets["rung"]["job:" + job_id] = self.now
            ids.append(job_id)
            if probing:
                self.gate["until"] = str(self.now + PROBE_MS)
                break
        return ids

    def _shrink(self, group: str) -> None:
        if self.now - float(self.gate.get("shrunk:" + group, 0)) < SHRINK_GAP_MS:
            return
        used, cap = self._used(group), self._cap_of(group)
        cap = used if cap == 0 or used < cap else cap
        self.gate |= {"cap:" + group: str(max(1, int(cap * 0.75))), "shrunk:" + group: str(self.now)}

    def _ease(self) -> None:
        if not self.gate:
            return
        for group in self.cfg["groups"]:
            since = max(float(self.gate.get("shrunk:" + group, self.now)), float(self.gate.get("eased:" + group, 0)))
            if self.now - since >= EASE_MS:
                self.gate["eased:" + group] = str(self.now)
                self._grow(group, 1)

    def _grow(self, group: str, by: float | None = None) -> None:
        top, given = self._configured(group), self.gate.get("cap:" + group)
        if given is None:
            return
        found = float(given) + (by or 1 / float(given))
        if 0 < top <= found:
            for name in ("cap:", "shrunk:", "eased:"):
                self.gate.pop(name + group, None)
        else:
            self.gate["cap:" + group] = f"{found:.6g}"

    def _listen(self, a: Args, group: str) -> None:
        signal, pause = a["signal"], PROBE_MS
        if signal == "ok":
            self._reopen(group)
            return
        if signal == "throttled":
            self._shrink(group)
            pause = a["signal_ms"]
        elif signal == "refused":
            self.gate["failures"] = str(int(self.gate.get("failures", 0)) + 1)
            if int(self.gate["failures"]) < REFUSALS_TO_CLOSE:
                return
        if self.gate.get("reason") != signal:
            self.gate["since"] = str(self.now)
        until = max(float(self.gate.get("until") or 0), self.now + pause)
        self.gate |= {"until": f"{until:.0f}", "reason": str(signal), "detail": a.get("detail", "")}

    def _reopen(self, group: str) -> None:
        shut = ("until", "reason", "since", "detail") if self.gate.get("reason") in ("held", "refused") else ()
        for name in (*shut, "failures"):
            self.gate.pop(name, None)
        self._grow("")
        if group:
            self._grow(group)


async def _at_once(_: str, act: Callable[[], T]) -> T:
    return act()


class MemoryStore(Store):
    """A process's handle on the memory. `seam` is where its calls may be late, fail, or be its last."""

    def __init__(
        self, memory: Memory, limits: Limits, *, actor: str = "", spool: str | None = None, seam: Seam = _at_once
    ) -> None:
        super().__init__(None, limits, actor=actor, spool=spool)  # type: ignore[arg-type]  # there is no Redis
        self.memory = memory
        self._seam = seam

    async def _run(
        self,
        verb: str,
        arguments: Args,
        fields: Mapping[str, Any] | None = None,
        *,
        confirm: bool = False,
        words: Sequence[str] = (),
    ) -> Reply:
        told = {name: value for name, value in arguments.items() if value is not None}
        told |= {"cfg": self._config, "by": self._actor, "words": list(words)}
        flat = iter(record.write(fields)) if fields else iter(())
        written = dict(zip(flat, flat, strict=True))
        reply: Reply = await self._seam(f"store.{verb}", lambda: self.memory.run(verb, told, written))
        if confirm and self.memory.replicas < self.limits.replicas and reply[0] in WRITTEN:
            raise Unconfirmed(f"{self.memory.replicas} of {self.limits.replicas} replicas confirmed the write")
        return reply

    async def entomb(self, job_id: str, caller: str) -> None:
        await self.plan("erase", job_id, 0)
        await self._seam("store.entomb", lambda: self._entomb(job_id, caller))

    def _entomb(self, job_id: str, caller: str) -> None:
        self.memory.tombs[job_id] = (caller, self.memory.now_ms() + self.limits.retention_s * 1000)

    # ---- reads --------------------------------------------------------------------------------------------------

    async def get(self, job_id: str) -> Job | None:
        job: Job | None = await self._seam("store.get", lambda: self.job(job_id))
        return job

    def job(self, job_id: str) -> Job | None:
        """At once."""
        row = self.memory.jobs.get(job_id)
        return None if row is None else self._parsed(row, job_id)

    def _parsed(self, flat: Mapping[str, str], job_id: str) -> Job:
        """A record is parsed once for each of its versions."""
        known = self.memory.parsed.get(flat["sum"])
        if known is None:
            known = self.memory.parsed[flat["sum"]] = record.read(flat, job_id)
        return known

    async def buried_by(self, job_id: str) -> str | None:
        def look() -> str | None:
            caller, until = self.memory.tombs.get(job_id, (None, 0))
            return caller if until > self.memory.now_ms() else None

        caller: str | None = await self._seam("store.buried_by", look)
        return caller

    async def _ids(self, name: str, before: str | None, limit: int) -> list[str]:
        ids = sorted(self.memory.zsets[name], reverse=True)
        return [job_id for job_id in ids if before is None or job_id < before][:limit]

    async def members(self, batch_id: str, after: str | None, limit: int, status: Status | None = None) -> list[str]:
        ids = sorted(self.memory.zsets[f"jobs#{batch_id}" + (f":{status}" if status else "")])
        return [job_id for job_id in ids if after is None or job_id > after][:limit]

    async def _jobs(self, ids: Any) -> list[Job]:
        return [job for job_id in ids if (job := self.job(job_id)) is not None]

    async def log(self, job_id: str) -> list[Entry]:
        return list(self.memory.logs.get(job_id, []))

    async def remains(self, job_id: str) -> Remains | None:
        left = await self._seam("store.remains", lambda: self.memory.remains.get(job_id))
        return Remains.read(left) if left else None

    async def due_at(self, job_id: str) -> int | None:
        at = self.memory.due.get(f"job:{job_id}")
        return None if at is None else int(at)

    async def last_event(self) -> str:
        return self.memory.events[-1].eid if self.memory.events else "0-0"

    async def first_event(self) -> str | None:
        return self.memory.events[0].eid if self.memory.events else None

    async def events_dropped(self) -> bool:
        return False

    async def events(self, after: str, *, block_s: float = 0, most: int = 500) -> list[Entry]:
        """Waits for nobody: `block_s` is the real store's."""
        return [entry for entry in self.memory.events if _order(entry.eid) > _order(after)][:most]

    async def durations(self, model: str) -> list[float]:
        taken: list[float] = await self._seam("store.durations", lambda: [ms / 1000 for ms in self.memory.took[model]])
        return taken

    async def callbacks(self) -> Callbacks:
        awaited = self.memory.zsets["awaited"]
        now_s = self.memory.now_ms() // 1000
        overdue = sum(1 for since in awaited.values() if now_s - since / 1000 > OVERDUE_S)
        return Callbacks.told(self.memory.found, len(awaited), overdue)

    async def figures(self) -> Figures:
        memory = self.memory
        counts: dict[str, int] = {status: len(memory.zsets[f"jobs:{status}"]) for status in Status}
        oldest = memory.due.first()
        age_s = max(0.0, (memory.now_ms() - oldest[0]) / 1000) if oldest else 0.0
        held_s = storage_s(memory.gate, memory.now_ms() / 1000)
        return Figures(counts, len(memory.zsets["slots"]), len(memory.due), age_s, dict(memory.gate), held_s)

    async def writable(self) -> None:
        await self._seam("store.writable", lambda: None)

    async def now_ms(self) -> int:
        now: int = await self._seam("store.now_ms", self.memory.now_ms)
        return now

    async def scan_ids(self) -> AsyncIterator[str]:
        for job_id in list(self.memory.jobs):
            yield job_id


def _stands(row: Mapping[str, str], a: Args, version: str) -> bool:
    return row.get("version") == version and row["sum"] == a.get("digest", row["sum"])


def _int(text: str | None) -> int | None:
    return int(text) if text else None


def _order(eid: str) -> tuple[int, int]:
    ms, _, n = eid.partition("-")
    return int(ms), int(n)
