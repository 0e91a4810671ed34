"""The interface described: OpenAPI 3.1, from the catalogue's own schemas, and a page that shows it without a script."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from service.api import docs, shapes
from service.api.about import ABOUT
from service.domain import catalogue
from service.domain.batch import LINES_MOST
from service.domain.inputs import WEB_URL
from service.domain.rules import Extras

Json = dict[str, Any]

VERSION: Final = "1"
PROBLEM: Final = "application/problem+json"


@dataclass(frozen=True, slots=True)
class Operation:
    """One row of the interface. `answers`: status → (sentence, JSON schema or media type or None)."""

    method: str
    path: str
    name: str
    summary: str
    answers: Mapping[int, tuple[str, Json | str | None]]
    parameters: tuple[Json, ...] = ()
    body: Json | None = None
    rows: str | None = None  # what the body may be instead: lines of NDJSON
    secured: bool = True
    problems: Mapping[int, str] = field(default_factory=dict)


def ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def query(name: str, schema: Json, about: str) -> Json:
    return {"name": name, "in": "query", "schema": schema, "description": about}


def header(name: str, schema: Json, about: str) -> Json:
    return {"name": name, "in": "header", "schema": schema, "description": about}


JOB: Final = ref("Job")
WAIT: Final = header("Prefer", {"type": "string"}, "`wait=N`: up to N seconds (at most 60) for the job's end")
KEY: Final = header(
    "Idempotency-Key", {"type": "string", "minLength": 1, "maxLength": 255}, "Same key and body: the same job, for 24 h"
)
LAST: Final = header("Last-Event-ID", {"type": "string"}, "Continue after this event")
STREAM: Final = "text/event-stream"
NDJSON: Final = "application/x-ndjson"
BATCH_ID: Final = "^batch_[0-6][0-9A-HJKMNP-TV-Z]{25}$"
UNKNOWN: Final = {404: "not_found"}
STATUS: Final = query("status", {"enum": list(shapes.STATUSES)}, "Only jobs in this state")
PAGE: Final = (
    query("limit", {"type": "integer", "minimum": 1, "maximum": 200, "default": 50}, "How many"),
    query("cursor", {"type": "string"}, "`next_cursor` of the page before"),
)

API: Final = (
    Operation(
        "post",
        "/v1/jobs",
        "createJob",
        "Order an image",
        {202: ("Accepted", JOB), 200: ("Ended within the wait, or known by its key", JOB)},
        (KEY, WAIT),
        body=ref("Order"),
        problems={
            400: "invalid_json",
            404: "not_found",
            408: "body_too_slow",
            409: "idempotency_conflict",
            413: "body_too_large",
            422: "invalid_request",
            429: "backlog_full",
        },
    ),
    Operation(
        "get",
        "/v1/jobs",
        "listJobs",
        "Jobs, newest first",
        {200: ("A page", ref("JobPage"))},
        (
            STATUS,
            query("batch", {"type": "string", "pattern": BATCH_ID}, "Only jobs of this batch"),
            *PAGE,
        ),
        problems={422: "invalid_request"},
    ),
    Operation("get", "/v1/jobs/{job_id}", "getJob", "One job", {200: ("The job", JOB)}, (WAIT,), problems=UNKNOWN),
    Operation(
        "delete",
        "/v1/jobs/{job_id}",
        "deleteJob",
        "Delete an ended job with its image, sidecar and inputs",
        {204: ("Deleted, now or before", None)},
        problems=UNKNOWN | {409: "not_ended"},
    ),
    Operation(
        "post",
        "/v1/jobs/{job_id}/cancel",
        "cancelJob",
        "Want it no more",
        {200: ("Cancelled", JOB)},
        problems=UNKNOWN | {409: "already_ended"},
    ),
    Operation(
        "post",
        "/v1/jobs/{job_id}/retry",
        "retryJob",
        "A new job for a failed or cancelled one; what was bought is not bought again",
        {202: ("The new job", JOB), 200: ("The retry that it has already", JOB)},
        (query("rerun", {"type": "boolean", "default": False}, "Buy again if what was bought no longer serves"),),
        problems=UNKNOWN | {409: "not_retryable", 422: "invalid_request"},
    ),
    Operation(
        "get",
        "/v1/jobs/{job_id}/image",
        "getImage",
        "A link to the image, made at this moment",
        {307: ("To the bucket", None)},
        problems=UNKNOWN | {409: "not_ready"},
    ),
    Operation(
        "get",
        "/v1/jobs/{job_id}/log",
        "getLog",
        "The job's life so far, and what it waits for",
        {200: ("Its log, oldest first", ref("Log"))},
        problems=UNKNOWN,
    ),
    Operation(
        "get",
        "/v1/jobs/{job_id}/events",
        "streamJob",
        "The job's transitions, until its last",
        {200: ("Server-sent events", STREAM), 204: ("All of them had been sent", None)},
        (LAST,),
        problems=UNKNOWN,
    ),
    Operation(
        "get",
        "/v1/events",
        "streamEvents",
        "The transitions of all the caller's jobs",
        {200: ("Server-sent events", STREAM)},
        (LAST,),
    ),
)
BATCH: Final = ref("Batch")
BATCHES: Final = (
    Operation(
        "post",
        "/v1/batches",
        "createBatch",
        "Order many images at once: all of them are taken, or none",
        {202: ("Accepted", BATCH), 200: ("Known by its key", BATCH)},
        (
            KEY,
            query("callback_url", {"type": "string", "pattern": WEB_URL}, "If the body cannot say it"),
            query("metadata", {"type": "string", "contentMediaType": "application/json"}, "The same, in JSON"),
        ),
        body=ref("BatchOrder"),
        rows="A job a line, as in `jobs`: at most 50,000 lines and 200 MB",
        problems={
            400: "invalid_json",
            404: "not_found",
            408: "body_too_slow",
            409: "idempotency_conflict, or in_progress",
            413: "body_too_large",
            415: "unsupported_media_type",
            422: "invalid_request",
            429: "backlog_full",
        },
    ),
    Operation(
        "get",
        "/v1/batches",
        "listBatches",
        "Batches, newest first",
        {200: ("A page", ref("BatchPage"))},
        PAGE,
        problems={422: "invalid_request"},
    ),
    Operation(
        "get", "/v1/batches/{batch_id}", "getBatch", "One batch", {200: ("It", BATCH)}, (WAIT,), problems=UNKNOWN
    ),
    Operation(
        "get",
        "/v1/batches/{batch_id}/jobs",
        "listBatchJobs",
        "Its jobs, in the order of its lines",
        {200: ("A page", ref("JobPage"))},
        (STATUS, *PAGE),
        problems=UNKNOWN | {409: "not_kept", 422: "invalid_request"},
    ),
    Operation(
        "get",
        "/v1/batches/{batch_id}/manifest",
        "getManifest",
        "Its jobs that have ended, a line each, in the order of its lines",
        {200: ("Those so far", NDJSON), 307: ("All have ended: a link that was signed at this moment", None)},
        problems=UNKNOWN,
    ),
    Operation(
        "post",
        "/v1/batches/{batch_id}/cancel",
        "cancelBatch",
        "Want no more of it",
        {200: ("Cancelled", BATCH)},
        problems=UNKNOWN | {409: "already_ended"},
    ),
    Operation(
        "post",
        "/v1/batches/{batch_id}/retry",
        "retryBatch",
        "A new batch of its jobs that failed",
        {202: ("The new batch", BATCH), 200: ("It was retried before: that batch", BATCH)},
        problems=UNKNOWN | {409: "not_ended, or not_retryable"},
    ),
    Operation(
        "get",
        "/v1/batches/{batch_id}/events",
        "streamBatch",
        "The transitions of its jobs from the first on, and its end",
        {200: ("Server-sent events", STREAM), 204: ("All had been sent", None)},
        (LAST,),
        problems=UNKNOWN,
    ),
)
CALLBACK: Final = Operation(
    "post",
    "/webhooks/flux/{job_id}/{token}",
    "receiveCallback",
    "The provider's callback",
    {204: ("Recorded, or nothing new", None)},
    secured=False,
    body={},
    problems={401: "wrong_proof", 404: "not_found", 408: "body_too_slow", 413: "body_too_large"},
)
HEALTH: Final = (
    Operation("get", "/healthz", "healthz", "The process is up", {200: ("It is", {"type": "object"})}, secured=False),
    Operation(
        "get",
        "/readyz",
        "readyz",
        "What it needs is there",
        {200: ("Ready", ref("Readiness")), 503: ("Not ready", ref("Readiness"))},
        secured=False,
    ),
)
METRICS: Final = Operation(
    "get", "/metrics", "metrics", "For Prometheus", {200: ("Figures", "text/plain")}, secured=False
)
ABOUT_ITSELF: Final = (
    Operation("get", "/openapi.json", "openapi", "This document", {200: ("It", {"type": "object"})}, secured=False),
    Operation("get", "/docs", "docs", "This document to read", {200: ("A page", "text/html")}, secured=False),
)


def document(operations: Iterable[Operation], extra_models: Iterable[str] = ()) -> Json:
    """`extra_models`: what the operator allows besides the catalogue."""
    paths: dict[str, Json] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method] = _operation(operation)
    return {
        "openapi": "3.1.0",
        "info": {"title": "darkroom", "version": VERSION, "description": ABOUT},
        "paths": paths,
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": shapes.SCHEMAS | _orders(extra_models),
        },
    }


def _orders(extra_models: Iterable[str]) -> dict[str, Json]:
    models = catalogue.json_schemas() | {name: _named(name) for name in extra_models}
    mapping = {name: f"#/components/schemas/{name}" for name in models}
    order = {
        "oneOf": [ref(name) for name in models],
        "discriminator": {"propertyName": "model", "mapping": mapping},
    }
    return {"Order": order, **models, **_batch(extra_models)}


def _batch(extra_models: Iterable[str]) -> dict[str, Json]:
    """A line is an order that may have a name of its own."""
    models = catalogue.json_schemas(allow_custom_id=True)
    models |= {name: _named(name, allow_custom_id=True) for name in extra_models}
    line = {"oneOf": list(models.values())}
    properties = {
        "jobs": {"type": "array", "minItems": 1, "maxItems": LINES_MOST, "items": ref("Line")},
        **Extras.model_json_schema()["properties"],
    }
    whole = {"type": "object", "properties": properties, "required": ["jobs"], "additionalProperties": False}
    return {"BatchOrder": whole, "Line": line}


def _named(model: str, *, allow_custom_id: bool = False) -> Json:
    schema = catalogue.schema(model, allow_custom_id=allow_custom_id)
    schema["properties"]["model"] = {"const": model}
    return schema


def _operation(operation: Operation) -> Json:
    made: Json = {
        "operationId": operation.name,
        "summary": operation.summary,
        "parameters": [*_path_parameters(operation.path), *operation.parameters],
        "responses": _responses(operation),
        "security": [{"token": []}] if operation.secured else [],
    }
    if operation.body is not None:
        content: Json = {"application/json": {"schema": operation.body}}
        if operation.rows is not None:
            content[NDJSON] = {"schema": {"type": "string", "description": operation.rows}}
        made["requestBody"] = {"required": True, "content": content}
    return made


def _path_parameters(path: str) -> list[Json]:
    names = [part[1:-1] for part in path.split("/") if part.startswith("{")]
    return [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names]


def _responses(operation: Operation) -> Json:
    made: Json = {str(status): _response(*answer) for status, answer in operation.answers.items()}
    common = {401: "unauthorized", 503: "unavailable, or durability_unconfirmed"} if operation.secured else {}
    for status, code in (common | dict(operation.problems)).items():
        made[str(status)] = {"description": f"`{code}`", "content": {PROBLEM: {"schema": ref("Problem")}}}
    made["default"] = {"description": "Any other problem", "content": {PROBLEM: {"schema": ref("Problem")}}}
    return made


def _response(sentence: str, content: Json | str | None) -> Json:
    match content:
        case None:
            return {"description": sentence}
        case "text/event-stream":  # 3.1 has no word for the shape of single events
            return {"description": sentence, "content": {STREAM: {}}}
        case str(media_type):
            return {"description": sentence, "content": {media_type: {"schema": {"type": "string"}}}}
        case schema:
            return {"description": sentence, "content": {"application/json": {"schema": schema}}}


class Description:
    """Both are made once: nothing in them depends on the caller."""

    def __init__(self, described: Json) -> None:
        self._described = described
        self._page = docs.page(described)

    async def show_json(self, _: Request) -> Response:
        return JSONResponse(self._described)

    async def show_page(self, _: Request) -> Response:
        return HTMLResponse(self._page, headers={"Content-Security-Policy": docs.POLICY})
