"""The whole system on embedded parts, in one folder: what `make run` starts, and what tests start on folders of theirs.

with Stack(folder, workers=2, rehearsal=["--latency-s", "0.1"], overrides={"LEASE_S": "2"}) as stack:
    before = stack.kill("redis")
    stack.await_next("redis", before)
    httpx.get(f"{stack.addresses.service_url}/readyz")
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from service.settings import Settings, load

from .environment import ROOT, Addresses, compose, generated, is_rehearsal
from .keeper import Keeper, Say, Server
from .leash import Leash
from .lock import Lock
from .ports import free_port, is_free, kept_port
from .program import Program, http_ok, serves_a_queue
from .seaweed import Seaweed
from .valkey import Valkey

BACK_DEADLINE_S: Final = 30.0
# Ten seconds in all. Each part may be killed at any moment, so what is not done by then is cut off.
STOP_S: Final = {"http": 4.0, "workers": 3.0}
STOP_OTHERS_S: Final = 0.9


class Stack:
    """Parts by name: `redis`, `store`, `rehearsal`, `workers-1` …, `http`. Data stay in `folder` from start to start.

    `user`: settings as a person would write them. `overrides` win over everything, `rehearsal` are flags of that
    provider, `port` is where the HTTP process should listen (0 or taken: any free one), `say` hears of what happens.
    Killed half-way, nothing of it is left running and all that was acknowledged is in the folder.
    """

    def __init__(
        self,
        folder: Path,
        *,
        user: Mapping[str, str] | None = None,
        overrides: Mapping[str, str] | None = None,
        rehearsal: Sequence[str] = (),
        workers: int = 1,
        port: int = 0,
        say: Say = lambda _: None,
    ) -> None:
        """Raises Occupied if another one works on the folder."""
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.folder = folder.resolve()
        self.logs = self.folder / "logs"
        self.logs.mkdir(exist_ok=True)
        self._lock = Lock(self.folder / "run.lock")
        self._leash = Leash(held=[self._lock.descriptor])
        self._user, self._overrides = dict(user or {}), dict(overrides or {})
        self._flags, self._workers, self._say = rehearsal, workers, say
        self._made = generated(self.folder / "secrets.json")
        self.redis = Valkey(self.folder / "redis", spawn=self._leash.spawn)
        self.store = Seaweed(self.folder / "store", spawn=self._leash.spawn)
        self._port = port if port and is_free(port) else free_port()
        rehearsing = is_rehearsal(self._user | self._overrides)
        # Kept from run to run: image URLs that were told in the last one lead there.
        self._rehearsal_port = kept_port(self.folder / "rehearsal.port") if rehearsing else None
        self._keepers: dict[str, Keeper] = {}
        self._stopped = False

    def start(self) -> None:
        """Return once every part does its work. BadSettings, StartError with the end of a log: nothing is running."""
        try:
            _ = self.settings  # a mistake in them is told before anything is started
            self._keep("redis", self.redis)
            self._keep("store", self.store)
            for name, program in self._programs().items():
                self._keep(name, program)
        except BaseException:
            self.stop()
            raise
        self._lock.tell(self.addresses.service_url)

    def stop(self) -> None:
        """In the reverse order of the start, within ten seconds. Afterwards no process is left. Twice is fine."""
        if self._stopped:
            return
        self._stopped = True
        self._leash.shut()
        for name, keeper in reversed(self._keepers.items()):
            keeper.stop(STOP_S.get(name.partition("-")[0], STOP_OTHERS_S))
        self._leash.close()
        self._lock.release()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def addresses(self) -> Addresses:
        return Addresses(
            redis_url=self.redis.url,
            s3_endpoint_url=self.store.endpoint_url,
            s3_bucket=self.store.bucket,
            access_key=self.store.access_key,
            secret_key=self.store.secret_key,
            port=self._port,
            rehearsal_port=self._rehearsal_port,
        )

    @property
    def environment(self) -> dict[str, str]:
        """For a process that is to see the same system: a further worker, a script."""
        return compose(self._user, self._made, self.addresses, self.folder, self._overrides)

    @property
    def settings(self) -> Settings:
        """What that process would read. BadSettings."""
        return load(self.environment, dotenv=ROOT / ".env")

    @property
    def caller(self) -> tuple[str, str]:
        """Name and token of one who may call; `admin` if there is one."""
        tokens = self.settings.api_tokens
        name = "admin" if "admin" in tokens else next(iter(tokens))
        return name, tokens[name].reveal()

    @property
    def pids(self) -> dict[str, int]:
        return {name: keeper.pid for name, keeper in self._keepers.items()}

    def kill(self, name: str, *, hold: bool = False) -> int:
        """SIGKILL; it starts again after a second, or with `hold` on `release`. Returns the pid that was."""
        return self._keepers[name].kill(hold=hold)

    def release(self, name: str) -> None:
        self._keepers[name].release()

    def await_next(self, name: str, pid: int, deadline_s: float = BACK_DEADLINE_S) -> int:
        """The pid that took over from `pid`, once it does its work. TimeoutError."""
        return self._keepers[name].await_next(pid, deadline_s)

    def _keep(self, name: str, server: Server) -> None:
        keeper = self._keepers[name] = Keeper(name, server, self._leash, self._say)
        keeper.start()

    def _programs(self) -> dict[str, Program]:
        at = self.addresses
        rehearsing = [] if at.rehearsal_port is None else ["rehearsal"]
        probes = {
            "rehearsal": http_ok(f"{at.rehearsal_url}/_health"),
            "workers": serves_a_queue(at.redis_url),
            "http": http_ok(f"{at.service_url}/readyz"),
        }
        commands = {
            "rehearsal": ["deploy.rehearsal", "--port", str(at.rehearsal_port), *self._flags],
            "workers": ["workers"],
            "http": ["service"],
        }
        names = [*rehearsing, *(f"workers-{number}" for number in range(1, self._workers + 1)), "http"]
        return {
            name: Program(
                commands[name.partition("-")[0]],
                self.environment,
                self.logs / f"{name}.log",
                probes[name.partition("-")[0]],
                self._leash.spawn,
            )
            for name in names
        }
