"""The table, walked at random and row by row."""

import json
from contextlib import suppress
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.domain import events as e
from service.domain.errors import ErrorCode, JobError
from service.domain.job import ENDED, Image, Job, Queue, Status
from service.domain.lifecycle import KEEP, SETTLING, TABLE, decide
from service.storage import record
from workers.close import sidecar

IMAGE = Image("bucket", "images/x.png", "00" * 32, 3, 1, 1, "image/png", None)
JOB = Job(id="job_1", caller="alice", model="flux-dev", request={"prompt": "a cat"})

attempts = st.integers(1, 3)
tasks = st.sampled_from(["task-a", "task-b", "task-c"])
EVENTS: dict[type[e.Event], st.SearchStrategy[e.Event]] = {
    e.Intended: st.builds(e.Intended, attempt=attempts, delay_s=st.just(180.0)),
    e.InputsAway: st.builds(e.InputsAway),
    e.GaveUp: st.builds(e.GaveUp),
    e.DeadlinePassed: st.builds(e.DeadlinePassed),
    e.TimedOut: st.builds(e.TimedOut),
    e.CancelAsked: st.builds(e.CancelAsked),
    e.HintDropped: st.builds(e.HintDropped),
    e.Poisoned: st.builds(e.Poisoned),
    e.TaskAccepted: st.builds(e.TaskAccepted, attempt=attempts, provider_id=tasks),
    e.Refused: st.builds(e.Refused, attempt=attempts, burns=st.booleans()),
    e.Exhausted: st.builds(e.Exhausted, attempt=attempts),
    e.Throttled: st.builds(e.Throttled, attempt=attempts),
    e.Held: st.builds(e.Held, attempt=attempts),
    e.Rejected: st.builds(e.Rejected, attempt=attempts),
    e.OutcomeUnknown: st.builds(e.OutcomeUnknown, attempt=attempts),
    e.Polled: st.builds(e.Polled),
    e.Ready: st.builds(e.Ready, attempt=attempts, provider_id=tasks, url=st.just("https://x/y")),
    e.Moderated: st.builds(e.Moderated, attempt=attempts),
    e.TaskFailed: st.builds(e.TaskFailed, attempt=attempts),
    e.Hinted: st.builds(e.Hinted, attempt=attempts, candidate=st.none() | tasks),
    e.Disproved: st.builds(e.Disproved),
    e.PullFailed: st.builds(e.PullFailed),
    e.Spooled: st.builds(e.Spooled, spool=st.sampled_from(["spool-a", "spool-b"]), delay_s=st.just(9.0)),
    e.StoreFailed: st.builds(e.StoreFailed),
    e.Refreshed: st.builds(e.Refreshed, url=st.just("https://x/z")),
    e.Lost: st.builds(e.Lost, code=st.sampled_from([ErrorCode.RESULT_EXPIRED, ErrorCode.STORAGE_CONFLICT])),
    e.Sealed: st.builds(e.Sealed, image=st.just(IMAGE)),
    e.SidecarWritten: st.builds(e.SidecarWritten),
    e.StillOpen: st.builds(e.StillOpen, delay_s=st.just(15.0)),
}


def after(job: Job, event: e.Event) -> Job:
    """The job as the store would have it; instants are all 1."""
    change = decide(job, event)
    if change is None:
        return job
    patch: dict[str, Any] = {name: 1 if value is e.NOW else value for name, value in change.patch.items()}
    return replace(job, status=change.to, version=job.version + 1, **patch)


def test_the_walk_knows_every_event() -> None:
    known = {event for table in (TABLE, SETTLING) for _, event in table}
    assert known == set(EVENTS)


@settings(max_examples=1000, deadline=None)
@given(st.lists(st.one_of(*EVENTS.values()), max_size=25))
def test_no_history_breaks_the_promises(history: list[e.Event]) -> None:
    job = JOB
    for event in history:
        change = decide(job, event)
        following = after(job, event)
        if change is not None:
            assert change.holds_slot == bool(following.open), "a slot is held exactly while an attempt is open"
            done = following.ended and following.sidecar and not following.open
            assert (change.due_s is None) == done or change.due_s is KEEP, "what has work left is due"
            assert change.deadline_counts == (not following.ended and not following.sealed)
        if job.ended:
            kept = [f.name for f in fields(Job) if f.name not in PURCHASE_AND_CHORES]
            assert all(getattr(job, name) == getattr(following, name) for name in kept), "what ended never changes"
        if job.sealed:
            assert following.status in (Status.COLLECTING, Status.SUCCEEDED), "a sealed job can only succeed"
        if following.status is Status.SUCCEEDED:
            assert following.sealed
            assert following.sidecar
        if following.status is Status.FAILED:
            assert following.error is not None
        assert following.attempt - job.attempt in (0, 1)
        assert following.possible_duplicate >= job.possible_duplicate
        job = following


