"""What a person sees, and what a program reads: tables and a moving line on a terminal, JSON anywhere else."""

import json
import shutil
import sys
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, TextIO

BAR_CHARS: Final = 24
GAP: Final = "  "
ERASE: Final = "\r\033[K"
UNITS: Final = ((86_400, "d"), (3_600, "h"), (60, "min"))


class Screen:
    """`pretty`: a person reads. The moving line is on standard error, so that what is piped stays clean."""

    def __init__(self, *, json_asked: bool, out: TextIO | None = None, err: TextIO | None = None) -> None:
        self._out, self._err = out or sys.stdout, err or sys.stderr
        self.pretty = self._out.isatty() and not json_asked
        self.moving = self._err.isatty() and not json_asked

    def tell(self, told: Mapping[str, Any], lines: Iterable[str]) -> None:
        """One thing: its lines for a person, itself in one line for a program."""
        self.say(lines if self.pretty else [json.dumps(told)])

    def say(self, lines: Iterable[str]) -> None:
        for line in lines:
            print(line, file=self._out, flush=True)

    def complain(self, *lines: str) -> None:
        self.clear()
        for line in lines:
            print(line, file=self._err, flush=True)

    def move(self, text: str) -> None:
        """Write the moving line anew."""
        if self.moving:
            print(ERASE + clip(text, columns() - 1), end="", file=self._err, flush=True)

    def clear(self) -> None:
        if self.moving:
            print(ERASE, end="", file=self._err, flush=True)


def plain(text: object) -> str:
    """Strangers' text for a terminal: nothing in it moves the cursor, turns the line or opens a link."""
    return "".join("�" if unicodedata.category(c)[0] == "C" else c for c in " ".join(str(text).split()))


def clip(text: str, most: int) -> str:
    return text if len(text) <= most else text[: max(0, most - 1)] + "…"


def row(cells: Sequence[object], widths: Sequence[int]) -> str:
    """Cells of fixed widths; the last one takes what is left of the line."""
    fixed = [clip(plain(cell), width).ljust(width) for cell, width in zip(cells, widths, strict=False)]
    rest = [plain(cell) for cell in cells[len(widths) :]]
    return clip(GAP.join([*fixed, *rest]).rstrip(), columns())


def bar(share: float) -> str:
    full = round(BAR_CHARS * min(1.0, max(0.0, share)))
    return "█" * full + "░" * (BAR_CHARS - full)


def duration(seconds: float) -> str:
    """`0.42 s`, `12 s`, `3.5 min`, `1.2 h`, `4 d`."""
    for size_s, unit in UNITS:
        if seconds >= size_s:
            return f"{seconds / size_s:.3g} {unit}"
    return f"{round(seconds, 2):.2g} s" if seconds < 10 else f"{seconds:.0f} s"


def columns() -> int:
    return shutil.get_terminal_size().columns
