"""From a request's bytes to an order, or to the problem that says everything that is wrong with it."""

import asyncio
from collections.abc import Callable
from typing import Final, ParamSpec, TypeVar

from starlette.requests import Request

from service.api.problems import ProblemError
from service.api.room import Room
from service.domain.catalogue import Order
from service.domain.parsing import NOT_JSON, loads
from service.domain.rules import Rules

P = ParamSpec("P")
T = TypeVar("T")

THREAD_FROM_BYTES: Final = 2**19  # decoding base64 images takes tens of milliseconds: not on the loop


class Orders:
    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.room = Room(rules.max_body_bytes)

    @property
    def max_bytes(self) -> int:
        """The most that a body with all its images in base64 can have."""
        return self.rules.max_order_bytes

    async def read(self, request: Request, caller: str) -> tuple[object, Order]:
        """The body as parsed JSON, and as an order. Raises ProblemError: 400, 413, 422."""
        body, size_bytes = await self.parsed(request)
        return body, await self.understood(body, size_bytes, caller)

    async def parsed(self, request: Request) -> tuple[object, int]:
        """The body as JSON, and how many bytes it came as. Raises ProblemError: 400, 413.

        `request.body()` would keep the bytes as long as the request lives, which may wait for its job's end.
        """
        raw = b"".join([chunk async for chunk in request.stream()])
        size_bytes = len(raw)
        body = await apart(size_bytes, loads, raw)
        if body is NOT_JSON:
            raise ProblemError(400, "invalid_json", "The body is not JSON in UTF-8.")
        return body, size_bytes

    async def understood(self, body: object, size_bytes: int, caller: str) -> Order:
        """`understand`, off the loop if there is much of it."""
        return await apart(size_bytes, self.understand, body, size_bytes, caller)

    def understand(self, body: object, size_bytes: int, caller: str) -> Order:
        """The order that parsed JSON spells, which came as so many bytes. Raises ProblemError: 413, 422."""
        order = self.rules.order(body, size_bytes, caller)
        if isinstance(order, Order):
            return order
        if order.too_large:
            raise ProblemError(413, "body_too_large", order.errors[0].detail)
        raise ProblemError(422, "invalid_request", "The request has mistakes.", errors=order.errors)


async def apart(size_bytes: int, work: Callable[P, T], *args: P.args, **how: P.kwargs) -> T:
    """Work on a large body does not hold up the others."""
    if size_bytes < THREAD_FROM_BYTES:
        return work(*args, **how)
    return await asyncio.to_thread(work, *args, **how)
