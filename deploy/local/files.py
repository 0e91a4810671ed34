"""Small files that the embedded stack remembers itself by: passwords, ports, configurations."""

import os
from collections.abc import Callable
from pathlib import Path


def keep(file: Path, fresh: Callable[[], str]) -> str:
    """What the file says; if it is not there yet, `fresh()`, which it says from now on."""
    if not file.exists():
        write(file, fresh())
    return file.read_text()


def write(file: Path, text: str) -> None:
    """Readable by its owner alone from the first byte on; killed half-way, the old text stands."""
    draft = file.with_name(f"{file.name}.new")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as output:
        output.write(text)
    draft.replace(file)
