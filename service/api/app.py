"""The composition root of the HTTP process: every part is built here, once, and handed to those who use it.

At shutdown, in this order: `begin_closing` (waiters answer, streams end), the server waits for what runs, then the
lifespan ends: reader, bells on their way, connections.
"""

import asyncio
import os
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, ExceptionHandler, Message, Receive, Scope, Send

from service.api import images, openapi, uploads, webhooks
from service.api.auth import Door
from service.api.batches import Batches
from service.api.checks import checks
from service.api.endings import Endings
from service.api.events import Events
from service.api.flux import OPERATIONS as FLUX
from service.api.flux import Flux
from service.api.guard import BodyGuard, BodyLimit, RequestId
from service.api.health import Health, MetricsPage
from service.api.jobs import Jobs
from service.api.listing import Listing
from service.api.notifications import OPERATIONS as NOTIFICATIONS
from service.api.notifications import Notifications
from service.api.orders import Orders
from service.api.past import Past
from service.api.past_batches import PastBatches
from service.api.past_life import PastLife
from service.api.problems import LastResort, exception_handlers, problem, unavailable
from service.api.reader import BLOCK_S, Reader
from service.api.reception import Reception
from service.api.routes import Row, routes
from service.api.uploads import Uploads
from service.api.waiting import Waiting
from service.clock import Clock
from service.intake import Intake
from service.metrics import Metrics
from service.preflight import Fitness
from service.recovery import Recovery
from service.seals import Seals
from service.settings import Settings
from service.storage.bell import Bells
from service.storage.bucket import Bucket
from service.storage.connection import connect, connect_sync
from service.storage.desk import Desk
from service.storage.inputs import Inputs
from service.storage.objects import BucketError
from service.storage.record import CorruptRecord, NewerRecord
from service.storage.store import Store
from service.tokens import ApiTokens, CallbackKeys
from service.wiring import bucket_config, limits, rules

REDIS_TIMEOUT_S: Final = 0.8  # so that an outage is told within a second
REDIS_CONNECTIONS: Final = 64  # Valkey commits what comes together in one fsync
REPLICAS_WITHIN_S: Final = 0.5
READER_TIMEOUT_S: Final = BLOCK_S + 2.0
DRAIN_WITHIN_S: Final = 2.0

ORDERS: Final = re.compile(r"(/flux)?/v1/[a-z0-9.-]+|/v1/images/generations")  # where a body may carry images


@dataclass(frozen=True, slots=True)
class Web:
    """`app` serves once its lifespan has begun."""

    app: Starlette
    reader: Reader
    health: Health
    fitness: Fitness

    def begin_closing(self) -> None:
        """Waiters answer and streams end at once; `/readyz` is red."""
        self.health.closing = True
        self.reader.close()


@dataclass(frozen=True, slots=True)
class Parts:
    """What the routes stand on, and what is closed in the end."""

    settings: Settings
    clock: Clock
    desk: Desk
    bucket: Bucket
    reader: Reader
    metrics: Metrics
    fitness: Fitness


def build(settings: Settings, clock: Clock, bucket: Bucket | None = None) -> Web:
    """Nothing is sent yet. Without a bucket, one with the credentials that boto3 finds."""
    url = settings.redis_url.reveal()
    actor = f"http {socket.gethostname()}:{os.getpid()}"
    redis = connect(url, timeout_s=REDIS_TIMEOUT_S, max_connections=REDIS_CONNECTIONS)
    tail = connect(url, timeout_s=READER_TIMEOUT_S, max_connections=1)
    sync = connect_sync(url, timeout_s=REDIS_TIMEOUT_S, max_connections=1)
    bounds = limits(settings, replicas_timeout_s=REPLICAS_WITHIN_S)
    desk = Desk(Store(redis, bounds, actor=actor), Bells(redis, sync), clock)
    bucket = bucket or Bucket(bucket_config(settings))
    fitness = Fitness(settings, bucket if "api" in settings.serve else None)
    parts = Parts(settings, clock, desk, bucket, Reader(Store(tail, bounds, actor=actor)), Metrics(), fitness)
    health = Health(checks(settings, desk.store, fitness, bucket), clock)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        reading = asyncio.create_task(parts.reader.run())
        try:
            yield
        finally:
            parts.reader.close()
            reading.cancel()
            with suppress(asyncio.CancelledError):
                await reading
            with suppress(TimeoutError):
                async with asyncio.timeout(DRAIN_WITHIN_S):
                    await desk.drain()
            await redis.aclose()
            await tail.aclose()
            sync.close()
            await bucket.close()

    return Web(_app(parts, health, lifespan), parts.reader, health, fitness)


