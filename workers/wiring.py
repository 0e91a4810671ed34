"""The composition root of a worker process: everything is built here, once, and handed to those who use it."""

import asyncio
import os
import random
import secrets
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final

import httpcore

from service import settings as configuration
from service.clock import SystemClock
from service.domain.addresses import HostList
from service.intake import Intake
from service.parsers import CALLER
from service.seals import Seals
from service.settings import Settings
from service.storage import connection
from service.storage.bell import Bells
from service.storage.bucket import Bucket
from service.storage.connection import AsyncRedis, Redis
from service.storage.desk import Desk
from service.storage.inputs import Inputs
from service.storage.store import Store
from service.tokens import CallbackKeys
from service.wiring import bucket_config, limits, rules
from workers import batches, collect, submit, suspects, sweep
from workers.batches import Binder
from workers.close import Closer
from workers.collect import Collector
from workers.courier import HttpCourier
from workers.download import sweep_leftovers
from workers.fetch import Fetcher
from workers.flux import Flux
from workers.handover import Handover
from workers.network import GuardedBackend, Shards, Timeouts
from workers.notify import Notifier
from workers.pull import Puller
from workers.pulse import beating
from workers.spool import Spool
from workers.submit import Submitter
from workers.suspects import Suspects
from workers.sweep import Sweep
from workers.tend import Tender
from workers.timing import Timing

REDIS_TIMEOUT_S: Final = 5.0
REDIS_CONNECTIONS: Final = 32
NO_KEEPALIVE_S: Final = 0.0
NOTIFY_SLOTS: Final = 64  # notifications that one process sends at once


@dataclass(frozen=True, slots=True)
class House:
    """What one worker process is made of. `redis` and `sync` serve RQ's own bookkeeping."""

    settings: Settings
    redis: AsyncRedis
    sync: Redis
    desk: Desk
    bucket: Bucket
    submitter: Submitter
    collector: Collector
    sweep: Sweep
    suspects: Suspects
    spool: Spool
    tender: Tender
    binder: Binder
    notifier: Notifier
    intake: Intake
    handover: Handover


_OPEN: ContextVar[House | None] = ContextVar("house", default=None)


@asynccontextmanager
async def house() -> AsyncIterator[House]:
    """The process's own house. Under a stock RQ worker, which gives each entry a loop of its own, one for the entry."""
    standing = _OPEN.get()
    if standing is not None:
        yield standing
        return
    async with opened(configuration.of_process("workers")) as built:
        yield built


@asynccontextmanager
async def opened(settings: Settings, alone: str = suspects.ALONE) -> AsyncIterator[House]:
    """Build the house, and take it down in order. Tasks started inside find it through `house()`.

    `alone`: the module that runs suspects apart.
    """
    async with AsyncExitStack() as stack:
        built = await _build(settings, stack, alone)
        await stack.enter_async_context(beating(built.desk.store.quarantine, settings.process_lost_s))
        token = _OPEN.set(built)
        try:
            yield built
        finally:
            _OPEN.reset(token)
            await built.desk.drain()


