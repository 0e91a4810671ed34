"""The kinds of knob: how each is read from JSON, what it says of itself, and which mark in a prompt turns it on."""

from collections.abc import Callable
from dataclasses import Field, field
from typing import Any

COUNT_MAX = 1_000_000
SECONDS_MAX = 86_400.0

Read = Callable[[object], Any]
"""Turns a JSON value into a knob's value, or raises ValueError with what it should have been."""


class BadKnobError(ValueError):
    """A knob that does not exist, or a value that is not of its kind."""

    def __init__(self, knob: str, why: str, value: object) -> None:
        super().__init__(f"{knob}: {why}")
        self.knob, self.why, self.value = knob, why, value


def share(about: str, mark: str = "", default: float = 0.0) -> Any:
    return _knob(default, _number(1.0, "a share between 0 and 1"), about, mark=mark, share=True)


def seconds(default: float, about: str) -> Any:
    return _knob(default, _number(SECONDS_MAX, "seconds, 0 to a day"), about)


def count(default: int, about: str, low: int = 0) -> Any:
    def read(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= COUNT_MAX:
            raise ValueError(f"a whole number, {low} to {COUNT_MAX}")
        return value

    return _knob(default, read, about)


def choice(options: tuple[str, ...], about: str) -> Any:
    """One of `options`; the first is the default."""

    def read(value: object) -> str:
        if str(value) not in options:
            raise ValueError(f"one of {', '.join(options)}")
        return str(value)

    return _knob(options[0], read, f"{about}: {', '.join(options)}")


def read(knob: Field[Any], value: object) -> Any:
    """Raises BadKnobError."""
    try:
        return knob.metadata["read"](value)
    except ValueError as wrong:
        raise BadKnobError(knob.name, f"should be {wrong}", value) from wrong


def _number(limit: float, kind: str) -> Read:
    def read(value: object) -> float:
        if not isinstance(value, int | float) or not 0 <= value <= limit:
            raise ValueError(kind)
        return float(value)

    return read


def _knob(default: Any, read: Read, about: str, mark: str = "", *, share: bool = False) -> Any:
    return field(default=default, metadata={"read": read, "about": about, "mark": mark, "share": share})