def _app(parts: Parts, health: Health, lifespan: Any) -> Starlette:
    orders = Orders(rules(parts.settings))
    rows = _rows(parts, health, orders)
    cap = partial(_body_limit, parts.settings.max_body_bytes, orders.max_bytes)
    app = Starlette(
        routes=routes(rows, orders.rules.knows),
        middleware=[
            Middleware(RequestId, clock=parts.clock),
            Middleware(Counted, metrics=parts.metrics),
            Middleware(LastResort),
            Middleware(BodyGuard, limit=cap, clock=parts.clock),
        ],
        exception_handlers=exception_handlers | _HANDLERS,
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False  # a redirect would tell known paths from unknown ones
    return app


def _rows(parts: Parts, health: Health, orders: Orders) -> list[Row]:
    """The route table: what `SERVE` names, and health always."""
    serve = parts.settings.serve
    rows: list[Row] = [*zip(openapi.HEALTH, (health.healthz, health.readyz), strict=True)]
    if "metrics" in serve:
        rows.append((openapi.METRICS, MetricsPage(parts.desk.store, parts.metrics).show))
    if "webhooks" in serve:
        keys = CallbackKeys(parts.settings.webhook_keys)
        rows.append((openapi.CALLBACK, webhooks.Webhooks(parts.desk, keys, parts.metrics).receive))
    if "api" in serve:
        rows += _api(parts, orders) + _batches(parts, orders)
        foreign = _dropins(parts, orders)
        described = [row for row, _ in rows] + list(openapi.ABOUT_ITSELF)
        pages = openapi.Description(openapi.document(described, parts.settings.flux_extra_models))
        rows += foreign
        rows += zip(openapi.ABOUT_ITSELF, (pages.show_json, pages.show_page), strict=True)
    return rows


def _api(parts: Parts, orders: Orders) -> list[Row]:
    store, clock = parts.desk.store, parts.clock
    door = Door(ApiTokens(parts.settings.api_tokens))
    past = Past(store, parts.bucket)
    inputs = Inputs(store, parts.bucket, parts.settings.input_image_max_bytes)
    waiting = Waiting(store, parts.reader, clock, parts.settings.web_wait_max_s)
    jobs = Jobs(parts.desk, parts.bucket, past, waiting, orders, inputs, clock)
    endings = Endings(parts.desk, past, inputs, clock)
    past_batches = PastBatches(store, parts.bucket)
    events = Events(store, parts.reader, past_batches)
    endpoints = (
        jobs.create,
        Listing(store).page,
        jobs.show,
        endings.delete,
        endings.cancel,
        endings.retry,
        jobs.image,
        PastLife(store, past).show,
        events.of_job,
        events.of_caller,
    )
    told = Notifications(parts.desk, past, past_batches).endpoints(door)
    rows = [(row, door(endpoint)) for row, endpoint in zip(openapi.API, endpoints, strict=True)]
    return [*rows, *zip(NOTIFICATIONS, told, strict=True)]


def _batches(parts: Parts, orders: Orders) -> list[Row]:
    store, clock = parts.desk.store, parts.clock
    door = Door(ApiTokens(parts.settings.api_tokens))
    past = PastBatches(store, parts.bucket)
    inputs = Inputs(store, parts.bucket, parts.settings.input_image_max_bytes)
    incoming = Uploads(parts.desk, Intake(store, inputs, orders.rules, clock), orders, past, parts.metrics)
    waiting = Waiting(store, parts.reader, clock, parts.settings.web_wait_max_s)
    batches = Batches(parts.desk, parts.bucket, past, waiting, Recovery(store, clock))
    endpoints = (
        incoming.create,
        batches.page,
        batches.show,
        batches.jobs,
        batches.manifest,
        batches.cancel,
        batches.retry,
        Events(store, parts.reader, past).of_batch,
    )
    return [(row, door(endpoint)) for row, endpoint in zip(openapi.BATCHES, endpoints, strict=True)]


def _dropins(parts: Parts, orders: Orders) -> list[Row]:
    """Other services' interfaces, which their own clients describe."""
    store = parts.desk.store
    inputs = Inputs(store, parts.bucket, parts.settings.input_image_max_bytes)
    reception = Reception(parts.desk, inputs, parts.clock)
    tokens = ApiTokens(parts.settings.api_tokens)
    flux = Flux(
        tokens, store, parts.bucket, Past(store, parts.bucket), orders, reception, Seals(parts.settings.webhook_keys)
    )
    waiting = Waiting(store, parts.reader, parts.clock, images.WAIT_S)
    openai = images.Images(tokens, parts.desk, parts.bucket, waiting, orders, reception)
    return [*zip(FLUX, flux.endpoints(), strict=True), (images.OPERATION, openai.endpoint())]


def _body_limit(max_bytes: int, job_bytes: int, scope: Scope) -> BodyLimit:
    if scope["path"].startswith("/webhooks/"):
        return BodyLimit(webhooks.BODY_BYTES_MAX)
    if scope["path"] == uploads.PATH:
        return BodyLimit(uploads.BODY_BYTES_MAX if uploads.media_type(scope) == uploads.NDJSON else job_bytes)
    return BodyLimit(job_bytes if ORDERS.fullmatch(scope["path"]) else max_bytes)


class Counted:
    """Middleware: answers by route and status. Paths hold ids and tokens; a route's pattern does not."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = scope.get("route")
                self._metrics.requests.labels(route.path if route else "none", message["status"]).inc()
            await send(message)

        await self._app(scope, receive, counted)


async def _on_bucket(_: Request, _error: Exception) -> Response:
    return problem(503, "unavailable", "The image store cannot be reached.", headers={"Retry-After": "5"})


async def _on_timeout(_: Request, _error: Exception) -> Response:
    return unavailable()


async def _on_corrupt(_: Request, _error: Exception) -> Response:
    return problem(500, "record_corrupt", "The job's record cannot be read.")


_HANDLERS: Final[dict[Any, ExceptionHandler]] = {
    BucketError: _on_bucket,
    TimeoutError: _on_timeout,
    CorruptRecord: _on_corrupt,
    NewerRecord: _on_timeout,
}