PURCHASE_AND_CHORES = {"version", "open", "untold", "tasks", "costs", "submitted_at", "sidecar", "scrub"}


@settings(max_examples=500, deadline=None)
@given(st.lists(st.one_of(*EVENTS.values()), max_size=25))
def test_an_event_told_twice_in_a_row_buys_nothing(history: list[e.Event]) -> None:
    job = JOB
    for event in history:
        job = after(job, event)
        again = after(job, event)
        assert again.attempt == job.attempt
        assert again.tasks == job.tasks
        assert again.open == job.open


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(*EVENTS.values()), max_size=25))
def test_a_record_reads_back_as_it_was_written(history: list[e.Event]) -> None:
    job = JOB
    for event in history:
        job = after(job, event)
    flat = list(record.write(record.fresh(job) | {"version": job.version, "created_at": 0, "group": "", "seen": ""}))
    hashed = dict(zip(flat[::2], flat[1::2], strict=True))
    assert record.read(hashed | {"sum": record.checksum(hashed)}) == job


def submitting() -> Job:
    return after(JOB, e.Intended(attempt=1))


def generating() -> Job:
    return after(submitting(), e.TaskAccepted(attempt=1, provider_id="task-a"))


def collecting() -> Job:
    return after(generating(), e.Ready(attempt=1, provider_id="task-a", url="https://x/y"))


def test_the_slot_comes_back_when_the_image_is_ready_and_not_before() -> None:
    assert generating().open == (1,)
    assert collecting().open == ()


def test_a_second_submission_is_flagged() -> None:
    assert not submitting().possible_duplicate
    assert after(submitting(), e.Intended(attempt=2)).possible_duplicate


def test_a_submission_after_a_sure_refusal_is_not_flagged() -> None:
    refused = after(submitting(), e.Refused(attempt=1))
    assert not after(refused, e.Intended(attempt=2)).possible_duplicate


def test_a_callback_before_the_submit_answer_is_not_lost() -> None:
    early = after(submitting(), e.Ready(attempt=1, provider_id="task-a", url="https://x/y"))
    assert early.status is Status.COLLECTING
    assert after(early, e.TaskAccepted(attempt=1, provider_id="task-a")) == early


@pytest.mark.parametrize("refusal", [e.Refused, e.Throttled, e.Held, e.Exhausted, e.Rejected])
def test_what_is_known_to_be_bought_is_not_refused_any_more(refusal: type[e.Refused]) -> None:
    """A callback has told of the task; then a gateway answers the POST in the provider's place."""
    assert decide(generating(), refusal(attempt=1)) is None


def test_the_first_of_two_attempts_that_is_ready_is_collected() -> None:
    twice = after(after(submitting(), e.Intended(attempt=2)), e.TaskAccepted(attempt=2, provider_id="task-b"))
    first = after(twice, e.Ready(attempt=1, provider_id="task-a", url="https://x/y"))
    assert (first.status, first.provider_id, first.open) == (Status.COLLECTING, "task-a", (2,))
    assert after(first, e.Ready(attempt=2, provider_id="task-b", url="https://x/z")).open == ()


def test_a_failed_attempt_does_not_end_a_job_whose_other_attempt_is_open() -> None:
    twice = after(after(submitting(), e.Intended(attempt=2)), e.TaskAccepted(attempt=2, provider_id="task-b"))
    both = after(twice, e.TaskAccepted(attempt=1, provider_id="task-a"))
    one = after(both, e.TaskFailed(attempt=1))
    assert (one.status, one.open, one.error) == (Status.GENERATING, (2,), None)
    assert decide(one, e.TaskFailed(attempt=1)) is None, "or each poll would find it once more, and nothing else"
    assert after(one, e.TaskFailed(attempt=2)).status is Status.FAILED


def test_a_cancelled_job_takes_the_purchase_that_it_had_not_heard_of() -> None:
    cancelled = after(submitting(), e.CancelAsked())
    told = after(cancelled, e.TaskAccepted(attempt=1, provider_id="task-a", cost=4.0))
    assert (told.status, told.tasks, told.costs) == (Status.CANCELLED, {"1": "task-a"}, {"1": 4.0})


def test_a_purchase_that_nobody_ever_confirmed_is_not_forgotten() -> None:
    cancelled = after(submitting(), e.CancelAsked())
    closed = after(after(cancelled, e.SidecarWritten()), e.TimedOut())
    assert (closed.open, closed.bought) == ((), True)


