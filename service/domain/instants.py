"""How instants are told: epoch milliseconds inside, RFC 3339 outside."""

from datetime import UTC, datetime, timedelta
from typing import Final

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def rfc3339(ms: int) -> str:
    """UTC with milliseconds: `2026-11-22T22:04:05.678Z`. Raises OverflowError outside the years 1 to 9999."""
    return (EPOCH + timedelta(milliseconds=ms)).strftime("%Y-%m-%dT%H:%M:%S.") + f"{ms % 1000:03d}Z"


def epoch_ms(text: str) -> int:
    """Undo `rfc3339`. ValueError for anything else."""
    at = datetime.strptime(text, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC)
    return (at - EPOCH) // timedelta(milliseconds=1)
