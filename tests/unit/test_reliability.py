"""The table of promises and faults names all of them, and each proof that it names exists."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
TEXT: Final = (ROOT / "deploy" / "RELIABILITY.md").read_text("utf-8")
ROWS: Final = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in TEXT.splitlines() if line[:1] == "|"]
NUMBERED: Final = [cells for cells in ROWS if re.match(r"[PF]\d", cells[0])]
PROOFS: Final = sorted(set(re.findall(r"`(tests/[\w./]+\.py(?:::\w+)?)`", TEXT)))


def named(text: str) -> Iterator[str]:
    """`F03`, `F01, F02`, or a range: each id in it."""
    for part in text.split(", "):
        first, _, last = part.partition("\N{EN DASH}")
        for number in range(int(first[1:]), int((last or first)[1:]) + 1):
            yield f"{first[0]}{number:02}"


def test_every_promise_and_every_fault_has_its_row_and_none_has_two() -> None:
    told = [each for cells in NUMBERED for each in named(cells[0])]
    assert sorted(told) == [f"F{number:02}" for number in range(1, 68)] + [f"P{number:02}" for number in range(1, 11)]


@pytest.mark.parametrize("cells", NUMBERED, ids=lambda cells: cells[0])
def test_every_row_says_what_happens_what_proves_it_and_what_was_printed(cells: list[str]) -> None:
    assert len(cells) == 5
    assert all(cells)
    assert re.search(r"`tests/[\w./]+\.py", cells[3])


@pytest.mark.parametrize("proof", PROOFS)
def test_every_proof_is_there(proof: str) -> None:
    file, _, name = proof.partition("::")
    assert (ROOT / file).is_file()
    assert not name or f"def {name}(" in (ROOT / file).read_text("utf-8")


def test_there_are_proofs() -> None:
    assert len(PROOFS) > 40
