"""OpenAI's images API, spoken by us: `POST /v1/images/generations`, answered when the images are in the bucket.

Such a client sends no idempotency key and tries again by itself, after its own timeout. A try belongs to the one
before it, and buys nothing, where the client says so (`x-stainless-retry-count`), or where the same caller asks the
same while an earlier one has not been answered and its connection is gone. An error that another try cannot help
carries `x-should-retry: false`. Whoever does send an `Idempotency-Key` is taken at its word, as everywhere here.

Of several images those that came are given: the others stand in `errors` beside `data`, by their number.
"""

import asyncio
import base64
import hashlib
import secrets
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from service.api.auth import Endpoint, promptly
from service.api.jobs import idempotency
from service.api.openapi import Operation
from service.api.orders import Orders, apart
from service.api.problems import ProblemError
from service.api.reception import Reception
from service.api.waiting import Waiting
from service.api.wish import Wish, WrongError, numbered, understand
from service.domain import layout
from service.domain.catalogue import UNKNOWN_MODEL, Order
from service.domain.errors import ErrorCode
from service.domain.job import Job, Status
from service.storage.bucket import Bucket
from service.storage.connection import RedisError
from service.storage.desk import Desk
from service.storage.objects import BucketError
from service.storage.terms import Idempotency
from service.tokens import ApiTokens

OPERATION: Final = Operation(
    "post", "/v1/images/generations", "generateImages", "Images, as from OpenAI", {200: ("As OpenAI answers", None)}
)
WAIT_S: Final = 900.0  # the client gives up before: its default is 600
KEEP_GAP_S: Final = 3.0
IMAGE_BYTES_MAX: Final = 64 * 2**20
FINAL: Final = frozenset({400, 401, 403, 404, 409, 413, 422})


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
            wish = await apart(size_bytes, understand, body)
            try:
                order = await self._orders.understood(wish.body, size_bytes, caller)
            except ProblemError as error:
                return _translated(error, wish)
        if keyed := idempotency(request, None):
            jobs = await self._taken(caller, wish, order, keyed.key)
            ended = await self._while_connected(request, jobs)
            return await self._told(ended, wish)
        again = request.headers.get("x-stainless-retry-count", "0") not in {"0", ""}
        name = await promptly(self._series.join(caller, wish.digest, secrets.token_hex(8), again=again))
        return await self._of_series(request, caller, wish, order, name)

    async def _of_series(self, request: Request, caller: str, wish: Wish, order: Order, name: str) -> Response:
        """What the series `name` comes to, for as long as its client waits.

        Killed anywhere: nobody waits for it any more once its lease is over, and whoever asks the same finds its jobs.
        """
        delivered = False

        async def keep() -> None:
            with suppress(RedisError, TimeoutError):
                await promptly(self._series.keep(caller, wish.digest, name))

        try:
            try:
                jobs = await self._taken(caller, wish, order, f"{wish.digest}\n{name}")
                ended = await self._while_connected(request, jobs, keep)
                response = await self._told(ended, wish)
            except ProblemError as error:
                response = _translated(error)
            delivered = response.status_code == 200 or response.headers.get("x-should-retry") == "false"
            return response
        finally:
            with suppress(RedisError, TimeoutError):
                await promptly(self._series.leave(caller, wish.digest, name, delivered=delivered))

    async def _taken(self, caller: str, wish: Wish, order: Order, name: str) -> list[Job]:
        """The job of each image: whoever comes with the same name and wish finds the same."""
        jobs = []
        for number in range(wish.count):
            key = hashlib.sha256(f"images\n{name}\n{number}".encode()).hexdigest()
            jobs.append(await self._reception.take(caller, numbered(order, number), Idempotency(key, wish.digest)))
        return jobs

    async def _while_connected(
        self, request: Request, jobs: list[Job], keep: Callable[[], Awaitable[None]] | None = None
    ) -> list[Job] | None:
        """The jobs as they ended, or as they are after WAIT_S; None: the client has gone before."""
        waiting = asyncio.create_task(self._ended(jobs))
        gone = asyncio.create_task(_gone(request))
        either: set[asyncio.Future[Any]] = {waiting, gone}
        try:
            while True:
                await asyncio.wait(either, timeout=KEEP_GAP_S, return_when=asyncio.FIRST_COMPLETED)
                if waiting.done():
                    return waiting.result()
                if gone.done():
                    return None
                if keep:
                    await keep()
        finally:
            waiting.cancel()
            gone.cancel()

    async def _ended(self, jobs: list[Job]) -> list[Job]:
        return list(await asyncio.gather(*(self._waiting.ended(job, WAIT_S) for job in jobs)))

    async def _told(self, jobs: list[Job] | None, wish: Wish) -> Response:
        if jobs is None:
            return complaint(499, "The client has gone.", "server_error")
        if not all(job.ended for job in jobs):
            return complaint(504, "The images take long; try again, nothing is bought twice.", "server_error")
        good = [job for job in jobs if job.status is Status.SUCCEEDED]
        if not good:
            return _failed(jobs[0])
        data = [await self._image(job, inline=wish.inline) for job in good]
        body: dict[str, Any] = {"created": max(job.finished_at or job.created_at for job in good) // 1000, "data": data}
        if errors := [{"index": n, **_cause(job)} for n, job in enumerate(jobs) if job not in good]:
            body["errors"] = errors
        return JSONResponse(body, headers={"cache-control": "no-store"})

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


def _translated(error: ProblemError, wish: Wish | None = None) -> Response:
    field = error.errors[0] if error.errors else None
    status = 400 if error.status == 422 else error.status
    kind = "invalid_request_error" if status < 429 else "rate_limit_error" if status == 429 else "server_error"
    if field is None or not field.pointer:
        return complaint(status, field.detail if field else error.detail, kind, code=error.code, headers=error.headers)
    name = field.pointer.strip("/")
    param = wish.param(name) if wish else name
    detail = f"{param}: {field.detail}" if param == name else f"{param} ({name}): {field.detail}"
    code = "model_not_found" if field.detail.startswith(UNKNOWN_MODEL) else error.code
    return complaint(status, detail, kind, param=param, code=code, headers=error.headers)


def _failed(job: Job) -> Response:
    """A job that has ended without an image: another try would only find the same."""
    cause = _cause(job)
    if job.error and job.error.code in {ErrorCode.MODERATED, ErrorCode.PROVIDER_REJECTED}:
        return complaint(400, cause["message"], "image_generation_user_error", code=cause["code"])
    final = {"x-should-retry": "false"}
    return complaint(500, cause["message"], "server_error", code=cause["code"], headers=final)


def _cause(job: Job) -> dict[str, str]:
    """Why there is no image of it, in OpenAI's words where there are some."""
    if job.error is None:
        return {"code": "cancelled", "message": "The job was cancelled."}
    code = "moderation_blocked" if job.error.code is ErrorCode.MODERATED else job.error.code
    return {"code": code, "message": job.error.message}
