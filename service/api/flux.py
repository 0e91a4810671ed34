"""The provider's own API, spoken by us: a Flux client changes its base URL, and loses no image any more.

    POST /flux/v1/{model}            → {"id", "polling_url"}
    GET  /flux/v1/get_result?id=     → {"id", "status", "result": {"sample", …} | null, …}

The same under `/v1/{model}` and `/v1/get_result`, for clients that know no base path (the `blackforest` package).
With a `webhook_url` of the client's own, that is told of the end in the provider's shape, as a notification
(`workers/notify.py`); address and secret are kept sealed. A task's id is a job's id. `sample` is presigned anew at
each read, so that no link dies before it is used. Errors are told as Black Forest Labs tell them: `{"detail": …}`, for
422 a list of FastAPI's `{"type", "loc", "msg"}`.
"""

from collections.abc import Awaitable, Callable
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from service.api.auth import Endpoint, may_see, promptly
from service.api.jobs import idempotency
from service.api.openapi import Operation
from service.api.orders import Orders
from service.api.past import Past
from service.api.problems import ProblemError
from service.api.reception import Reception
from service.domain import flux_view, layout
from service.domain.addresses import Refusal, check_url
from service.domain.errors import FieldError
from service.domain.view import view
from service.seals import Hook, Seals
from service.storage.bucket import Bucket
from service.storage.connection import RedisError
from service.storage.objects import BucketError
from service.storage.store import Store
from service.tokens import ApiTokens

BASES: Final = ("/flux/v1", "/v1")
OPERATIONS: Final = tuple(
    Operation(method, base + path, name, about, {200: ("As the provider answers", None)})
    for base in BASES
    for method, path, name, about in (
        ("get", "/get_result", "fluxResult", "A task's state, as the provider tells it"),
        ("post", "/{model:str}", "fluxSubmit", "Order an image, as from the provider"),
    )
)
NOT_FOUND: Final = "Task not found"
SECRET_CHARS_MAX: Final = 1_024
OURS: Final = frozenset({"webhook_url", "webhook_secret"})

Told = dict[str, Any]


class Flux:
    """The endpoints. A caller's token comes as `Authorization: Bearer …` or as `x-key`."""

    def __init__(
        self,
        tokens: ApiTokens,
        store: Store,
        bucket: Bucket,
        past: Past,
        orders: Orders,
        reception: Reception,
        seals: Seals,
    ) -> None:
        self._tokens = tokens
        self._store = store
        self._bucket = bucket
        self._past = past
        self._orders = orders
        self._reception = reception
        self._seals = seals

    def endpoints(self) -> list[Endpoint]:
        """In the order of OPERATIONS."""
        return [self._told(self._result), self._told(self._submit)] * len(BASES)

    async def _submit(self, request: Request, caller: str) -> Response:
        async with self._orders.room.place(request):
            body, size_bytes = await self._orders.parsed(request)
            if not isinstance(body, dict):
                raise ProblemError(422, "invalid_request", "Input should be an object", errors=[])
            url = body.get("webhook_url")
            hook = None if url is None else self._hook(url, body.get("webhook_secret"))
            asked = {name: value for name, value in body.items() if value is not None and name not in OURS}
            asked["model"] = request.path_params["model"]
            order = await self._orders.understood(asked, size_bytes, caller)
            same = idempotency(request, asked if url is None else asked | {"webhook_url": url})
            job = await self._reception.take(caller, order, same, hook=hook)
        answer = {"id": job.id, "polling_url": f"{_base(request)}/get_result?id={job.id}"}
        return JSONResponse(answer if url is None else answer | {"status": "Pending", "webhook_url": url})

    def _hook(self, url: object, secret: object) -> str:
        """The client's own address and secret, sealed. Raises ProblemError 422, naming the field."""
        verdict = check_url(url, self._orders.rules.notify_hosts) if isinstance(url, str) else Refusal("not_a_url")
        if isinstance(verdict, Refusal):
            raise _mistake("/webhook_url", f"Is not called: {verdict.reason.replace('_', ' ')}")
        if not isinstance(secret, str | None) or len(secret or "") > SECRET_CHARS_MAX:
            raise _mistake("/webhook_secret", f"Should be a text of at most {SECRET_CHARS_MAX} characters, or null")
        if not self._seals.can_seal:
            raise _mistake("/webhook_url", "Is not called: this service has no WEBHOOK_KEYS to seal its secret with")
        return self._seals.seal(Hook(str(url), secret or ""))

    async def _result(self, request: Request, caller: str) -> Response:
        job_id = request.query_params.get("id", "")
        told = await self._seen(job_id, caller)
        if told is None:
            return JSONResponse({"id": job_id, "status": NOT_FOUND, "result": None, "detail": NOT_FOUND}, 404)
        return JSONResponse(await self._state(told))

    async def _seen(self, job_id: str, caller: str) -> Told | None:
        job = await promptly(self._store.get(job_id)) if layout.valid_id("job", job_id) else None
        if job is not None:
            return view(job) if may_see(caller, job.caller) else None
        try:
            return await self._past.look(job_id, caller)
        except ProblemError:
            return None

    async def _state(self, told: Told) -> Told:
        image = told["image"]
        if image is None:
            return flux_view.state(told, None)
        name = str(image["key"]).rpartition("/")[2]
        link = await self._bucket.presign_get(layout.image_key(told["id"], name.rpartition(".")[2]), name)  # type: ignore[arg-type]  # a wrong one is refused with a ValueError
        return flux_view.state(told, link)

    def _told(self, endpoint: Callable[[Request, str], Awaitable[Response]]) -> Endpoint:
        """The endpoint for callers with a token; whatever goes wrong is told in the provider's words."""

        async def enter(request: Request) -> Response:
            try:
                response = await endpoint(request, self._caller(request))
            except ProblemError as error:
                response = complaint(error)
            except (RedisError, BucketError, TimeoutError):
                response = JSONResponse({"detail": "Service unavailable"}, 503, {"retry-after": "1"})
            response.headers["Cache-Control"] = "no-store"
            return response

        return enter

    def _caller(self, request: Request) -> str:
        key = request.headers.get("x-key")
        caller = self._tokens.caller(f"Bearer {key}" if key else request.headers.get("authorization"))
        if caller is None:
            raise ProblemError(403, "unauthorized", "Not authenticated")
        return caller


def _base(request: Request) -> str:
    """Where the client reaches us. A proxy that ends TLS says so; a client that lies about it misleads itself alone."""
    scheme = "https" if request.headers.get("x-forwarded-proto", "").lower() == "https" else request.url.scheme
    return str(request.url.replace(query="", scheme=scheme)).rpartition("/")[0]


def _mistake(pointer: str, detail: str) -> ProblemError:
    return ProblemError(422, "invalid_request", "The request has mistakes.", errors=[FieldError(pointer, detail)])


def complaint(error: ProblemError) -> Response:
    """A problem in FastAPI's words, as the provider has them."""
    errors = error.errors
    detail: Any = [
        {"type": "value_error", "loc": ["body", *each.pointer.split("/")[1:]], "msg": each.detail} for each in errors
    ] or error.detail
    return JSONResponse({"detail": detail}, error.status, error.headers)
