"""The job as the provider would tell of it: for clients that speak the provider's API to us."""

from collections.abc import Mapping
from typing import Any

from service.domain.errors import ErrorCode
from service.domain.instants import epoch_ms
from service.domain.job import Status

Told = dict[str, Any]


def state(told: Mapping[str, Any], link: str | None) -> Told:
    """`told`: a view of the job, or its sidecar; `link`: where its image may be had, if it succeeded."""
    made: Told = {"id": told["id"], "result": None, "progress": None, "details": None, "preview": None}
    error = told["error"] or {}
    match told["status"]:
        case Status.SUCCEEDED:
            return made | {"status": "Ready", "progress": 1.0, "result": _result(told, link)}
        case Status.FAILED if error.get("code") == ErrorCode.MODERATED:
            return made | {"status": "Content Moderated", "details": {"Moderation Reasons": [error["message"]]}}
        case Status.FAILED:
            return made | {"status": "Error", "details": {"code": error.get("code"), "error": error.get("message")}}
        case Status.CANCELLED:
            return made | {"status": "Error", "details": {"code": "cancelled", "error": "The job was cancelled."}}
    return made | {"status": "Pending"}


def _result(told: Mapping[str, Any], link: str | None) -> Told:
    start, end = (epoch_ms(told[when] or told["created_at"]) / 1000 for when in ("submitted_at", "ready_at"))
    return {
        "sample": link,
        "prompt": told["request"].get("prompt"),
        "seed": told["image"]["seed"],
        "start_time": start,
        "end_time": end,
        "duration": end - start,
    }
