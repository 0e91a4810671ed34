"""The facts of a `make run` beside a command: where its parts are, and what opens them."""

import shlex
from pathlib import Path
from typing import Final

RUN_ENV: Final = Path(".local/run.env")


def run_facts(path: Path) -> dict[str, str]:
    """What `make run` wrote down: lines of NAME=value, quoted for a shell; nothing where there is none."""
    try:
        lines = path.read_text().splitlines()
        words = [word for line in lines for word in shlex.split(line, comments=True)]
    except (OSError, ValueError):
        return {}
    return dict(word.split("=", 1) for word in words if "=" in word)
