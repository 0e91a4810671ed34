"""The provider's API: submit a task, ask for its result. Every answer, and every lack of one, becomes an `Answer`.

A paid POST never rides on a connection that may have died while it was idle: each opens its own, so that a connection
error means that nothing was sent. What fails after that is Unknown, and nobody here posts it again.
"""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import httpx

from service.domain import answers
from service.domain.answers import Answer, NotAccepted, Unknown
from service.secret import Secret
from workers.network import Shards

ANSWER_BYTES_MAX: Final = 1024 * 1024  # some carry a preview; more is not an answer


class AnswerTooLong(httpx.HTTPError):
    """The far side sends without end."""


@dataclass(frozen=True, slots=True)
class Reply:
    status: int
    content_type: str
    body: bytes
    headers: Mapping[str, str]


class Flux:
    """`base_url` as in `FLUX_API_BASE_URL`. `posts` must keep no connection alive; `polls` may."""

    def __init__(
        self, base_url: str, key: Secret, *, x_key: bool, posts: Shards, polls: Shards, deadline_s: float
    ) -> None:
        self._base_url = base_url.rstrip("/")
        self._key = key
        self._x_key = x_key
        self._posts = posts
        self._polls = polls
        self._deadline_s = deadline_s

    async def submit(self, model: str, body: Mapping[str, Any]) -> Answer:
        """`POST {base}/{model}`. Total: NotAccepted only where the bytes cannot have left."""
        request = httpx.Request("POST", f"{self._base_url}/{model}", headers=self._headers(), content=_json(body))
        try:
            reply = await self._send(self._posts, request)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            return NotAccepted(f"not reached: {type(error).__name__}")
        except (httpx.HTTPError, OSError) as error:
            return Unknown(f"no answer: {type(error).__name__}")
        return answers.submit_answer(reply.status, reply.content_type, reply.body, reply.headers)

    async def result(self, provider_id: str) -> Answer:
        """`GET {base}/get_result?id=`. Total; safe to ask at any time."""
        url = httpx.URL(f"{self._base_url}/get_result", params={"id": provider_id})
        try:
            reply = await self._send(self._polls, httpx.Request("GET", url, headers=self._headers()))
        except (httpx.HTTPError, OSError) as error:
            return Unknown(f"no answer: {type(error).__name__}")
        return answers.result_answer(reply.status, reply.content_type, reply.body, reply.headers)

    def _headers(self) -> dict[str, str]:
        key = {"x-key": self._key.reveal()} if self._x_key else {"Authorization": f"Bearer {self._key.reveal()}"}
        return key | {"Content-Type": "application/json", "Accept": "application/json"}

    async def _send(self, shards: Shards, request: httpx.Request) -> Reply:
        async with asyncio.timeout(self._deadline_s):
            return await _exchange(shards.client(), request)


async def _exchange(client: httpx.AsyncClient, request: httpx.Request) -> Reply:
    # A request made by hand has no timeout of its own: it takes the client's.
    request.extensions = {"timeout": client.timeout.as_dict()}
    response = await client.send(request, stream=True)
    try:
        body = bytearray()
        async for chunk in response.aiter_bytes():
            body += chunk
            if len(body) > ANSWER_BYTES_MAX:
                raise AnswerTooLong("the answer does not end")
    finally:
        await response.aclose()
    return Reply(response.status_code, response.headers.get("content-type", ""), bytes(body), response.headers)


def _json(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body, separators=(",", ":")).encode()  # in ASCII: half a surrogate pair has no UTF-8
