"""The door of `/v1`: who calls, and what every answer there says."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from service.api.problems import ProblemError
from service.domain.job import Job
from service.tokens import ApiTokens

T = TypeVar("T")
Endpoint = Callable[[Request], Awaitable[Response]]
CallersEndpoint = Callable[[Request, str], Awaitable[Response]]

ADMIN: Final = "admin"  # sees the jobs of all callers
REDIS_WITHIN_S: Final = 0.9  # pool, connection and answer together: a caller hears of an outage within a second


class Door:
    """`door(endpoint)` is the endpoint for callers with a token. The others are answered 401."""

    def __init__(self, tokens: ApiTokens) -> None:
        self._tokens = tokens

    def __call__(self, endpoint: CallersEndpoint) -> Endpoint:
        async def enter(request: Request) -> Response:
            caller = self._tokens.caller(request.headers.get("authorization"))
            if caller is None:
                raise ProblemError(
                    401, "unauthorized", "A known API token is wanted.", headers={"WWW-Authenticate": "Bearer"}
                )
            response = await endpoint(request, caller)
            response.headers.setdefault("Cache-Control", "no-store")
            return response

        return enter


def may_see(caller: str, owner: str) -> bool:
    return caller in (ADMIN, owner)


def owned(job: Job | None, caller: str) -> Job:
    """The job, if this caller may know of it; else it is as unknown as any other. Raises ProblemError."""
    if job is None or not may_see(caller, job.caller):
        raise unknown_job()
    return job


def unknown_job() -> ProblemError:
    return ProblemError(404, "not_found", "No such job.")


async def promptly(call: Awaitable[T]) -> T:
    """What Redis is asked for while a caller waits. TimeoutError: it did not answer in time (503)."""
    async with asyncio.timeout(REDIS_WITHIN_S):
        return await call
