"""A large body must keep 64 KiB/s on the whole: the guard on scripted time."""

import pytest
from starlette.types import Message, Receive, Scope, Send

from service.api.guard import BodyGuard, BodyLimit

pytestmark = pytest.mark.anyio

LIMIT = BodyLimit(200_000_000, deadline_s=10.0, rate_bytes_s=65_536)


class Hands:
    """A clock that only the script moves."""

    at_s = 0.0

    def now_ms(self) -> int:
        return int(self.at_s * 1000)

    def monotonic_s(self) -> float:
        return self.at_s


async def status_of(pieces: list[tuple[float, int]], *, work_s: float = 0.0) -> int:
    """The answer to a body that comes in pieces of (wait in s, bytes), each followed by `work_s` of our own work."""
    clock = Hands()
    script = iter(pieces)
    statuses: list[int] = []

    async def receive() -> Message:
        wait_s, size_bytes = next(script, (0.0, 0))
        clock.at_s += wait_s
        return {"type": "http.request", "body": bytes(size_bytes), "more_body": size_bytes > 0}

    async def send(message: Message) -> None:
        statuses.append(message.get("status", 0))

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive())["more_body"]:
            clock.at_s += work_s
        await send({"type": "http.response.start", "status": 200, "headers": []})

    scope = {"type": "http", "headers": []}
    await BodyGuard(app, lambda _: LIMIT, clock)(scope, receive, send)
    return statuses[0]


async def test_a_body_at_the_rate_may_take_minutes() -> None:
    assert await status_of([(1.0, 65_536)] * 300) == 200


async def test_a_body_under_the_rate_has_the_deadline() -> None:
    assert await status_of([(1.0, 60_000)] * 10) == 200
    assert await status_of([(1.0, 60_000)] * 11) == 408


async def test_a_fast_start_is_credit_for_a_slow_end() -> None:
    assert await status_of([(1.0, 65_536 * 60), (50.0, 1)]) == 200
    assert await status_of([(1.0, 65_536 * 60), (61.0, 1)]) == 408


async def test_our_own_work_is_not_the_senders_lateness() -> None:
    assert await status_of([(0.1, 1_000)] * 50, work_s=100.0) == 200
