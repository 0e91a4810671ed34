"""A purchase that became known too late: a job was retried while nobody knew whether it had been bought.

Its retry began lost (`outcome_unknown`), since nothing is bought on a guess. The provider's answer, or its callback,
then goes on the record of the job that was posted; whoever retries the lost retry is to find it there.
"""

from typing import Final

from service.domain.errors import ErrorCode
from service.domain.job import Job
from service.domain.successor import enlightened
from service.storage.store import Store

GENERATIONS_MOST: Final = 20  # of retries of retries that are looked through


async def with_late_task(store: Store, old: Job) -> Job:
    """`old`, about to be retried, with what a job before it knows by now. Raises what `store.get` does.

    Killed anywhere: it only reads.
    """
    if old.tasks or old.error is None or old.error.code is not ErrorCode.OUTCOME_UNKNOWN:
        return old
    before = old
    for _ in range(GENERATIONS_MOST):
        ancestor = await store.get(before.retry_of) if before.retry_of else None
        if ancestor is None:
            return old
        if ancestor.tasks:
            return enlightened(old, ancestor)
        before = ancestor
    return old
