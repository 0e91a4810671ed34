"""A job: order it, look at it, fetch its image. What ends or repeats one is in `endings`, lists are in `listing`."""

import hashlib
import json
import secrets
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final, cast

from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from service.api.auth import owned, promptly
from service.api.listing import invalid_parameter
from service.api.orders import Orders
from service.api.past import Past
from service.api.problems import ProblemError
from service.api.waiting import Waiting, applied
from service.clock import Clock
from service.domain import layout
from service.domain.catalogue import Order
from service.domain.job import Job, Status
from service.domain.view import view
from service.storage.bucket import Bucket
from service.storage.connection import RedisError
from service.storage.desk import Desk
from service.storage.inputs import Inputs
from service.storage.store import Store
from service.storage.terms import Idempotency, Outcome, Unconfirmed, Written

IDEMPOTENCY_KEY_CHARS_MAX: Final = 255
FULL_RETRY_AFTER_S: Final = 10
BUSY_RETRY_AFTER_S: Final = 5


class Jobs:
    """Each method is a route's endpoint; the caller is known by then."""

    def __init__(
        self,
        desk: Desk,
        bucket: Bucket,
        past: Past,
        waiting: Waiting,
        orders: Orders,
        inputs: Inputs,
        clock: Clock,
    ) -> None:
        self._desk = desk
        self._store = desk.store
        self._bucket = bucket
        self._past = past
        self._waiting = waiting
        self._orders = orders
        self._inputs = inputs
        self._clock = clock

    async def create(self, request: Request, caller: str) -> Response:
        """Accepted (202): the job survives whatever dies from here on. Killed before: the same key asks again."""
        async with self._orders.room.place(request):
            job, how = await self._received(request, caller)
        written = await create(self._store, job, **how)
        self._desk.ring(written.bells)
        return await self._created(request, job, written)

    async def show(self, request: Request, caller: str) -> Response:
        job_id = request.path_params["job_id"]
        job = await promptly(self._store.get(job_id))
        if job is None:
            return JSONResponse(await self._past.look(job_id, caller))
        owned(job, caller)
        wait_s = self._waiting.wanted_s(request)
        if wait_s is None:
            return _answer(job)
        return _answer(await self._waiting.ended(job, wait_s), applied(wait_s))

    async def image(self, request: Request, caller: str) -> Response:
        job_id = request.path_params["job_id"]
        job = await promptly(self._store.get(job_id))
        shown = await self._past.look(job_id, caller) if job is None else view(owned(job, caller))
        if shown["status"] != Status.SUCCEEDED:
            raise ProblemError(409, "not_ready", f"There is no image: the job is {shown['status']}.")
        name = str(shown["image"]["key"]).rpartition("/")[2]
        extension = cast("layout.Extension", name.rpartition(".")[2])  # a wrong one is refused with a ValueError
        link = await self._bucket.presign_get(layout.image_key(job_id, extension), name)
        return RedirectResponse(link, 307, {"Referrer-Policy": "no-referrer"})

    async def _received(self, request: Request, caller: str) -> tuple[Job, dict[str, Any]]:
        """The job, and how to create it. Its images are in the bucket, and nothing holds the body any more."""
        body, order = await self._orders.read(request, caller)
        how = {"deadline_s": order.deadline_s, "idempotency": idempotency(request, body)}
        del body
        job = ordered(fresh_id(self._clock), caller, order)
        return replace(job, request={**order.request, **await self._inputs.keep(job.id, order.inputs)}), how

    async def _created(self, request: Request, job: Job, written: Written) -> Response:
        match written.outcome:
            case Outcome.CREATED:
                return await self._accepted(request, replace(job, created_at=written.at))
            case Outcome.FULL:
                after = {"Retry-After": str(FULL_RETRY_AFTER_S)}
                raise ProblemError(429, "backlog_full", "Too many jobs wait already.", headers=after)
            case Outcome.CONFLICT:
                raise ProblemError(409, "idempotency_conflict", "This Idempotency-Key came with another body before.")
            case Outcome.BUSY:
                raise key_in_use()
        known = await promptly(self._store.get(written.job_id))
        if known is None:
            raise ProblemError(404, "not_found", "The job of this Idempotency-Key has been deleted.")
        if written.outcome is Outcome.ALREADY:
            return await self._accepted(request, known)
        return _answer(known, _location(known))

    async def _accepted(self, request: Request, job: Job) -> Response:
        wait_s = self._waiting.wanted_s(request)
        headers = _location(job)
        if wait_s is not None:
            job = await self._waiting.ended(job, wait_s)
            headers |= applied(wait_s)
        return _answer(job, headers, 200 if job.ended else 202)


async def create(store: Store, job: Job, **how: Any) -> Written:
    """The write of a new job, within a second. ProblemError 503: Redis is away, or replicas did not confirm."""
    try:
        return await promptly(_create(store, job, **how))
    except Unconfirmed as error:
        detail = "Too few replicas confirmed the job. Ask again with the same Idempotency-Key."
        known = error.job_id or job.id
        raise ProblemError(503, "durability_unconfirmed", detail, headers={"Retry-After": "1"}, job_id=known) from None


async def _create(store: Store, job: Job, **how: Any) -> Written:
    try:
        return await store.create(job, **how)
    except Unconfirmed:
        raise
    except RedisError:
        if store.limits.replicas:  # no time for a second WAIT
            raise
        return await store.create(job, **how)  # the answer was lost, or nothing was written: the id tells which


def key_in_use() -> ProblemError:
    detail = "A batch is being uploaded under this Idempotency-Key."
    return ProblemError(409, "in_progress", detail, headers={"Retry-After": str(BUSY_RETRY_AFTER_S)})


def fresh_id(clock: Clock) -> str:
    return layout.new_id("job", clock.now_ms(), secrets.token_bytes(layout.ENTROPY_BYTES))


def ordered(job_id: str, caller: str, order: Order) -> Job:
    return Job(
        id=job_id,
        caller=caller,
        model=order.model,
        request=order.request,
        priority=order.priority,
        metadata=order.metadata,
        callback_url=order.callback_url,
        version=1,
    )


def idempotency(request: Request, body: object) -> Idempotency | None:
    """Digests: keys are callers' text, and bodies are long. Bodies compare as parsed JSON."""
    key = idempotency_key(request)
    if key is None:
        return None
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return Idempotency(key, _digest(canonical.encode()))


def idempotency_key(request: Request) -> str | None:
    """The digest of the header. ProblemError 422: it is too long, or empty."""
    key = request.headers.get("idempotency-key")
    if key is None:
        return None
    if not 0 < len(key) <= IDEMPOTENCY_KEY_CHARS_MAX:
        raise invalid_parameter("Idempotency-Key", f"Should have 1 to {IDEMPOTENCY_KEY_CHARS_MAX} characters")
    return _digest(key.encode("latin-1", "replace"))


def _digest(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


def _answer(job: Job, headers: Mapping[str, str] | None = None, status: int = 200) -> Response:
    return JSONResponse(view(job), status, headers)


def _location(job: Job) -> dict[str, str]:
    return {"Location": f"/v1/jobs/{job.id}"}
