"""The verbs of `notices.lua`, said once more in Python over the same dicts as the rest of `memory.py`."""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from tests.sim.memory_batches import Args, Reply, Zset

TRIES_KEPT: Final = 50


@dataclass(kw_only=True)
class Noticed:
    """What Redis holds of notifications; what expires there is kept here. Mixed into Memory."""

    notices: dict[str, dict[str, str]] = field(default_factory=dict)
    tries: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    notified: Counter[str] = field(default_factory=Counter)

    if TYPE_CHECKING:  # what Memory has

        @property
        def now(self) -> int: ...
        @property
        def due(self) -> Zset: ...
        @property
        def zsets(self) -> defaultdict[str, Zset]: ...

    def take_notice(self, a: Args, _: object) -> Reply:
        at, row = self.due.get(f"notify:{a['id']}"), self.notices.get(a["id"], {})
        if at is None or at > self.now:
            return ["none", self.now, []]
        if row.get("state") != "pending":
            self._rest_notice(a["id"])
            return ["none", self.now, []]
        self.due[f"notify:{a['id']}"] = self.now + a["lease_ms"]
        self.zsets["rung"].pop(f"notify:{a['id']}", None)
        return ["taken", self.now, [], _flat(row)]

    def tell_notice(self, a: Args, _: object) -> Reply:
        row = self.notices.get(a["id"])
        if row is None:
            return ["gone", self.now, []]
        attempt = json.dumps(a["attempt"] | {"at": str(self.now)})
        self.tries[a["id"]] = [*self.tries[a["id"]], attempt][-TRIES_KEPT:]
        row["tries"] = str(int(row["tries"]) + 1)
        self.notified["failed" if a["to"] == "pending" else a["to"]] += 1
        if a["to"] == "pending":
            if row["state"] == "pending":
                self.due[f"notify:{a['id']}"] = self.now + a["due_ms"]
        elif row["state"] == "pending" or a["to"] == "delivered":
            row["state"] = a["to"]
            self._rest_notice(a["id"])
        return ["told", self.now, []]

    def resend(self, a: Args, _: object) -> Reply:
        self._notify(a["id"], a["caller"], a.get("notify"))
        if a["id"] not in self.notices:
            return ["none", self.now, []]
        self._pending(a["id"])
        return ["resent", self.now, []]

    def notice(self, a: Args, _: object) -> Reply:
        row = self.notices.get(a["id"], {})
        due = self.due.get(f"notify:{a['id']}")
        told = [_flat(row), list(self.tries.get(a["id"], ())), "" if due is None else f"{due:.0f}"]
        return ["seen" if row else "none", self.now, [], *told]

    def notice_figures(self, _: object, __: object) -> Reply:
        pending = self.zsets["notices"]
        oldest = pending.first()
        counts = _flat({outcome: str(count) for outcome, count in self.notified.items()})
        return ["told", self.now, [], len(pending), f"{oldest[0]:.0f}" if oldest else "", counts]

    def _notify(self, id_: str, caller: str, where: Mapping[str, str] | None) -> None:
        if where and id_ not in self.notices:
            self.notices[id_] = {"caller": caller, "url": where.get("url", ""), "hook": where.get("hook", "")}
            self._pending(id_)

    def _pending(self, id_: str) -> None:
        self.notices[id_].update(state="pending", since=str(self.now), tries="0")
        self.zsets["notices"][id_] = self.now
        self.due[f"notify:{id_}"] = self.zsets["rung"][f"notify:{id_}"] = self.now

    def _rest_notice(self, id_: str) -> None:
        self.zsets["notices"].pop(id_, None)
        for name in ("due", "rung"):
            self.zsets[name].pop(f"notify:{id_}", None)

    def _drop_notice(self, id_: str) -> None:
        self.notices.pop(id_, None)
        self.tries.pop(id_, None)
        self._rest_notice(id_)


def _flat(row: Mapping[str, Any]) -> list[str]:
    return [word for pair in row.items() for word in pair]
