"""A caller's own server in a simulated world: it keeps every letter, and refuses some."""

import hashlib
import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.sim.bucket import Shelf
from tests.sim.world import Cut, Process
from workers.courier import Reply


@dataclass
class Receiver:
    """`refuses`: the share of letters that it answers with 500."""

    shelf: Shelf
    dice: random.Random
    refuses: float = 0.0
    letters: list[dict[str, Any]] = field(default_factory=list)

    def take(self, headers: Mapping[str, str], body: bytes) -> int:
        about = json.loads(body)["data"]["id"]
        keys = self.shelf.things.keys() | self.shelf.erased  # a letter may be on its way while its job is deleted
        written = any(key.endswith(f"/{about}.json") or f"/{about}/_" in key for key in keys)
        refused = bool(self.refuses) and self.dice.random() < self.refuses
        told = {"about": about, "webhook_id": headers["webhook-id"], "body": hashlib.sha256(body).hexdigest()}
        self.letters.append(told | {"taken": not refused, "early": not written})
        return 500 if refused else 204


class SimCourier:
    """Stands where `workers.courier.HttpCourier` does."""

    def __init__(self, process: Process, receiver: Receiver) -> None:
        self._process = process
        self._receiver = receiver

    async def post(self, _url: str, headers: Mapping[str, str], body: bytes) -> Reply | None:
        try:
            return Reply(await self._process.effect("post", lambda: self._receiver.take(headers, body)))
        except Cut:
            return Reply(error="timeout")