async def _build(settings: Settings, stack: AsyncExitStack, alone: str) -> House:
    clock, dice = SystemClock(), random.Random()  # noqa: S311 -- jitter, nothing secret
    redis, sync = _redis(settings, stack)
    bells = Bells(redis, sync)
    name = f"{socket.gethostname()}:{os.getpid()}"
    spool = await asyncio.to_thread(Spool, settings.spool_dir, settings.spool_max_bytes, clock)
    uid = f"{name}:{secrets.token_hex(4)}"
    store = Store(redis, limits(settings), actor=f"worker {name}", uid=uid, spool=spool.id)
    desk = Desk(store, bells, clock)
    bucket = Bucket(bucket_config(settings, max_connections=settings.collect_slots))
    stack.push_async_callback(bucket.close)
    flux = await _flux(settings, stack)
    timing = Timing(
        desk.store, clock, dice, callbacks=settings.public_base_url is not None, gap_most_s=settings.poll_max_s
    )
    closer = Closer(
        desk,
        flux,
        bucket,
        dice,
        spool=spool,
        unknown_wait_s=settings.unknown_wait_s,
        generation_timeout_s=settings.generation_timeout_s,
    )
    puller = await _puller(settings, stack, desk, flux, bucket, closer, spool, dice)
    buying = submit.Terms(
        lease_s=settings.lease_s,
        unknown_wait_s=settings.unknown_wait_s,
        unknown_outcome=settings.unknown_outcome,
        public_base_url=settings.public_base_url,
        input_bytes_max=settings.input_image_max_bytes,
    )
    looking = collect.Terms(
        lease_s=settings.lease_s,
        unknown_wait_s=settings.unknown_wait_s,
        generation_timeout_s=settings.generation_timeout_s,
    )
    sweeping = sweep.Terms(
        interval_s=settings.sweep_interval_s, again_s=settings.sweep_again_s, lost_s=settings.process_lost_s
    )
    apart = suspects.Terms(
        lease_s=settings.lease_s,
        interval_s=settings.sweep_interval_s,
        retry_s=settings.suspect_retry_s,
        module=alone,
    )
    inputs = Inputs(desk.store, bucket, settings.input_image_max_bytes)
    intake = Intake(desk.store, inputs, rules(settings), clock)
    binding = batches.Terms(lease_s=settings.lease_s, temp_dir=settings.temp_dir)
    return House(
        settings=settings,
        redis=redis,
        sync=sync,
        desk=desk,
        bucket=bucket,
        submitter=Submitter(desk, flux, bucket, timing, CallbackKeys(settings.webhook_keys), clock, dice, buying),
        collector=Collector(desk, flux, timing, puller, closer, clock, looking),
        sweep=Sweep(desk, bells, bucket, closer, clock, sweeping),
        suspects=Suspects(desk, apart),
        spool=spool,
        tender=Tender(desk, spool, clock),
        binder=Binder(desk, bucket, inputs, intake, clock, binding),
        notifier=await _notifier(settings, stack, desk, bucket, clock, dice),
        intake=intake,
        handover=Handover(desk, intake, bucket, lambda name: CALLER.fullmatch(name) is not None),
    )


def _redis(settings: Settings, stack: AsyncExitStack) -> tuple[AsyncRedis, Redis]:
    url = settings.redis_url.reveal()
    redis = connection.connect(url, timeout_s=REDIS_TIMEOUT_S, max_connections=REDIS_CONNECTIONS)
    sync = connection.connect_sync(url, timeout_s=REDIS_TIMEOUT_S)
    stack.push_async_callback(redis.aclose)
    stack.callback(sync.close)
    return redis, sync


async def _flux(settings: Settings, stack: AsyncExitStack) -> Flux:
    """The operator's own address: dialled as it is. A POST never reuses a connection (see workers/flux.py)."""
    if settings.flux_api_key is None:
        raise ValueError("FLUX_API_KEY is checked when the settings are loaded")
    timeouts = Timeouts(read_s=settings.flux_timeout_s)
    backend = httpcore.AnyIOBackend()
    posts = Shards(connections=settings.submit_slots, backend=backend, timeouts=timeouts, keepalive_s=NO_KEEPALIVE_S)
    polls = Shards(connections=settings.collect_slots * 2, backend=backend, timeouts=timeouts)
    return Flux(
        settings.flux_api_base_url,
        settings.flux_api_key,
        x_key=settings.flux_api_auth == "x-key",
        posts=await stack.enter_async_context(posts),
        polls=await stack.enter_async_context(polls),
        deadline_s=settings.flux_timeout_s,
    )


async def _puller(
    settings: Settings,
    stack: AsyncExitStack,
    desk: Desk,
    flux: Flux,
    bucket: Bucket,
    closer: Closer,
    spool: Spool,
    dice: random.Random,
) -> Puller:
    hosts = HostList.parse(settings.flux_result_hosts)
    pulls = Shards(connections=settings.collect_slots, backend=GuardedBackend(hosts.private_ok))
    await asyncio.to_thread(settings.temp_dir.mkdir, parents=True, exist_ok=True)
    await asyncio.to_thread(sweep_leftovers, settings.temp_dir)
    return Puller(
        desk,
        flux,
        bucket,
        closer,
        Fetcher(await stack.enter_async_context(pulls), hosts, settings.temp_dir),
        dice,
        spool=spool,
        generation_timeout_s=settings.generation_timeout_s,
    )


async def _notifier(
    settings: Settings, stack: AsyncExitStack, desk: Desk, bucket: Bucket, clock: SystemClock, dice: random.Random
) -> Notifier:
    """Callers' addresses: dialled if public, or listed. Connections are not kept: receivers are many, posts few."""
    hosts = HostList.parse(settings.notify_hosts, any_public=True)
    posts = Shards(connections=NOTIFY_SLOTS, backend=GuardedBackend(hosts.private_ok), keepalive_s=NO_KEEPALIVE_S)
    courier = HttpCourier(await stack.enter_async_context(posts), hosts)
    return Notifier(desk, bucket, courier, settings.notify_secrets, Seals(settings.webhook_keys), clock, dice)
