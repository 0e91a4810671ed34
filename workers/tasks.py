"""What a queue entry may run: the functions of `LISTED`, and nothing else. Each takes an id, and is only a doorbell."""

from typing import Final

from workers import wiring


async def submit(job_id: str) -> None:
    """Buy the job's image, if it is its turn."""
    async with wiring.house() as house:
        await house.submitter.run(job_id)


async def collect(job_id: str) -> None:
    """Look at the most urgent job that is due; at this one, if none has an image waiting."""
    async with wiring.house() as house:
        await house.collector.run(job_id)


async def batches(batch_id: str) -> None:
    """Do what is due for the batch as a whole."""
    async with wiring.house() as house:
        await house.binder.run(batch_id)


LISTED: Final = ("workers.tasks.submit", "workers.tasks.collect", "workers.tasks.batches")
