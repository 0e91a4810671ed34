"""`python -m workers [submit] [collect] [notify] [batches] [sweep]`: serves the queues named, or all and the sweep.

SIGTERM or SIGINT: no new bells are taken, running steps end within SHUTDOWN_GRACE_S, then exit 0. What was cut off
comes due again by itself; no attempt is burnt.
"""

import argparse
import asyncio
import logging
import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import uvloop
from prometheus_client import Gauge, start_http_server

from service import allocator, logs, settings
from service.settings import BadSettings, Settings
from workers import wiring
from workers.alone import Opened
from workers.fit import Fit
from workers.spool import Spool
from workers.suspects import Suspects
from workers.sweep import Sweep
from workers.tend import Tender
from workers.watchdog import watched
from workers.worker import AsyncWorker

ROLES: Final = ("submit", "collect", "notify", "batches", "sweep")
EXIT_BAD_SETTINGS: Final = 2
BATCH_SLOTS: Final = 2  # batches looked at by one process at once: their work is Redis's and the bucket's

log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m workers", description="Serves the queues of the image service.")
    parser.add_argument("roles", nargs="*", metavar="role", help=f"of {', '.join(ROLES)}; none: all of them")
    roles = parser.parse_args(argv).roles or ROLES
    if unknown := set(roles) - set(ROLES):
        parser.error(f"no such role: {', '.join(sorted(unknown))}; there are {', '.join(ROLES)}")
    try:
        loaded = settings.of_process("workers")
    except BadSettings as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_BAD_SETTINGS
    logs.configure(loaded.log_level)
    allocator.return_large_blocks()
    try:
        uvloop.run(serve(loaded, frozenset(roles)))
    except BadSettings as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_BAD_SETTINGS
    return 0


async def serve(loaded: Settings, roles: frozenset[str], opened: Opened = wiring.opened) -> None:
    """Until SIGTERM or SIGINT. Raises BadSettings where Redis or the bucket must not be used as it is."""
    async with opened(loaded) as house, watched(loaded.watchdog_s):
        fit = Fit(loaded, house.bucket, house.desk.store)
        await fit.begin()
        slots = {
            "submit": loaded.submit_slots,
            "collect": loaded.collect_slots,
            "notify": wiring.NOTIFY_SLOTS,
            "batches": BATCH_SLOTS,
        }
        running: list[AsyncWorker | Sweep | Suspects | Tender | Fit] = [
            fit,
            *(
                AsyncWorker(queue, house.redis, house.sync, slots=count, grace_s=loaded.shutdown_grace_s)
                for queue, count in slots.items()
                if queue in roles
            ),
        ]
        if "sweep" in roles:
            running.append(house.sweep)
        if roles & {"submit", "collect"}:
            running.append(house.suspects)
        if "collect" in roles:
            running.append(house.tender)
        show_metrics(loaded, [each for each in running if isinstance(each, AsyncWorker)], house.spool)
        loop = asyncio.get_running_loop()
        for name in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(name, lambda: [each.stop() for each in running])
        try:
            async with asyncio.TaskGroup() as group:
                for each in running:
                    group.create_task(each.run())
        except BaseExceptionGroup as errors:
            if isinstance(errors.exceptions[0], BadSettings):
                raise errors.exceptions[0] from None
            raise


def show_metrics(loaded: Settings, workers: Sequence[AsyncWorker], spool: Spool) -> None:
    """On METRICS_PORT: the process's own figures, how many bells each queue's worker is serving, and the spool."""
    if not loaded.metrics_port:
        return
    serving = Gauge("darkroom_bells_served_now", "Bells being served by this process.", ["queue"])
    for worker in workers:
        serving.labels(worker.queue.name).set_function(partial(_serving, worker))
    _gauge("darkroom_spool_bytes", "Images that wait on this disk for the bucket.", lambda: spool.usage.bytes)
    _gauge("darkroom_spool_files", "How many they are.", lambda: spool.usage.files)
    _gauge("darkroom_spool_corrupt", "Spooled images that this process found to be damaged.", lambda: spool.corrupt)
    start_http_server(loaded.metrics_port, loaded.host)


def _gauge(name: str, about: str, look: Callable[[], float]) -> None:
    Gauge(name, about).set_function(look)


def _serving(worker: AsyncWorker) -> float:
    return worker.serving


if __name__ == "__main__":
    sys.exit(main())
