"""Chance that repeats: every roll follows from the seed, the number of the submission and the name of the question.

Not from the order of the questions: a poll more or less changes no other roll of the run.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Dice:
    seed: int
    number: int

    def roll(self, name: str, turn: int = 0) -> float:
        """From 0 to below 1. `turn` tells the repeats of a question apart."""
        return self.whole(name, 1 << 53, turn) / (1 << 53)

    def whole(self, name: str, below: int, turn: int = 0) -> int:
        digest = blake2b(f"{self.seed}/{self.number}/{name}/{turn}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") % below

    def plays(self, name: str, share: float, turn: int = 0) -> bool:
        return share > 0 and self.roll(name, turn) < share

    def pick(self, name: str, options: Sequence[T], turn: int = 0) -> T:
        return options[self.whole(name, len(options), turn)]
