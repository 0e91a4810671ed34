"""The document matches what is served, and its schemas say what the catalogue checks."""

import json
import re
from typing import Any

import pytest
from boto3.session import Session  # type: ignore[import-untyped]  # boto3 has no py.typed
from starlette.routing import Route

from service.api import docs, openapi, shapes
from service.api.app import build
from service.api.flux import OPERATIONS as FLUX
from service.api.images import OPERATION as IMAGES
from service.api.notifications import OPERATIONS as NOTIFICATIONS
from service.clock import SystemClock
from service.domain import catalogue
from service.domain.job import Job
from service.domain.view import view
from service.storage.bucket import Bucket
from tests.serving import NOWHERE, settings_of

ALL = (
    *openapi.HEALTH,
    openapi.METRICS,
    openapi.CALLBACK,
    *openapi.API,
    *NOTIFICATIONS,
    *openapi.BATCHES,
    *openapi.ABOUT_ITSELF,
)


@pytest.fixture
def document() -> dict[str, Any]:
    made = openapi.document(ALL, ["flux-next"])
    assert json.loads(json.dumps(made)) == made
    return made


def test_every_route_is_described_and_every_description_served() -> None:
    bucket = Bucket(NOWHERE, Session("key", "secret", region_name="us-east-1"))
    app = build(settings_of("redis://127.0.0.1:9/0"), SystemClock(), bucket).app
    routes = [route for route in app.routes if isinstance(route, Route)]
    served = {(method.lower(), route.path) for route in routes for method in route.methods or () if method != "HEAD"}
    foreign = {(operation.method, operation.path) for operation in (*FLUX, IMAGES)}  # their clients describe those
    assert served == {(operation.method, operation.path) for operation in ALL} | foreign


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    for name in re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(document)):
        assert name in document["components"]["schemas"], name


def test_every_model_can_be_ordered(document: dict[str, Any]) -> None:
    mapping = document["components"]["schemas"]["Order"]["discriminator"]["mapping"]
    assert set(mapping) == {*catalogue.MODELS, "flux-next"}
    for name in mapping:
        model = document["components"]["schemas"][name]["properties"]["model"]
        assert model.get("const", name) == name


def test_operation_ids_are_unique(document: dict[str, Any]) -> None:
    ids = [operation["operationId"] for methods in document["paths"].values() for operation in methods.values()]
    assert len(ids) == len(set(ids))


def test_a_job_has_exactly_the_described_fields() -> None:
    job = view(Job(id="job_x", caller="alice", model="flux-dev", request={}))
    assert set(job) == set(shapes.SCHEMAS["Job"]["properties"]) == set(shapes.SCHEMAS["Job"]["required"])


def test_the_page_names_every_path_and_loads_nothing(document: dict[str, Any]) -> None:
    page = docs.page(document)
    assert all(f"<code>{path}</code>" in page for path in document["paths"])
    assert not re.search(r"<script|<link|<img|src=|url\(", page)


def test_the_page_tells_of_the_foreign_interfaces(document: dict[str, Any]) -> None:
    page = docs.page(document)
    served = {
        operation.path.replace(":str", "") for operation in (*FLUX, IMAGES) if operation.path != "/v1/{model:str}"
    }
    told = set(re.findall(r"<code>(?:GET|POST) ([^<?]+)[^<]*</code>", page))
    assert {path for path in served if path != "/v1/get_result"} == told


def test_foreign_words_cannot_become_markup(document: dict[str, Any]) -> None:
    document["info"]["description"] = "<script>alert(1)</script>"
    assert "<script>" not in docs.page(document)
