"""What a queue entry may run: the functions of `LISTED`, and nothing else.

All but `submit_batch`, which other services enqueue, take an id and are only doorbells.
"""

from typing import Any, Final

from workers import wiring
from workers.handover import Answer
from workers.worker import current_id


async def submit(job_id: str) -> None:
    """Buy the job's image, if it is its turn."""
    async with wiring.house() as house:
        await house.submitter.run(job_id)


async def collect(job_id: str) -> None:
    """Look at the most urgent job that is due; at this one, if none has an image waiting."""
    async with wiring.house() as house:
        await house.collector.run(job_id)


async def notify(id_: str) -> None:
    """Tell the caller that the job or batch is over."""
    async with wiring.house() as house:
        await house.notifier.run(id_)


async def batches(batch_id: str) -> None:
    """Do what is due for the batch as a whole."""
    async with wiring.house() as house:
        await house.binder.run(batch_id)


async def submit_batch(told: dict[str, Any]) -> Answer:
    """A batch from a service that shares our Redis: the RQ result is its id, or what is wrong with it."""
    async with wiring.house() as house:
        return await house.handover.submit(told, current_id())


LISTED: Final = (
    "workers.tasks.submit",
    "workers.tasks.collect",
    "workers.tasks.notify",
    "workers.tasks.batches",
    "workers.tasks.submit_batch",
)
