"""Answers that are read piece by piece, and taken up again where they were cut: events, and the lines of a manifest.

A reading makes the request, understands the bytes, and judges each end; whoever owns the socket does the rest.
"""

import json
import re
from typing import Any, Final, Generic, TypeVar, cast

from .core import Answer, Ask, Lost, Patience, again, path_of, redirected
from .errors import ServiceError, Unreachable
from .shapes import BATCH_ENDED, ENDED, Event, Job

T = TypeVar("T")

SILENCE_S: Final = 30.0  # the service sends a heartbeat every 15 s
LINE_BYTES_MAX: Final = 4 * 2**20  # a job with its request, in one line: as large as a sidecar may be
_END: Final = re.compile(rb"\r\n|\r(?!\Z)|\n")  # a CR at the end of a piece may be half of a CRLF


class Lines:
    """Whole lines out of pieces of bytes, ended by LF, CR or CRLF. ServiceError: one that does not end."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, piece: bytes) -> list[str]:
        *lines, self._rest = _END.split(self._rest + piece)
        if len(self._rest) > LINE_BYTES_MAX:
            raise ServiceError(200, "not_understood", "A line does not end.")
        return [line.decode("utf-8", "replace") for line in lines]


class Reading(Generic[T]):
    """`over`: there is nothing more to read. Raises Unreachable when nothing has come for the whole of the patience."""

    def __init__(self, path: str, patience: Patience) -> None:
        self.over = False
        self._path = self._home = path
        self._patience = patience
        self._lines = Lines()
        self._tries, self._gap_s = 0, 0.0
        self._until = patience.clock() + patience.total_s

    def ask(self) -> Ask:
        self._lines = Lines()
        return Ask("GET", self._path, headers=self.headers(), after_s=self._gap_s, slow_s=SILENCE_S)

    def feed(self, piece: bytes) -> list[T]:
        """What these bytes complete."""
        found = [each for line in self._lines.feed(piece) for each in self.line(line)]
        self._until = self._patience.clock() + self._patience.total_s
        if found:  # not for a heartbeat: a stream that always ends at once is opened in growing gaps
            self._tries = 0
        return found

    def refused(self, answer: Answer) -> None:
        """An answer that is no stream. Raises ServiceError if it is final."""
        if target := redirected(answer):
            self._path, self._gap_s = target, 0.0
        elif answer.status == 204:
            self.over = True
        elif again(answer) or not self._at_home:
            self._come_again(answer)
        else:
            raise ServiceError.of(answer.status, answer.body)

    def cut(self, why: str) -> None:
        if not self.over:
            self._come_again(Lost(why))

    def headers(self) -> dict[str, str]:
        return {}

    def line(self, text: str) -> list[T]:
        raise NotImplementedError

    def ended(self) -> None:
        """The answer is whole."""
        raise NotImplementedError

    @property
    def _at_home(self) -> bool:
        return self._path == self._home

    def _come_again(self, reply: Answer | Lost) -> None:
        self._path = self._home  # the bucket's link may have died
        self._tries += 1
        self._gap_s = self._patience.gap_s(self._tries, reply)
        if self._patience.clock() + self._gap_s > self._until:
            if isinstance(reply, Answer):
                raise ServiceError.of(reply.status, reply.body)
            raise Unreachable(f"The stream does not come back: {reply.why}")


class Events(Reading[Event]):
    """Server-sent events (WHATWG, section 9.2), from behind `after` on. The stream of a job or a batch ends with it."""

    def __init__(self, id_: str | None, patience: Patience, after: str | None) -> None:
        kind = "batches" if id_ and id_.startswith("batch_") else "jobs"
        super().__init__(path_of(kind, id_, "events") if id_ else "/v1/events", patience)
        self._of = id_
        self._last = after or ""
        self._fields: dict[str, str] = {}

    def ask(self) -> Ask:
        self._fields = {}
        return super().ask()

    def headers(self) -> dict[str, str]:
        return {"Accept": "text/event-stream"} | ({"Last-Event-ID": self._last} if self._last else {})

    def line(self, text: str) -> list[Event]:
        if text == "":
            fields, self._fields = self._fields, {}
            return self._event(fields) if "data" in fields else []
        name, _, value = text.partition(":")
        value = value.removeprefix(" ")
        if name == "data" and "data" in self._fields:
            value = f"{self._fields['data']}\n{value}"
        self._fields[name] = value
        return []

    def ended(self) -> None:
        self.cut("it ended")

    def _event(self, fields: dict[str, str]) -> list[Event]:
        self._last = fields.get("id", self._last)
        data = _json(fields["data"])
        event = Event(self._last, fields.get("event", "message"), data if isinstance(data, dict) else {})
        self.over = event.data.get("id") == self._of and str(event.data.get("status")) in ENDED | BATCH_ENDED
        return [event]


class Manifest(Reading[Job]):
    """The lines of a batch's manifest, each once, although a cut answer is read again from its beginning."""

    def __init__(self, batch_id: str, patience: Patience) -> None:
        super().__init__(path_of("batches", batch_id, "manifest"), patience)
        self._seen: set[str] = set()

    def line(self, text: str) -> list[Job]:
        told = _json(text)
        job_id = told.get("id") if isinstance(told, dict) else None
        if not isinstance(job_id, str) or job_id in self._seen:
            return []
        self._seen.add(job_id)
        return [cast("Job", told)]

    def ended(self) -> None:
        self.over = True


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
