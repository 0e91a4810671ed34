"""The provider's memory beyond its own life: a file with a JSON line for each task accepted, ended, settled.

A line is the kernel's before anything is answered, so whatever kills the process takes no task along. It is not
fsynced: a machine that loses its power may forget the last seconds, which a rehearsal may.
"""

import errno
import json
import os
import secrets
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from deploy.local.files import write

FORGOTTEN_AFTER_S = 86_400.0
"""The file is cut down to what is younger, at each start alone."""

Record = dict[str, Any]
"""What is known of one task: its `id`, when it was `accepted_at` (seconds since 1970), and whatever else it notes."""


class JournalError(ValueError):
    """The file is something else, which must not be written over."""


class Journal:
    """`records` (oldest first) and `url_key` are as the process before left them.

    Killed at any moment, the file holds each line that was noted, and at most a piece of one more: nobody was answered
    for that one, and the next start drops it with a word on stderr. Prompts and webhook secrets stand in the file, so
    it is its owner's alone.
    """

    def __init__(self, file: Path, now: float) -> None:
        """Raises JournalError, or OSError."""
        self._file = file
        self.url_key, records = _read(file)
        self.records = [record for record in records if record["accepted_at"] > now - FORGOTTEN_AFTER_S]
        self._begin(self.records)

    def note(self, change: Record) -> None:
        """Add to the record of `change["id"]`, or begin it. OSError: nothing was added."""
        line = _line(change)
        end = os.fstat(self._out).st_size
        if os.write(self._out, line) < len(line):
            os.ftruncate(self._out, end)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._file))

    def empty(self) -> None:
        os.close(self._out)
        self._begin([])

    def close(self) -> None:
        os.close(self._out)

    def _begin(self, records: Iterable[Record]) -> None:
        """A file of these alone, in the place of the old one; killed half-way, the old one stands."""
        lines = [_line({"url_key": self.url_key.hex()}), *map(_line, records)]
        write(self._file, b"".join(lines).decode())
        self._out = os.open(self._file, os.O_WRONLY | os.O_APPEND)


def _read(file: Path) -> tuple[bytes, list[Record]]:
    text = file.read_bytes() if file.exists() else b""
    if not text:
        return secrets.token_bytes(32), []
    *lines, cut = text.split(b"\n")
    if cut:
        print(f"{file}: its last line was cut off in the writing, and is dropped", file=sys.stderr, flush=True)
    try:
        head, *changes = map(json.loads, lines)
        records: dict[str, Record] = {}
        for change in changes:
            records.setdefault(change["id"], {}).update(change)
        return bytes.fromhex(head["url_key"]), list(records.values())
    except (ValueError, LookupError, TypeError) as wrong:
        told = f"{file} is not the journal of a rehearsal, or was damaged; without it all that was bought is forgotten"
        raise JournalError(f"{told}: mend it, or move it away") from wrong


def _line(record: Record) -> bytes:
    return json.dumps(record).encode() + b"\n"
