"""The asyncio RQ worker: many bells on one event loop, and only functions that are listed.

`ListedJob` is RQ's Job with a guard at its door (workers/entry.py). A refused entry is logged once by its function's
name, counted and deleted, and is to RQ like one that was never there. It guards a stock worker as well:

    rq worker --job-class workers.worker.ListedJob --serializer json submit

`AsyncWorker` serves one queue. It takes bells by a script that moves each from the queue to RQ's intermediate list and
reads it in the same step, registers them as started in one round trip, runs each as a task, and commits what ended in
groups: a commit takes whatever ended while the last one was in flight. To wait it asks for BLMOVE from the queue onto
itself, which takes nothing and so can be dropped at any time. RQ's own code does all else (executions, failures,
results that are kept, registries, `rq info`), in a thread where it blocks.

If it is killed: bells between script and registration stay in the intermediate list, started ones in the started
registry. RQ's maintenance fails both within minutes; the sweep has long rung again. If Redis goes away: running tasks
go on, all else waits and tries again; a write that is repeated after a lost answer shows in RQ's counters alone.

What it stands on of RQ 3.0 beyond RQ's documentation is listed, and pinned, in tests/contract/test_rq_contract.py. RQ's
repository carries an asyncio worker, unreleased: when it is out, this one can go.
"""

import asyncio
import inspect
import logging
import os
import socket
from collections.abc import Iterable, Mapping
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Final, Self, cast
from uuid import uuid4

from rq import worker_registration
from rq.exceptions import NoSuchJobError
from rq.executions import Execution
from rq.job import Job, _current_job, get_current_job, parse_job_id
from rq.results import Result
from rq.serializers import JSONSerializer
from rq.timeouts import TimerDeathPenalty
from rq.utils import now
from rq.worker import BaseWorker, WorkerStatus

from service.storage.connection import AsyncRedis, Redis, ResponseError
from workers.entry import judge
from workers.patience import Patience, cut

NAME_CHARS_MAX: Final = 80
CLAIM_MAX: Final = 100  # bells taken by one run of the script, which holds up all of Redis meanwhile
TASK_S_MAX: Final = 3600  # whatever the entry asks for
WAIT_S: Final = 1  # one wait for a bell; less than any socket timeout
BEAT_S: Final = 10
WORKER_TTL_S: Final = 60  # RQ forgets a dead worker a minute after this
MAINTENANCE_S: Final = 60
MOVED: Final = ("status", "origin", "enqueued_at", "timeout", "enqueue_at_front")  # what moving an entry writes

# KEYS: the queue, its intermediate list. ARGV: how many, the prefix of job keys. What is no hash comes back as empty.
CLAIM: Final = """
local taken = {}
for i = 1, tonumber(ARGV[1]) do
  local id = redis.call('LMOVE', KEYS[1], KEYS[2], 'LEFT', 'RIGHT')
  if not id then break end
  local entry = redis.pcall('HGETALL', ARGV[2] .. id)
  taken[i] = {id, entry.err and {} or entry}
end
return taken
"""

log = logging.getLogger(__name__)


def current_id() -> str | None:
    """The RQ id of the entry that the calling task runs for; under our workers and stock ones alike."""
    job = get_current_job()
    return job.id if job else None


class Refused(NoSuchJobError):
    """An entry that may not run; to RQ, one that is not there."""


