"""OpenAI's images API, spoken by us: `POST /v1/images/generations`, answered when the images are in the bucket.

Such a client sends no idempotency key and tries again by itself, after its own timeout. A try belongs to the one
before it, and buys nothing, where the client says so (`x-stainless-retry-count`), or where the same caller asks the
same while an earlier one has not been answered and its connection is gone. An error that another try cannot help
carries `x-should-retry: false`.
"""

import asyncio
import base64
import hashlib
import json
import math
import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from service.api.auth import Endpoint, promptly
from service.api.openapi import Operation
from service.api.orders import Orders
from service.api.problems import ProblemError
from service.api.reception import Reception
from service.api.waiting import Waiting
from service.domain import layout
from service.domain.catalogue import Order
from service.domain.errors import ErrorCode
from service.domain.job import Job, Status
from service.domain.models import MODELS
from service.storage.bucket import Bucket
from service.storage.connection import RedisError
from service.storage.desk import Desk
from service.storage.objects import BucketError
from service.storage.terms import Idempotency
from service.tokens import ApiTokens

OPERATION: Final = Operation(
    "post", "/v1/images/generations", "generateImages", "Images, as from OpenAI", {200: ("As OpenAI answers", None)}
)
IMAGES_MOST: Final = 10  # of one request, as OpenAI has it
WAIT_S: Final = 900.0  # the client gives up before: its default is 600
KEEP_GAP_S: Final = 3.0
IMAGE_BYTES_MAX: Final = 64 * 2**20
# OpenAI's own words that mean nothing to these models, and the values under which that does no harm.
HARMLESS: Final[Mapping[str, frozenset[object]]] = {
    "quality": frozenset({"auto", "standard", "high", "hd", "medium", "low"}),
    "style": frozenset({"vivid", "natural"}),
    "background": frozenset({"auto", "opaque"}),
    "moderation": frozenset({"auto", "low"}),
    "output_compression": frozenset({100}),
    "partial_images": frozenset({0}),
    "stream": frozenset({False}),
}
FINAL: Final = frozenset({400, 401, 403, 404, 413, 422})


@dataclass(frozen=True, slots=True)
class Wish:
    """What a request asks for, in our words. `body` is the order of each of its `count` images."""

    body: dict[str, Any]
    count: int
    inline: bool
    digest: str


class WrongError(Exception):
    """`param` is the field that the client must change."""

    def __init__(self, param: str, detail: str) -> None:
        super().__init__(detail)
        self.param = param
        self.detail = detail


class Images:
    """The endpoint."""

    def __init__(
        self, tokens: ApiTokens, desk: Desk, bucket: Bucket, waiting: Waiting, orders: Orders, reception: Reception
    ) -> None:
        self._tokens = tokens
        self._series = desk.store.series
        self._bucket = bucket
        self._waiting = waiting
        self._orders = orders
        self._reception = reception

    def endpoint(self) -> Endpoint:
        """Whatever goes wrong is told in OpenAI's words."""

        async def enter(request: Request) -> Response:
            try:
                return await self._generate(request)
            except WrongError as error:
                return complaint(400, error.detail, "invalid_request_error", param=error.param)
            except ProblemError as error:
                return _translated(error)
            except (RedisError, BucketError, TimeoutError):
                return complaint(503, "The service is unavailable just now.", "server_error")

        return enter

    async def _generate(self, request: Request) -> Response:
        caller = self._tokens.caller(request.headers.get("authorization"))
        if caller is None:
            return complaint(401, "Incorrect API key provided.", "invalid_request_error", code="invalid_api_key")
        async with self._orders.room.place(request):
            body, size_bytes = await self._orders.parsed(request)
            wish = understand(body)
            order = await self._orders.understood(wish.body, size_bytes, caller)
        again = request.headers.get("x-stainless-retry-count", "0") not in {"0", ""}
        name = await promptly(self._series.join(caller, wish.digest, secrets.token_hex(8), again=again))
        return await self._answered(request, caller, wish, order, name)

    async def _answered(self, request: Request, caller: str, wish: Wish, order: Order, name: str) -> Response:
        """What the series `name` comes to, for as long as its client waits."""
        delivered = False
        try:
            jobs = [await self._take(caller, wish, order, name, number) for number in range(wish.count)]
            ended = await self._while_connected(request, caller, wish, name, jobs)
            if ended is None:
                return complaint(499, "The client has gone.", "server_error")
            response = await self._told(ended, wish)
            delivered = response.status_code == 200 or response.headers.get("x-should-retry") == "false"
            return response
        finally:
            with suppress(RedisError, TimeoutError):
                await promptly(self._series.leave(caller, wish.digest, name, delivered=delivered))

    async def _take(self, caller: str, wish: Wish, order: Order, name: str, number: int) -> Job:
        """The job of one image: whoever belongs to the same series finds the same."""
        key = hashlib.sha256(f"images\n{wish.digest}\n{name}\n{number}".encode()).hexdigest()
        return await self._reception.take(caller, order, Idempotency(key, wish.digest))

    async def _while_connected(
        self, request: Request, caller: str, wish: Wish, name: str, jobs: list[Job]
    ) -> list[Job] | None:
        """The jobs as they ended, or as they are after WAIT_S; None: the client has gone before."""
        waiting = asyncio.gather(*(self._waiting.ended(job, WAIT_S) for job in jobs))
        gone = asyncio.create_task(_gone(request))
        either: set[asyncio.Future[Any]] = {waiting, gone}
        try:
            while True:
                await asyncio.wait(either, timeout=KEEP_GAP_S, return_when=asyncio.FIRST_COMPLETED)
                if waiting.done():
                    return list(waiting.result())
                if gone.done():
                    return None
                with suppress(RedisError, TimeoutError):
                    await promptly(self._series.keep(caller, wish.digest, name))
        finally:
            waiting.cancel()
            gone.cancel()

    async def _told(self, jobs: list[Job], wish: Wish) -> Response:
        for job in jobs:
            if not job.ended:
                return complaint(504, "The images take long; try again, nothing is bought twice.", "server_error")
            if job.status is not Status.SUCCEEDED:
                return _failed(job)
        data = [await self._image(job, inline=wish.inline) for job in jobs]
        created = max(job.finished_at or job.created_at for job in jobs) // 1000
        return JSONResponse({"created": created, "data": data}, headers={"cache-control": "no-store"})

    async def _image(self, job: Job, *, inline: bool) -> dict[str, Any]:
        if job.image is None:
            raise BucketErrorGone
        name = job.image.key.rpartition("/")[2]
        key = layout.image_key(job.id, name.rpartition(".")[2])  # type: ignore[arg-type]  # a wrong one is refused with a ValueError
        if not inline:
            return {"url": await self._bucket.presign_get(key, name)}
        content = await self._bucket.get_bytes(key, IMAGE_BYTES_MAX)
        if content is None:
            raise BucketErrorGone
        return {"b64_json": base64.b64encode(content).decode()}


