"""Purchases that became known too late: a job was retried while nobody knew whether it had been bought.

Its retry began lost (`outcome_unknown`), since nothing is bought on a guess. The provider's answer, or its callback,
then goes on the record of the job that was posted; whoever retries the lost retry is to find it there.
"""

from typing import Final

from service.domain.errors import ErrorCode
from service.domain.job import Job
from service.domain.successor import enlightened
from service.storage.record import CorruptRecord, NewerRecord
from service.storage.store import Store

GENERATIONS_MOST: Final = 20  # of retries of retries that are looked through


async def with_late_tasks(store: Store, old: Job) -> Job:
    """`old`, about to be retried, with what the jobs before it know by now, if it began lost. Raises RedisError.

    Killed anywhere: it only reads.
    """
    if old.attempt or old.error is None or old.error.code is not ErrorCode.OUTCOME_UNKNOWN:
        return old
    ancestors: list[Job] = []
    while len(ancestors) < GENERATIONS_MOST:
        before = await _readable(store, (ancestors[-1] if ancestors else old).retry_of)
        if before is None:
            break
        ancestors.append(before)
    return enlightened(old, ancestors)


async def _readable(store: Store, job_id: str | None) -> Job | None:
    """One that cannot be read tells nothing: then nothing is bought either."""
    try:
        return await store.get(job_id) if job_id else None
    except (CorruptRecord, NewerRecord):
        return None