class ListedJob(Job):
    listed: ClassVar[tuple[str, ...]] = ()  # empty: what workers.tasks lists
    refused: ClassVar[int] = 0  # entries refused in this process
    packed = False  # read without its call, to be moved

    def __init__(self, id: str | None = None, connection: Redis | None = None, serializer: object = None) -> None:  # noqa: A002, ARG002 RQ's signature
        """The serializer is JSON, whatever the worker was told: RQ's own default is pickle."""
        super().__init__(id, connection, JSONSerializer)

    def refresh(self) -> None:
        """Fetch. Refused (a NoSuchJobError): it may not run, and has been deleted so that nobody meets it again."""
        try:
            super().refresh()  # type: ignore[no-untyped-call]  # RQ leaves it untyped
        except Refused:
            self.connection.delete(self.key)
            raise
        except ResponseError as error:
            if "WRONGTYPE" not in str(error):
                raise
            raise Refused from None

    def restore(self, raw_data: Mapping[bytes, bytes]) -> None:
        """Take what Redis holds. Refused: it may not run, or RQ cannot read the rest of it."""
        verdict = judge(raw_data, self.listed or import_module("workers.tasks").LISTED)
        wrong = verdict.wrong
        if not wrong:
            # `result` and `exc_info` are of older RQs, which would inflate them whatever their size.
            kept = {key: value for key, value in raw_data.items() if key not in {b"result", b"exc_info"}}
            try:
                super().restore(kept | {b"data": verdict.data})
            except Exception:  # noqa: BLE001 RQ parses dates, numbers and names that anyone may have written
                wrong = "its fields are unreadable"
        if wrong:
            ListedJob.refused += 1
            log.warning("refused an entry: function %s: %s", ascii(verdict.name[:NAME_CHARS_MAX]), wrong)
            raise Refused
        self.description = verdict.name  # a stranger's may hold arguments, and RQ logs it

    @classmethod
    def fetch_many(cls, job_ids: Iterable[str], connection: Redis, serializer: object = None) -> list[Job | None]:  # noqa: ARG003 RQ's signature
        """Entries that wait for others, strangers' too, which RQ moves into their queues and does not run.

        So their calls may be unlisted: they stay packed, are neither inflated nor read, and cannot be run from here.
        None: it is not there, or RQ cannot read it.
        """
        ids = [parse_job_id(job_id) for job_id in job_ids]
        with connection.pipeline(transaction=False) as pipe:
            for job_id in ids:
                pipe.hgetall(cls.key_for(job_id))
            found = pipe.execute(raise_on_error=False)
        return [cls._packed(job_id, raw, connection) for job_id, raw in zip(ids, found, strict=True)]

    @classmethod
    def _packed(cls, job_id: str, raw: object, connection: Redis) -> Self | None:
        if not raw or not isinstance(raw, dict):
            return None
        kept = {key: value for key, value in raw.items() if key not in {b"meta", b"result", b"exc_info"}}
        try:
            job = cls(job_id, connection)
            job.packed = True
            Job.restore(job, kept | {b"data": b""})
        except Exception as error:  # noqa: BLE001 as in `restore`
            log.warning("left an entry where it waits: its fields are unreadable: %s", trail(error))
            return None
        return job

    def to_dict(self, *which: bool, **named: bool) -> dict[str, Any]:
        """What RQ saves; of one that is packed nothing but what moving it changes."""
        told = super().to_dict(*which, **named)
        return {key: told[key] for key in MOVED if key in told} if self.packed else told