class BucketErrorGone(BucketError):
    """The image was deleted meanwhile."""

    def __init__(self) -> None:
        super().__init__("the image is gone")


def understand(body: object) -> Wish:
    """OpenAI's words in ours. Total but for WrongError; what remains is checked as any order is."""
    if not isinstance(body, dict):
        raise WrongError("body", "The body should be an object.")
    told = {name: value for name, value in body.items() if value is not None}
    for name, values in HARMLESS.items():
        if name in told and not _among(told.pop(name), values):
            raise WrongError(name, f"'{name}' can only be left out here: these models know no such thing.")
    count = told.pop("n", 1)
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= IMAGES_MOST:
        raise WrongError("n", f"'n' should be 1 to {IMAGES_MOST}.")
    form = told.pop("response_format", "url")
    if form not in ("url", "b64_json"):
        raise WrongError("response_format", "'response_format' should be url or b64_json.")
    model = told.setdefault("model", "flux-pro-1.1")
    told |= _size(told.pop("size", "auto"), model)
    user = told.pop("user", None)
    if user is not None:
        told["metadata"] = {"user": user}
    canonical = json.dumps([told, count, form], sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()
    return Wish(told, count, form == "b64_json", digest)


def _size(size: object, model: object) -> dict[str, Any]:
    """`1024x768` as width and height, or as a ratio for models that take only that; `auto` leaves it to the model."""
    if size == "auto":
        return {}
    width, cross, height = str(size).partition("x")
    if not (cross and width.isascii() and width.isdecimal() and height.isascii() and height.isdecimal()):
        raise WrongError("size", "'size' should be auto, or like 1024x768.")
    if len(width) > 5 or len(height) > 5 or int(width) == 0 or int(height) == 0:
        raise WrongError("size", "'size' is not possible.")
    row = MODELS.get(str(model))
    if row is not None and "width" not in row.parameters:
        divisor = math.gcd(int(width), int(height))
        return {"aspect_ratio": f"{int(width) // divisor}:{int(height) // divisor}"}
    return {"width": int(width), "height": int(height)}


def _among(value: object, values: frozenset[object]) -> bool:
    return isinstance(value, str | int | bool) and value in values


async def _gone(request: Request) -> None:
    """Returns when the client has closed its connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def complaint(
    status: int,
    message: str,
    kind: str,
    *,
    param: str | None = None,
    code: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """An error as OpenAI has them."""
    final = {"x-should-retry": "false"} if status in FINAL else {}
    body = {"error": {"message": message, "type": kind, "param": param, "code": code}}
    return JSONResponse(body, status, {"cache-control": "no-store", **final, **(headers or {})})


def _translated(error: ProblemError) -> Response:
    field = error.errors[0] if error.errors else None
    status = 400 if error.status == 422 else error.status
    kind = "invalid_request_error" if status < 429 else "rate_limit_error" if status == 429 else "server_error"
    param = field.pointer.strip("/") if field else None
    return complaint(
        status, f"{param}: {field.detail}" if field else error.detail, kind, param=param, code=error.code,
        headers=error.headers,
    )  # fmt: skip


def _failed(job: Job) -> Response:
    """A job that has ended without an image: another try would only find the same."""
    code = job.error.code if job.error else None
    message = job.error.message if job.error else "The job was cancelled."
    if code in {ErrorCode.MODERATED, ErrorCode.PROVIDER_REJECTED}:
        kind = "image_generation_user_error"
        return complaint(400, message, kind, code="moderation_blocked" if code is ErrorCode.MODERATED else code)
    return complaint(500, message, "server_error", code=code, headers={"x-should-retry": "false"})
