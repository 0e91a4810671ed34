"""What a sidecar tells is all that is left of a job whose record is lost: a retry must not buy more for that."""

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.domain import events as e
from service.domain.errors import ErrorCode
from service.domain.job import Job, Status
from service.domain.successor import successor
from service.domain.view import unview, view
from tests.unit.test_lifecycle import EVENTS, JOB, after
from workers.close import sidecar


def walked(*history: e.Event) -> Job:
    job = JOB
    for event in history:
        job = after(job, event)
    return job


POSTED = walked(e.Intended(attempt=1))
UNKNOWN = [
    after(POSTED, e.CancelAsked()),
    after(POSTED, e.DeadlinePassed()),
    after(POSTED, e.Poisoned()),
    after(after(POSTED, e.CancelAsked()), e.TimedOut()),
]


@pytest.mark.parametrize("job", UNKNOWN, ids=lambda job: f"{job.status} {job.open}")
@pytest.mark.parametrize("old", [False, True], ids=["sidecar", "an old sidecar"])
def test_what_may_have_been_bought_is_not_bought_again_after_a_rebuild(job: Job, *, old: bool) -> None:
    told = view(job)
    assert told.pop("unsettled")
    known = unview(told if old else told | {"unsettled": True})
    assert known.bought
    new, again = successor(known, "job_2"), successor(known, "job_2", rerun=True)
    assert new is not None
    assert new.error is not None
    assert (new.status, new.error.code) == (Status.FAILED, ErrorCode.OUTCOME_UNKNOWN)
    assert again is not None
    assert again.status is Status.QUEUED


REFUSED = after(POSTED, e.Refused(attempt=1))
UNBOUGHT = [
    after(JOB, e.CancelAsked()),
    after(REFUSED, e.CancelAsked()),
    after(POSTED, e.Rejected(attempt=1)),
    after(POSTED, e.Exhausted(attempt=1)),
]


@pytest.mark.parametrize("job", UNBOUGHT, ids=lambda job: f"{job.status} {job.error and job.error.code}")
def test_what_was_surely_not_bought_is_bought_after_a_rebuild_as_before(job: Job) -> None:
    new = successor(unview(view(job)), "job_2")
    assert new is not None
    assert new.status is Status.QUEUED


def test_an_old_sidecar_of_what_the_provider_refused_is_believed() -> None:
    told = view(after(POSTED, e.Rejected(attempt=1)))
    del told["unsettled"]
    assert not unview(told).untold


@settings(max_examples=1000, deadline=None)
@given(st.lists(st.one_of(*EVENTS.values()), max_size=25))
def test_after_no_history_does_a_rebuild_make_a_retry_buy_that_would_not_have_bought(history: list[e.Event]) -> None:
    job = walked(*history)
    if not job.ended:
        job = after(job, e.CancelAsked())
    known = successor(unview(json.loads(sidecar(job))), "job_2") if job.ended else None
    if known is not None and known.status is Status.QUEUED:
        before = successor(job, "job_2")
        assert before is not None
        assert before.status is Status.QUEUED


def test_a_task_that_was_told_of_after_the_end_is_asked_for() -> None:
    job = after(after(POSTED, e.CancelAsked()), e.Ready(attempt=1, provider_id="task-1", url="https://x/y"))
    assert job.provider_id is None
    new = successor(unview(view(job)), "job_2")
    assert new is not None
    assert (new.status, new.tasks) == (Status.GENERATING, {"1": "task-1"})


def test_a_moderated_attempt_says_nothing_of_one_that_still_runs() -> None:
    both = walked(e.Intended(attempt=1), e.Intended(attempt=2), e.TaskAccepted(attempt=1, provider_id="task-1"))
    ended = after(both, e.Moderated(attempt=1))
    assert ended.open == (2,)
    for job in (ended, unview(view(ended)), replace(ended, open=(), untold=True)):
        new = successor(job, "job_2")
        assert new is not None
        assert new.status is Status.FAILED
