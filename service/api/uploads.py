"""`POST /v1/batches`: a batch as JSON, or as NDJSON that is checked and staged line by line as it comes.

Killed, cut or refused anywhere before the seal: nothing exists, and the same Idempotency-Key begins anew, at once or
when the upload's lease has run out (15 s). From the seal on there is a batch, and the same key finds it.
"""

import json
import math
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict
from typing import Any, Final, cast

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Scope

from service.api.auth import promptly
from service.api.jobs import FULL_RETRY_AFTER_S, idempotency_key
from service.api.listing import invalid_parameter
from service.api.orders import Orders
from service.api.past_batches import PastBatches
from service.api.problems import ProblemError
from service.api.room import Room
from service.comparison import Comparison
from service.domain.batch import LINES_MOST
from service.domain.errors import FieldError
from service.domain.parsing import NOT_JSON, loads
from service.domain.rules import Extras
from service.intake import BadLines, Intake, Upload, UploadLost
from service.metrics import Metrics
from service.ndjson import pour
from service.storage.batches import Began, Beginning, Enrolled
from service.storage.connection import RedisError
from service.storage.desk import Desk
from service.storage.terms import Bell, Unconfirmed

PATH: Final = "/v1/batches"
JSON: Final = "application/json"
NDJSON: Final = "application/x-ndjson"
BODY_BYTES_MAX: Final = 200_000_000
UPLOADS_AT_ONCE: Final = 8  # of more than one order's size; each may hold a line with images in memory
EXTRAS: Final = ("callback_url", "metadata")
LOST_RETRY_AFTER_S: Final = 1


class Uploads:
    """One per process."""

    def __init__(self, desk: Desk, intake: Intake, orders: Orders, past: PastBatches, metrics: Metrics) -> None:
        self._desk = desk
        self._intake = intake
        self._orders = orders
        self._past = past
        self._metrics = metrics
        self._room = Room(orders.rules.max_body_bytes, places=UPLOADS_AT_ONCE)

    async def create(self, request: Request, caller: str) -> Response:
        """Sealed (202): the batch survives whatever dies from here on. Killed before: the same key asks again."""
        in_query = _in_query(request)
        extras = self._extras(in_query, caller)
        match media_type(request.scope):
            case "application/x-ndjson":
                async with self._room.place(request):
                    return await self._take(request.stream(), extras, request, caller)
            case "application/json":
                async with self._orders.room.place(request):
                    jobs, extras = await self._listed(request, in_query, caller)
                    return await self._take(_rows(jobs), extras, request, caller)
        raise ProblemError(415, "unsupported_media_type", f"A batch comes as {JSON} or {NDJSON}.")

    async def _listed(self, request: Request, in_query: dict[str, object], caller: str) -> tuple[list[object], Extras]:
        """The lines, the last one first, and the rest of a body in JSON, which wins over the query."""
        body, _ = await self._orders.parsed(request)
        if not isinstance(body, dict):
            raise _mistakes([FieldError("", "Input should be an object")])
        jobs = body.pop("jobs", None)
        if not isinstance(jobs, list):
            raise _mistakes([FieldError("/jobs", "Input should be a list of jobs")])
        extras = self._extras(in_query | body, caller)
        jobs.reverse()
        return jobs, extras

    def _extras(self, told: Mapping[str, object], caller: str) -> Extras:
        extras = self._orders.rules.extras(told, caller)
        if isinstance(extras, Extras):
            return extras
        raise _mistakes(extras)

    async def _take(self, pieces: AsyncIterator[bytes], extras: Extras, request: Request, caller: str) -> Response:
        begun = await self._intake.begin(caller, idempotency_key(request))
        if isinstance(begun, Beginning):
            return await self._known(begun, pieces, extras, caller)
        batch_id = await self._sealed(begun, pieces, extras)
        self._desk.ring([Bell("batches", batch_id)])
        self._metrics.batch_lines.inc(begun.size)
        return await self._answer(batch_id, caller, 202)

    async def _sealed(self, upload: Upload, pieces: AsyncIterator[bytes], extras: Extras) -> str:
        """The id of the batch that there is from now on. Raises ProblemError: there is none."""
        try:
            async with _nothing_stays(upload):
                await pour(pieces, upload, self._orders.max_bytes)
                if upload.size > LINES_MOST:
                    await _drained(pieces)
                if upload.size == 0:
                    raise _mistakes([FieldError("/jobs", "A batch has at least one job")])
                if upload.bad:
                    raise _bad_lines(upload.bad)
            enrolled, batch_id = await promptly(upload.seal(extras.metadata or {}, extras.callback_url))
        except UploadLost:
            await _abandoned(upload)
            detail = "The upload stood still for too long, and its lease ran out. Send it again."
            raise ProblemError(503, "unavailable", detail, headers=_after(LOST_RETRY_AFTER_S)) from None
        except Unconfirmed:
            detail = "Too few replicas confirmed the batch. Send it again with the same Idempotency-Key."
            raise ProblemError(
                503, "durability_unconfirmed", detail, headers=_after(LOST_RETRY_AFTER_S), batch_id=upload.id
            ) from None
        if enrolled is Enrolled.FULL:
            await _abandoned(upload)
            detail = "Too many jobs wait already."
            raise ProblemError(429, "backlog_full", detail, headers=_after(FULL_RETRY_AFTER_S))
        return batch_id

    async def _known(self, begun: Beginning, pieces: AsyncIterator[bytes], extras: Extras, caller: str) -> Response:
        if begun.began is Began.BUSY:
            detail = "A batch with this Idempotency-Key is being uploaded just now."
            raise ProblemError(409, "in_progress", detail, headers=_after(math.ceil(begun.busy_s)))
        comparison = Comparison(begun)
        await pour(pieces, comparison, self._orders.max_bytes)
        if comparison.size > LINES_MOST:
            await _drained(pieces)
        if not comparison.same(extras.metadata or {}, extras.callback_url):
            raise ProblemError(409, "idempotency_conflict", "This Idempotency-Key came with another body before.")
        return await self._answer(begun.known_id, caller, 200)

    async def _answer(self, batch_id: str, caller: str, status: int) -> Response:
        told = await self._past.now_or_then(batch_id, caller)
        return JSONResponse(told, status, {"Location": f"{PATH}/{batch_id}"})


