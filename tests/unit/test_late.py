"""Who is asked what a lost retry can still be given, and who is not."""

from dataclasses import replace
from typing import cast

import pytest

from service.domain.errors import ErrorCode, JobError
from service.domain.job import Job, Status
from service.late import with_late_tasks
from service.storage.record import CorruptRecord
from service.storage.store import Store

pytestmark = pytest.mark.anyio

POSTED = Job(id="job_1", caller="alice", model="flux-dev", request={}, attempt=1, tasks={"1": "task-1"})
UNKNOWN = JobError(ErrorCode.OUTCOME_UNKNOWN, "…", retryable=True)
LOST = Job(
    id="job_2", caller="alice", model="flux-dev", request={}, retry_of="job_1", status=Status.FAILED, error=UNKNOWN
)


class Records:
    def __init__(self, *jobs: Job) -> None:
        self._jobs = {job.id: job for job in jobs}

    async def get(self, job_id: str) -> Job:
        if job_id not in self._jobs:
            raise CorruptRecord(job_id, "its checksum is wrong")
        return self._jobs[job_id]


def store(*jobs: Job) -> Store:
    return cast("Store", Records(*jobs))


async def test_a_retry_that_began_lost_is_given_what_a_job_before_it_knows() -> None:
    assert (await with_late_tasks(store(POSTED), LOST)).tasks == POSTED.tasks
    again = replace(LOST, id="job_3", retry_of="job_2")
    assert (await with_late_tasks(store(POSTED, LOST), again)).tasks == POSTED.tasks


async def test_a_retry_that_posted_itself_is_not_taken_for_another_purchase() -> None:
    posted = replace(LOST, attempt=1, untold=True)
    assert await with_late_tasks(store(POSTED), posted) == posted


async def test_a_record_that_cannot_be_read_tells_nothing() -> None:
    assert await with_late_tasks(store(), LOST) == LOST
