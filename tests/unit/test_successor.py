"""Where a retry begins, for each way in which a job can have ended."""

from dataclasses import replace

import pytest

from service.domain.errors import ErrorCode, JobError
from service.domain.job import Image, Job, Status
from service.domain.successor import enlightened, successor

OLD = Job(id="job_old", caller="alice", model="flux-dev", request={"prompt": "a fox"}, status=Status.FAILED, version=7)
BOUGHT = {"attempt": 1, "tasks": {"1": "task-1"}, "provider_id": "task-1", "submitted_at": 5, "costs": {"1": 0.04}}


def failed(code: ErrorCode, **fields: object) -> Job:
    return replace(OLD, error=JobError(code, "…", retryable=True), **fields)  # type: ignore[arg-type]  # any field


def retry(old: Job, *, rerun: bool = False) -> Job:
    new = successor(old, "job_new", rerun=rerun)
    assert new is not None
    assert (new.id, new.retry_of, new.request, new.deadline_at) == ("job_new", old.id, old.request, None)
    return new


@pytest.mark.parametrize("code", [ErrorCode.MODERATED, ErrorCode.PROVIDER_ERROR, ErrorCode.PROVIDER_REJECTED])
def test_what_the_provider_refused_is_submitted_again(code: ErrorCode) -> None:
    new = retry(failed(code, **BOUGHT))
    assert (new.status, new.tasks, new.attempt) == (Status.QUEUED, {}, 0)


def test_a_job_that_was_never_posted_is_submitted() -> None:
    assert retry(failed(ErrorCode.DEADLINE_EXCEEDED)).status is Status.QUEUED
    assert retry(replace(OLD, status=Status.CANCELLED)).status is Status.QUEUED


@pytest.mark.parametrize("code", [ErrorCode.DEADLINE_EXCEEDED, ErrorCode.RESULT_INVALID, ErrorCode.POISONED])
@pytest.mark.parametrize("rerun", [False, True])
def test_a_task_that_was_bought_is_asked_for_and_not_bought_again(code: ErrorCode, rerun: bool) -> None:
    new = retry(failed(code, **BOUGHT), rerun=rerun)
    assert (new.status, new.tasks, new.provider_id, new.open) == (Status.GENERATING, {"1": "task-1"}, "task-1", ())
    assert (new.submitted_at, new.costs, new.attempt) == (5, {"1": 0.04}, 1)


def test_a_task_that_still_runs_keeps_its_slot_even_after_a_failure() -> None:
    new = retry(failed(ErrorCode.PROVIDER_ERROR, **BOUGHT, open=(1,)))
    assert (new.status, new.open) == (Status.GENERATING, (1,))


@pytest.mark.parametrize(
    "old",
    [
        failed(ErrorCode.OUTCOME_UNKNOWN, attempt=1),
        failed(ErrorCode.OUTCOME_UNKNOWN, attempt=2, possible_duplicate=True),
        replace(OLD, status=Status.CANCELLED, attempt=1, open=(1,)),
        failed(ErrorCode.PROVIDER_ERROR, attempt=5, possible_duplicate=True),
        failed(ErrorCode.MODERATED, attempt=2, possible_duplicate=True, tasks={"2": "task-2"}),
        failed(ErrorCode.PROVIDER_REJECTED, attempt=2, untold=True),
    ],
)
def test_an_unknown_outcome_is_bought_again_only_if_the_caller_says_so(old: Job) -> None:
    new = retry(old)
    assert new.status is Status.FAILED
    assert new.error
    assert new.error.code is ErrorCode.OUTCOME_UNKNOWN
    assert retry(old, rerun=True).status is Status.QUEUED


def test_two_purchases_that_are_both_known_to_have_failed_leave_nothing_unknown() -> None:
    tasks = {"1": "task-1", "2": "task-2"}
    assert retry(failed(ErrorCode.PROVIDER_ERROR, attempt=2, possible_duplicate=True, tasks=tasks)).tasks == {}


def test_an_attempt_whose_outcome_is_not_known_yet_stays_the_old_jobs() -> None:
    """The new one would not know what to ask for, and wait for it till its time is over."""
    old = failed(ErrorCode.DEADLINE_EXCEEDED, **BOUGHT | {"attempt": 2, "open": (1, 2)})
    assert retry(old).open == (1,)


def test_what_a_job_has_come_to_know_serves_the_retry_of_its_lost_retry() -> None:
    lost = failed(ErrorCode.OUTCOME_UNKNOWN)
    new = retry(enlightened(lost, [failed(ErrorCode.DEADLINE_EXCEEDED, **BOUGHT)]))
    assert (new.status, new.tasks, new.provider_id, new.open) == (Status.GENERATING, {"1": "task-1"}, "task-1", ())
    assert (new.submitted_at, new.costs, new.attempt) == (5, {"1": 0.04}, 1)


def test_a_late_task_that_still_runs_is_known_to_run() -> None:
    lost = failed(ErrorCode.OUTCOME_UNKNOWN)
    assert retry(enlightened(lost, [failed(ErrorCode.DEADLINE_EXCEEDED, **BOUGHT, open=(1,))])).open == (1,)


def test_every_job_of_the_chain_tells_what_it_knows() -> None:
    """The first had two attempts; the second took over the one that was known, and the other spoke later."""
    first = failed(ErrorCode.DEADLINE_EXCEEDED, attempt=2, tasks={"1": "task-1", "2": "task-2"})
    second = failed(ErrorCode.PROVIDER_ERROR, **BOUGHT, untold=True)
    assert retry(enlightened(failed(ErrorCode.OUTCOME_UNKNOWN), [second, first])).tasks == first.tasks


def test_however_often_a_job_is_retried_nothing_is_bought_while_an_attempt_is_unsure() -> None:
    """Its first attempt was never heard of, and the second failed: each retry asks for that again, or is lost."""
    chain = [failed(ErrorCode.PROVIDER_ERROR, attempt=2, possible_duplicate=True, tasks={"2": "task-2"})]
    for _ in range(6):
        old = chain[0] if chain[0].attempt else enlightened(chain[0], chain[1:])
        new = retry(old)
        assert new.status is not Status.QUEUED
        if new.status is Status.GENERATING:
            new = replace(new, status=Status.FAILED, error=JobError(ErrorCode.PROVIDER_ERROR, "…", retryable=True))
        chain.insert(0, new)


def test_an_expired_result_is_bought_again_only_if_the_caller_says_so() -> None:
    old = failed(ErrorCode.RESULT_EXPIRED, **BOUGHT)
    new = retry(old)
    assert new.error
    assert (new.status, new.error.code) == (Status.FAILED, ErrorCode.RESULT_EXPIRED)
    assert retry(old, rerun=True).status is Status.QUEUED


def test_the_retry_of_a_lost_retry_buys_nothing_either() -> None:
    for code in (ErrorCode.RESULT_EXPIRED, ErrorCode.OUTCOME_UNKNOWN):
        assert retry(failed(code)).status is Status.FAILED


def test_a_running_or_succeeded_job_is_not_retried() -> None:
    image = Image("b", "k", "0" * 64, 1, 1, 1, "image/png", None)
    assert successor(replace(OLD, status=Status.GENERATING), "job_new") is None
    assert successor(replace(OLD, status=Status.SUCCEEDED, image=image), "job_new") is None
