"""Logs: one JSON object a line, to standard error, without secrets.

    {"at": "2026-11-22T22:04:05.678Z", "level": "warning", "logger": "…", "message": "…", …fields from `extra`…}

Every text, an exception's too, goes through `redaction.clean`: callback paths, URL queries, bearer tokens and whatever
is named like a secret are gone from it, and nothing is longer than 500 characters. A `Secret` shows as `Secret(…)`.
"""

import json
import logging
import math
import re
import sys
import traceback
from contextvars import ContextVar
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Final, TextIO

from service.domain.instants import rfc3339
from service.domain.redaction import clean

# Set by the HTTP side for the time of one request; a line logged meanwhile carries it.
request_id: ContextVar[str | None] = ContextVar("request_id", default=None)

# They speak of every request, connection and job, some with addresses and arguments.
LOUD: Final = ("asyncio", "boto3", "botocore", "httpcore", "httpx", "rq", "s3transfer", "urllib3", "uvicorn")
OWN_FIELDS: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}
FRAMES_MAX: Final = 12
ESCAPED_SLASH: Final = re.compile(r"\\+/")  # JSON may spell a URL with `\/`, which would end it for the rules


def configure(level: str, stream: TextIO | None = None) -> None:
    """Make this the process's only logging. Give uvicorn `log_config=None`, or it puts its own back."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines())
    logging.raiseExceptions = False  # a line that cannot be written must not print its arguments instead
    logging.captureWarnings(True)
    for name in list(logging.root.manager.loggerDict):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
        if name.partition(".")[0] in LOUD:
            logging.getLogger(name).setLevel(logging.NOTSET)  # some set their own: rq.worker says INFO when imported
    for name in LOUD:
        logging.getLogger(name).setLevel(logging.WARNING)
    access = logging.getLogger("uvicorn.access")  # prints paths, and a callback's path is a secret
    access.propagate = False
    access.disabled = True
    logging.root.handlers[:] = [handler]
    logging.root.setLevel(level.upper())


class JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "at": rfc3339(int(record.created * 1000)),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _safe(_message(record)),
        }
        if (request := request_id.get()) is not None:
            line["request_id"] = _safe(request)
        line |= {name: _plain(name, value) for name, value in vars(record).items() if name not in OWN_FIELDS}
        if record.exc_info and record.exc_info[1] is not None:
            line["error"] = _error(record.exc_info[1])
        return json.dumps(line, ensure_ascii=False)


def _safe(text: str) -> str:
    return clean(ESCAPED_SLASH.sub("/", text))


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except (TypeError, ValueError, KeyError):  # arguments that do not fit: say the pattern at least
        return str(record.msg)


def _plain(name: str, value: object) -> bool | float | str | None:
    """Numbers as they are, all else as clean text: cleaned behind its name, which may say that it is a secret."""
    if value is None or isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return _safe(f"{name}={value}").removeprefix(f"{name}=")


def _error(error: BaseException) -> dict[str, Any]:
    """Type, message and places; no source lines and no values, which could be secrets."""
    kind = type(error)
    return {
        "type": f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins."),
        "message": _safe(str(error)),
        "trace": _places(error.__traceback__),
        **({"cause": _error(error.__cause__)} if error.__cause__ is not None else {}),
    }


def _places(trace: TracebackType | None) -> list[str]:
    """The innermost calls last: `api/jobs.py:41 create`."""
    frames = [(frame.f_code, line) for frame, line in traceback.walk_tb(trace)]
    inner = islice(frames, max(0, len(frames) - FRAMES_MAX), None)
    return [f"{'/'.join(Path(code.co_filename).parts[-2:])}:{line} {code.co_name}" for code, line in inner]
