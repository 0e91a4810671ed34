"""The JSON Schemas of what is answered."""

from typing import Any, Final

from service.api.past_life import STEPS
from service.domain.errors import ErrorCode
from service.domain.job import FoundBy, Priority, Status
from service.domain.notice import STATES as NOTICE_STATES

Json = dict[str, Any]

STATUSES: Final = tuple(status.value for status in Status)


def _or_null(schema: Json) -> Json:
    return {"anyOf": [schema, {"type": "null"}]}


def _object(properties: Json) -> Json:
    """All of them are always there."""
    return {"type": "object", "properties": properties, "required": list(properties)}


_TEXT: Final[Json] = {"type": "string"}
_WHOLE: Final[Json] = {"type": "integer"}
_INSTANT: Final[Json] = {"type": "string", "format": "date-time", "description": "UTC, with milliseconds"}
_TEXT_OR_NULL: Final = _or_null(_TEXT)
_INSTANT_OR_NULL: Final = _or_null(_INSTANT)

_IMAGE: Final = _object(
    {
        "bucket": _TEXT,
        "key": _TEXT,
        "sha256": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
        "bytes": _WHOLE,
        "width": _WHOLE,
        "height": _WHOLE,
        "content_type": {"enum": ["image/jpeg", "image/png", "image/webp"]},
        "seed": _or_null(_WHOLE),
    }
)
_ERROR: Final = _object(
    {"code": {"enum": [code.value for code in ErrorCode]}, "message": _TEXT, "retryable": {"type": "boolean"}}
)
_JOB: Final = _object(
    {
        "id": _TEXT,
        "status": {"enum": list(STATUSES)},
        "model": _TEXT,
        "request": {"type": "object", "description": "As accepted; of a base64 image its key, SHA-256 and size"},
        "priority": {"enum": [priority.value for priority in Priority]},
        "caller": _TEXT,
        "batch_id": _TEXT_OR_NULL,
        "custom_id": _TEXT_OR_NULL,
        "metadata": {"type": "object"},
        "callback_url": _TEXT_OR_NULL,
        "retry_of": _TEXT_OR_NULL,
        "created_at": _INSTANT,
        "submitted_at": _INSTANT_OR_NULL,
        "ready_at": _INSTANT_OR_NULL,
        "finished_at": _INSTANT_OR_NULL,
        "provider_id": _TEXT_OR_NULL,
        "attempts": _WHOLE,
        "possible_duplicate": {
            "type": "boolean",
            "description": "A second purchase was risked, after an unknown outcome",
        },
        "unsettled": {
            "type": "boolean",
            "description": "An attempt may still run at the provider, or nobody ever heard whether it was accepted",
        },
        "found_by": _or_null({"enum": [found_by.value for found_by in FoundBy]}),
        "cost": _or_null({"type": "number", "description": "In the provider's credits"}),
        "image": _or_null(_IMAGE),
        "error": _or_null(_ERROR),
    }
)
_BATCH: Final = _object(
    {
        "id": _TEXT,
        "status": {"enum": ["running", "completed", "cancelled"]},
        "caller": _TEXT,
        "metadata": {"type": "object"},
        "callback_url": _TEXT_OR_NULL,
        "retry_of": _TEXT_OR_NULL,
        "created_at": _INSTANT,
        "finished_at": _or_null(_INSTANT | {"description": "Once its manifest and its marker are in the bucket"}),
        "total": _WHOLE,
        "counts": _object(dict.fromkeys(STATUSES, _WHOLE)),
        "progress": {"type": "number", "minimum": 0, "maximum": 1},
        "eta_s": _or_null(_WHOLE | {"description": "At the pace so far"}),
        "manifest_key": _TEXT,
    }
)
_PROBLEM: Final[Json] = {
    "type": "object",
    "description": "RFC 9457",
    "required": ["type", "title", "status", "detail", "code"],
    "properties": {
        "type": _TEXT,
        "title": _TEXT,
        "status": _WHOLE,
        "detail": _TEXT,
        "code": {"type": "string", "description": "Stable: branch on it"},
        "request_id": _TEXT,
        "job_id": _TEXT,
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "line": {"type": "integer", "description": "Of a batch, from 1"},
                    "pointer": _TEXT,
                    "detail": _TEXT,
                },
            },
        },
        "more_lines": {"type": "array", "items": _WHOLE, "description": "Bad lines of a batch beyond the first 1,000"},
        "batch_id": _TEXT,
    },
}
_LOG: Final = _object(
    {
        "events": {
            "type": "array",
            "items": _object(
                {
                    "at": _INSTANT,
                    "status": {"enum": list(STATUSES)},
                    "from": _or_null({"enum": list(STATUSES)}),
                    "reason": {"type": "string", "description": "What happened: the name of an event"},
                    "by": _or_null({"type": "string", "description": "The process that wrote it"}),
                    "detail": _TEXT_OR_NULL,
                }
            ),
        },
        "next": _or_null(
            _object(
                {
                    "at": _INSTANT,
                    "what": {"enum": list(STEPS)},
                    "paused": {"type": "array", "items": _TEXT, "description": "Why nothing is submitted just now"},
                    "suspect": _or_null(
                        _object({"crashes": {**_WHOLE, "description": "How often it has crashed when it ran alone"}})
                    ),
                }
            )
        ),
    }
)
_NOTIFICATION: Final = _object(
    {
        "webhook_id": {"type": "string", "description": "The same in each try, and in `webhook-id`"},
        "state": {"enum": list(NOTICE_STATES)},
        "next_at": _INSTANT_OR_NULL,
        "attempts": {
            "type": "array",
            "items": _object(
                {
                    "at": _INSTANT,
                    "status": _or_null({"type": "integer", "description": "What the receiver answered"}),
                    "error": _or_null({"type": "string", "description": "Why no answer came: a word"}),
                    "duration_s": {"type": "number"},
                }
            ),
        },
    }
)
_CHECK: Final[Json] = {"type": "object", "required": ["ok"], "properties": {"ok": {"type": "boolean"}, "detail": _TEXT}}

SCHEMAS: Final[dict[str, Json]] = {
    "Job": _JOB,
    "JobPage": _object(
        {"jobs": {"type": "array", "items": {"$ref": "#/components/schemas/Job"}}, "next_cursor": _TEXT_OR_NULL}
    ),
    "Batch": _BATCH,
    "BatchPage": _object(
        {"batches": {"type": "array", "items": {"$ref": "#/components/schemas/Batch"}}, "next_cursor": _TEXT_OR_NULL}
    ),
    "Log": _LOG,
    "Notification": _NOTIFICATION,
    "Problem": _PROBLEM,
    "Readiness": _object({"status": _TEXT, "checks": {"type": "object", "additionalProperties": _CHECK}}),
}