class AsyncWorker(BaseWorker):
    """Serves `queue` with up to `slots` tasks at once. Several may share a loop and the two clients.

    It needs four connections of `connection`'s pool. ValueError: the client's timeout is not over WAIT_S.
    """

    death_penalty_class = TimerDeathPenalty  # RQ's other one needs signals, which threads have not

    def __init__(
        self,
        queue: str,
        connection: AsyncRedis,
        sync: Redis,
        *,
        slots: int,
        grace_s: float = 20.0,
        maintenance_s: int = MAINTENANCE_S,
        job_class: type[ListedJob] = ListedJob,
    ) -> None:
        super().__init__(
            [queue],
            name=f"{queue}-{uuid4().hex}",
            connection=sync,
            job_class=job_class,
            serializer=JSONSerializer,
            worker_ttl=WORKER_TTL_S,
            maintenance_interval=maintenance_s,
            prepare_for_work=False,  # it would ask Redis at once, and Redis may be away
        )
        timeout_s = connection.connection_pool.connection_kwargs.get("socket_timeout")
        if not timeout_s or timeout_s <= WAIT_S:
            raise ValueError(f"the client's timeout must be over {WAIT_S} s: a wait for a bell takes that long")
        self.hostname, self.pid, self.ip_address = socket.gethostname(), os.getpid(), "unknown"
        self.log_result_lifespan = False
        self.queue = self.queues[0]
        self.slots, self.grace_s = slots, grace_s
        self._redis = connection
        self._script = connection.register_script(CLAIM)
        self._running: set[asyncio.Task[None]] = set()
        self._ended: list[tuple[Job, Execution]] = []
        self._patience = Patience(self.name)
        self._insist, self._stopping = self._patience.insist, self._patience.stopping
        self._freed, self._more_ended, self._over = asyncio.Event(), asyncio.Event(), False

    @property
    def serving(self) -> int:
        """Bells that run now."""
        return len(self._running)

    def stop(self) -> None:
        """Take no more bells. `run` returns when the running tasks have ended, or `grace_s` later without them."""
        self._stopping.set()
        self._freed.set()

    async def run(self) -> None:
        """Work until `stop`. Raises only for a mistake of this file's, never for Redis, a task or an entry."""
        await self._insist(asyncio.to_thread, self.register_birth)
        await self._insist(self._show)
        async with asyncio.TaskGroup() as group:
            for side in (self._beat, self._clean, self._commit):
                group.create_task(side())
            while not self._stopping.is_set():
                await self._turn(group)
            if self._running:
                await asyncio.wait(self._running, timeout=self.grace_s)
            await cut(self._running.copy())
            self._over = True
            self._more_ended.set()
        await self._insist(asyncio.to_thread, self.register_death)

    async def _turn(self, group: asyncio.TaskGroup) -> None:
        self._freed.clear()
        free = self.slots - len(self._running)
        if free <= 0:
            await self._freed.wait()
            return
        taken = await self._insist(self._take, min(free, CLAIM_MAX))
        if not taken:
            await self._insist(self._wait)
            return
        for job, execution in await self._insist(self._start, taken) or ():
            task = group.create_task(self._perform(job, execution))
            self._running.add(task)
            task.add_done_callback(self._free)

    async def _take(self, most: int) -> list[tuple[bytes, Job | None]]:
        """Bells moved from the queue to the intermediate list, with None for what may not run or is not there."""
        keys = [self.queue.key, self.queue.intermediate_queue_key]
        taken = await self._script(keys=keys, args=[most, self.job_class.redis_job_namespace_prefix])
        return [(id_, self._read(id_, flat)) for id_, flat in taken]

    def _read(self, id_: bytes, flat: list[bytes]) -> Job | None:
        if not flat:
            return None
        try:
            job = self.job_class(id_.decode(), self.connection)
            job.restore(dict(zip(flat[::2], flat[1::2], strict=True)))
        except (Refused, ValueError):  # ValueError: an id that RQ would never write
            return None
        job.origin = self.queue.name  # RQ would keep books for whatever queue the entry names
        return job

    async def _start(self, taken: list[tuple[bytes, Job | None]]) -> list[tuple[Job, Execution]]:
        """Registered as started, or deleted, and only then out of the intermediate list: never in neither."""
        started = []
        async with self._redis.pipeline(transaction=False) as pipe:
            for id_, job in taken:
                if job is None:
                    pipe.delete(self.job_class.redis_job_namespace_prefix.encode() + id_)
                else:
                    started.append((job, self._register(job, pipe)))
                pipe.lrem(self.queue.intermediate_queue_key, 1, cast("str", id_))
            self.set_state(WorkerStatus.BUSY, pipeline=cast("Any", pipe))
            await pipe.execute()
        self.executions.update((execution.id, execution) for _, execution in started)
        return started

    def _register(self, job: Job, pipe: Any) -> Execution:
        """`pipe` is redis-py's asyncio one wherever RQ is handed it: it buffers commands as RQ's own does."""
        execution = Execution.create(job, task_s(job) + 60, pipeline=pipe, worker_name=self.name)
        job.prepare_for_execution(self.name, pipeline=pipe)
        if job.ttl:
            pipe.persist(job.key)
        return execution

    async def _wait(self) -> None:
        """Until the queue holds a bell or `stop`, for WAIT_S at most."""
        blmove = self._redis.blmove(self.queue.key, self.queue.key, WAIT_S, "LEFT", "LEFT")
        bell, stop = asyncio.ensure_future(blmove), asyncio.ensure_future(self._stopping.wait())
        try:
            done, _ = await asyncio.wait((bell, stop), return_when=asyncio.FIRST_COMPLETED)
            if bell in done:
                await bell
        finally:
            await cut({task for task in (bell, stop) if not task.done()})

    async def _perform(self, job: Job, execution: Execution) -> None:
        """Run one bell to its end in RQ's books. One that `stop` cut off just goes: its job comes due again."""
        _current_job.set(job)
        try:
            async with asyncio.timeout(task_s(job)):
                result = await call(job)
            if job.result_ttl != 0:
                await self._insist(asyncio.to_thread, self._finalize_success, job, self.queue, execution, result)
                return
            job.ended_at = now()
        except asyncio.CancelledError:
            log.warning("%s (%s) was cut off", job.description, job.id)
        except (Exception, SystemExit) as error:  # noqa: BLE001 whatever a task raises is its own failure
            await self._fail(job, execution, trail(error))
            return
        self._ended.append((job, execution))
        self._more_ended.set()

    async def _fail(self, job: Job, execution: Execution, what: str) -> None:
        log.error("%s (%s) failed: %s", job.description, job.id, what)
        failure = TaskError, TaskError(what), None
        await self._insist(asyncio.to_thread, self._finalize_failure, job, self.queue, execution, failure)

    def handle_exception(self, job: Job, *exc_info: object) -> None:
        """Logged already. RQ's own would log the traceback, whose messages may quote URLs, and the arguments."""

    async def _commit(self) -> None:
        over = False
        while not over:
            await self._more_ended.wait()
            self._more_ended.clear()
            over = self._over
            await self._insist(self._flush)

    async def _flush(self) -> None:
        ended = self._ended.copy()
        if not ended:
            return
        took = [job.ended_at - job.started_at for job, _ in ended if job.started_at and job.ended_at]
        async with self._redis.pipeline(transaction=False) as pipe:
            for job, execution in ended:
                self._close(job, execution, pipe)
            pipe.hincrby(self.key, "successful_job_count", len(took))
            self.increment_total_working_time(sum(took, timedelta()), cast("Any", pipe))
            self.set_state(self._status(), pipeline=cast("Any", pipe))
            await pipe.execute()
        del self._ended[: len(ended)]

    def _close(self, job: Job, execution: Execution, pipe: Any) -> None:
        """What RQ does for a result_ttl of 0; its own code for it reads Redis in between."""
        self.cleanup_execution(job, pipeline=pipe, execution=execution)
        results_key = Result.get_key(job.id)  # type: ignore[no-untyped-call]  # RQ leaves it untyped
        pipe.delete(job.key, job.dependents_key, job.dependencies_key, job.execution_registry.key, results_key)

    def _status(self) -> WorkerStatus:
        return WorkerStatus.BUSY if self._running else WorkerStatus.IDLE

    def _free(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._freed.set()

    async def _beat(self) -> None:
        while not await self._patience.stops_within(BEAT_S):
            await self._insist(self._show)

    async def _show(self) -> None:
        """Everything `rq info` shows, each time: Redis may have come back empty."""
        async with self._redis.pipeline() as pipe:
            rq_pipe: Any = pipe
            self.heartbeat(pipeline=rq_pipe)
            pipe.hset(self.key, mapping=self.serialize())
            self.set_state(self._status(), pipeline=rq_pipe)
            worker_registration.register(self, rq_pipe)
            await pipe.execute()

    async def _clean(self) -> None:
        while not await self._patience.stops_within(self.maintenance_interval):
            try:
                await asyncio.to_thread(self.clean_registries)
            except Exception as error:  # noqa: BLE001 RQ reads what anyone may have written; it is tried again anyway
                log.warning("maintenance of %s failed: %s", self.queue.name, trail(error))

    def _set_connection(self, connection: Redis) -> Redis:
        """RQ's own would raise the socket timeout to minutes, for blocking commands that are not sent here."""
        return connection


class TaskError(Exception):
    """What RQ keeps of a task's exception: its type and place."""


async def call(job: Job) -> Any:
    func = job.func
    if inspect.iscoroutinefunction(func):
        return await func(*job.args, **job.kwargs)
    return await asyncio.to_thread(func, *job.args, **job.kwargs)


def task_s(job: Job) -> int:
    """How long a task may take. -1 is RQ's word for ever."""
    asked = int(job.timeout or 0)
    return min(asked, TASK_S_MAX) if asked > 0 else TASK_S_MAX


def trail(error: BaseException) -> str:
    """`KeyError at collect.py:31`: an exception without its message, which may quote a signed URL or a prompt."""
    place = error.__traceback__
    while place and place.tb_next:
        place = place.tb_next
    where = f" at {Path(place.tb_frame.f_code.co_filename).name}:{place.tb_lineno}" if place else ""
    return type(error).__name__ + where
