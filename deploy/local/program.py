"""A Python program of ours as a part of the stack: started, awaited by what it answers, stopped."""

import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from .child import STOP_DEADLINE_S, Spawn, await_ready, halt

PROBE_TIMEOUT_S: Final = 2.0
START_DEADLINE_S: Final = 30.0
# Loopback is never behind the proxy that a developer's environment may name.
OPENER: Final = build_opener(ProxyHandler({}))
Answers = Callable[[int], bool]  # given its pid: does it do its work?


class Program:
    """`python -m` with these arguments. Not running until `start`; may be started again after it ended."""

    def __init__(self, arguments: list[str], env: Mapping[str, str], log: Path, answers: Answers, spawn: Spawn) -> None:
        self.log = log
        self._argv = [sys.executable, "-m", *arguments]
        self._env = env
        self._answers = answers
        self._spawn = spawn
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Its process id. RuntimeError before the first start."""
        if self._process is None:
            raise RuntimeError("not started")
        return self._process.pid

    def start(self, deadline_s: float = START_DEADLINE_S) -> None:
        """Return once it answers. StartError, with the end of its log, if it does not in time; then it is stopped."""
        process = self._process = self._spawn(self._argv, self.log, self._env)
        try:
            await_ready(process, lambda: self._answers(process.pid), self.log, deadline_s)
        except BaseException:
            self.stop()
            raise

    def stop(self, deadline_s: float = STOP_DEADLINE_S) -> None:
        """Afterwards it is gone. Stopping twice is fine."""
        if self._process is not None:
            halt(self._process, deadline_s)


def http_ok(url: str) -> Answers:
    """It answers this URL with a 2xx."""

    def answers(_: int) -> bool:
        try:
            with OPENER.open(url, timeout=PROBE_TIMEOUT_S):
                return True
        except (URLError, OSError):  # HTTPError is a URLError: alive, but not ready
            return False

    return answers


def serves_a_queue(redis_url: str) -> Answers:
    """RQ's own register of workers names its pid: it has reached Redis and takes bells."""

    def answers(pid: int) -> bool:
        with Redis.from_url(
            redis_url,
            socket_timeout=PROBE_TIMEOUT_S,
            socket_connect_timeout=PROBE_TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),
        ) as redis:
            try:
                keys = redis.smembers("rq:workers")
                return str(pid).encode() in {redis.hget(key, "pid") for key in keys}
            except RedisError:
                return False

    return answers
