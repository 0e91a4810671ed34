"""Sends letters. A final one is tried again 1, 5 and 30 s after an answer that is not 2xx, then given up."""

import itertools
import ssl

import httpx

from deploy.rehearsal.letters import Letter

RETRY_AFTER_S = (1.0, 5.0, 30.0)
ANSWER_WITHIN_S = 30.0
SHARDS = 8
SHARD_CONNECTIONS = 8
"""httpx's pool costs the square of its busy connections: eight small ones are 20 times cheaper than a large one."""


class Courier:
    """Dials whatever URL a submission named: for rehearsals on loopback, not for a machine with neighbours."""

    def __init__(self, retry_after_s: tuple[float, ...] = RETRY_AFTER_S) -> None:
        self.retry_after_s = retry_after_s
        context = ssl.create_default_context()
        limits = httpx.Limits(max_connections=SHARD_CONNECTIONS, max_keepalive_connections=SHARD_CONNECTIONS)
        timeout = httpx.Timeout(ANSWER_WITHIN_S, pool=None)
        self._clients = [
            httpx.AsyncClient(verify=context, trust_env=False, limits=limits, timeout=timeout) for _ in range(SHARDS)
        ]
        self._turns = itertools.cycle(self._clients)

    async def post(self, url: str, letter: Letter) -> bool:
        """Whether it was taken (2xx). Redirects are not followed."""
        try:
            answer = await next(self._turns).post(url, content=letter.body, headers=letter.headers)
        except (httpx.HTTPError, httpx.InvalidURL, ValueError):
            return False
        return answer.is_success

    async def close(self) -> None:
        for client in self._clients:
            await client.aclose()