@pytest.mark.parametrize("event", [e.CancelAsked(), e.DeadlinePassed()])
def test_what_ends_a_job_between_put_and_seal_has_its_image_scrubbed(event: e.Event) -> None:
    ended = after(collecting(), event)
    assert ended.scrub
    change = decide(collecting(), event)
    assert change is not None
    assert change.due_s is KEEP, "not before the lease of the step that may still put"


@pytest.mark.parametrize("event", [e.CancelAsked(), e.DeadlinePassed(), e.Poisoned()])
def test_a_sealed_job_is_past_cancel_deadline_and_poison(event: e.Event) -> None:
    assert decide(after(collecting(), e.Sealed(image=IMAGE)), event) is None


def test_a_hint_is_looked_up_by_the_collector_and_at_most_five_times() -> None:
    job = submitting()
    for _ in range(e.Hinted.MOST):
        change = decide(job, e.Hinted(candidate="task-a"))
        assert change is not None
        assert change.queue is Queue.COLLECT
        job = after(job, e.Hinted(candidate="task-a"))
    assert decide(job, e.Hinted(candidate="task-a")) is None


def test_a_hint_is_for_the_attempt_whose_address_it_came_to() -> None:
    twice = after(submitting(), e.Intended(attempt=2))
    hinted = after(twice, e.Hinted(attempt=1, candidate="task-a"))
    assert (hinted.candidate, hinted.candidate_of) == ("task-a", 1)


def test_a_hint_that_names_nothing_new_does_not_shorten_the_wait_for_an_outcome() -> None:
    """Or the job would be posted again at once: what comes due in `submitting` without a candidate is out of time."""
    again = replace(submitting(), attempt=2, open=(2,), tasks={"1": "task-a"})
    for hint in (e.Hinted(attempt=2), e.Hinted(attempt=1, candidate="task-a"), e.Hinted()):
        assert decide(again, hint) is None
    assert after(again, e.Hinted(attempt=2, candidate="task-b")).candidate == "task-b"


def test_ended_states_have_no_way_out() -> None:
    assert all(row.to is state for (state, _), row in {**TABLE, **SETTLING}.items() if state in ENDED)


@pytest.mark.parametrize("job", [JOB, submitting(), generating(), collecting()], ids=lambda job: job.status)
def test_a_poisoned_job_fails_for_good_and_keeps_its_purchase_to_settle(job: Job) -> None:
    failed = after(job, e.Poisoned(detail="it ended its process 3 times"))
    assert (failed.status, failed.open, failed.tasks) == (Status.FAILED, job.open, job.tasks)
    assert failed.error == JobError(ErrorCode.POISONED, "it ended its process 3 times", retryable=False)


def test_a_flipped_byte_is_noticed() -> None:
    flat = list(record.write(record.fresh(JOB) | {"version": 1, "created_at": 0, "group": "", "seen": ""}))
    hashed = dict(zip(flat[::2], flat[1::2], strict=True))
    hashed["sum"] = record.checksum(hashed)
    hashed["body"] = hashed["body"].replace("cat", "car")
    with pytest.raises(record.CorruptRecord):
        record.read(hashed)


def test_what_a_newer_release_adds_to_an_order_does_an_older_process_no_harm() -> None:
    flat = list(record.write(record.fresh(JOB) | {"version": 1, "created_at": 0, "group": "", "seen": ""}))
    hashed = dict(zip(flat[::2], flat[1::2], strict=True))
    hashed["body"] = json.dumps(json.loads(hashed["body"]) | {"fashion": "new"})
    assert record.read(hashed | {"sum": record.checksum(hashed)}).request == JOB.request


def test_a_newer_record_is_left_alone() -> None:
    with pytest.raises(record.NewerRecord):
        record.read({"id": "job_1", "schema": "2", "sum": "2:of fields that we do not know"})


@given(st.dictionaries(st.sampled_from([*record.NAMES, "sum"]), st.text() | st.sampled_from(["2", "2:x", "{}", "[1]"])))
def test_any_hash_is_a_job_or_corrupt_or_newer_and_what_is_left_of_it_can_be_shown(flat: dict[str, str]) -> None:
    with suppress(record.CorruptRecord, record.NewerRecord):
        record.read(flat)
    assert sidecar(record.salvage(flat, "job_1"))


def test_the_body_of_a_record_is_json_an_operator_can_read() -> None:
    assert json.loads(record.fresh(JOB)["body"])["request"] == {"prompt": "a cat"}
