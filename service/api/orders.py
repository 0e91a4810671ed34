"""From a request's bytes to an order, or to the problem that says everything that is wrong with it."""

import asyncio
import json
from collections.abc import Callable, Collection
from typing import Final, ParamSpec, TypeVar

from starlette.requests import Request

from service.api.problems import ProblemError
from service.api.room import Room
from service.domain import catalogue
from service.domain.addresses import HostList, Refusal, check_url
from service.domain.catalogue import Order
from service.domain.errors import FieldError
from service.domain.inputs import InputBytes, split_input
from service.domain.parsing import NOT_JSON, loads

P = ParamSpec("P")
T = TypeVar("T")

THREAD_FROM_BYTES: Final = 2**19  # decoding base64 images takes tens of milliseconds: not on the loop
BASE64_SLACK_BYTES: Final = 2**16  # data: prefixes, padding, white space around


class Orders:
    """`notify_hosts`: where callbacks may go besides public https; `notified`: callers who have a secret for them."""

    def __init__(
        self,
        *,
        extra_models: Collection[str],
        notify_hosts: str,
        notified: Collection[str],
        max_body_bytes: int,
        max_input_bytes: int,
    ) -> None:
        self._extra_models = frozenset(extra_models)
        self._hosts = HostList.parse(notify_hosts, any_public=True)
        self._notified = notified
        self._max_body_bytes = max_body_bytes
        self._max_input_bytes = max_input_bytes
        self.room = Room(max_body_bytes)

    @property
    def max_bytes(self) -> int:
        """The most that a body with all its images in base64 can have."""
        return self._max_body_bytes + self._max_input_bytes * 4 // 3 + BASE64_SLACK_BYTES

    async def read(self, request: Request, caller: str) -> tuple[object, Order]:
        """The body as parsed JSON, and as an order. Raises ProblemError: 400, 413, 422.

        `request.body()` would keep the bytes as long as the request lives, which may wait for its job's end.
        """
        raw = b"".join([chunk async for chunk in request.stream()])
        size_bytes = len(raw)
        body = await _apart(size_bytes, loads, raw)
        del raw
        if body is NOT_JSON:
            raise ProblemError(400, "invalid_json", "The body is not JSON in UTF-8.")
        return body, await _apart(size_bytes, self.understand, body, size_bytes, caller)

    def understand(self, body: object, size_bytes: int, caller: str) -> Order:
        """The order that parsed JSON spells, which came as so many bytes. Raises ProblemError: 413, 422."""
        if size_bytes > self._max_body_bytes and _bare_bytes(body) > self._max_body_bytes:
            raise _too_large(f"Without input images a job may have {self._max_body_bytes} bytes.")
        order = catalogue.check(body, extra_models=self._extra_models)
        if isinstance(order, list):
            raise _invalid(order)
        if sum(map(len, order.inputs.values())) > self._max_input_bytes:
            raise _too_large(f"Input images may have {self._max_input_bytes} bytes, decoded and all together.")
        if detail := self._objection(order.callback_url, caller):
            raise _invalid([FieldError("/callback_url", detail)])
        return order

    def _objection(self, callback_url: str | None, caller: str) -> str | None:
        if callback_url is None:
            return None
        if caller not in self._notified:
            return "Needs a notify secret, and this caller has none (NOTIFY_SECRETS)"
        verdict = check_url(callback_url, self._hosts)
        return f"Is not called: {verdict.reason.replace('_', ' ')}" if isinstance(verdict, Refusal) else None


async def _apart(size_bytes: int, work: Callable[P, T], *args: P.args, **how: P.kwargs) -> T:
    """Work on a large body does not hold up the others."""
    if size_bytes < THREAD_FROM_BYTES:
        return work(*args, **how)
    return await asyncio.to_thread(work, *args, **how)


def _bare_bytes(body: object) -> int:
    """The size of any JSON value, less the images if it is an order."""
    if isinstance(body, dict):
        model = str(body.get("model"))
        images = {name for name in catalogue.input_image_fields(model) if _is_image(model, body.get(name))}
        body = {name: value for name, value in body.items() if name not in images}
    return len(json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass"))


def _is_image(model: str, value: object) -> bool:
    """What a model of the catalogue gets as an image and is no URL was meant as one: broken base64 is a 422 later.

    Other models get such text as it is, so there it has to be base64 not to count.
    """
    if not isinstance(value, str) or value.startswith(("http://", "https://")):
        return False
    return model in catalogue.MODELS or isinstance(split_input(value), InputBytes)


def _invalid(errors: list[FieldError]) -> ProblemError:
    return ProblemError(422, "invalid_request", "The request has mistakes.", errors=errors)


def _too_large(detail: str) -> ProblemError:
    return ProblemError(413, "body_too_large", detail)
