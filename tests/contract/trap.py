"""Must never be imported: entries of strangers name it."""

from pathlib import Path


def spring(path: str) -> None:
    Path(path).write_text("sprung")