def media_type(scope: Scope) -> str:
    """What the body says that it is, without parameters; JSON if it says nothing."""
    return Headers(scope=scope).get("content-type", JSON).partition(";")[0].strip().lower()


@asynccontextmanager
async def _nothing_stays(upload: Upload) -> AsyncIterator[None]:
    """Whatever is raised inside, the key of the upload is free at once; images that it has in the bucket go soon."""
    try:
        yield
    except Exception:
        await _abandoned(upload)
        raise


async def _abandoned(upload: Upload) -> None:
    """Where that fails, too, the lease runs out, and then the same happens."""
    with suppress(RedisError):
        await upload.abandon()


async def _drained(pieces: AsyncIterator[bytes]) -> None:
    """A sender that has not come to its end does not read an answer."""
    async for _ in pieces:
        pass


async def _rows(jobs: list[object]) -> AsyncIterator[bytes]:
    """The list as NDJSON; what has been told is let go."""
    while jobs:
        yield json.dumps(jobs.pop()).encode() + b"\n"


def _in_query(request: Request) -> dict[str, object]:
    """`callback_url` as it is, `metadata` in JSON."""
    told: dict[str, object] = {name: value for name, value in request.query_params.items() if name in EXTRAS}
    if "metadata" in told:
        told["metadata"] = loads(cast("str", told["metadata"]).encode("utf-8", "surrogatepass"))
        if told["metadata"] is NOT_JSON:
            raise invalid_parameter("metadata", "Is not JSON in UTF-8")
    return told


def _mistakes(errors: list[FieldError]) -> ProblemError:
    return ProblemError(422, "invalid_request", "The request has mistakes.", errors=errors)


def _bad_lines(bad: BadLines) -> ProblemError:
    errors: list[dict[str, Any]] = [{"line": number, **asdict(error)} for number, error in bad.errors]
    detail = "Lines have mistakes; nothing was made of any of them."
    return ProblemError(422, "invalid_request", detail, errors=errors, more_lines=list(bad.more))


def _after(seconds: int) -> dict[str, str]:
    return {"Retry-After": str(seconds)}
