"""When an image that was bought counts as lost."""

from dataclasses import replace

import pytest

from service.domain.answers import Answer, Failed, Held, NotFound, Pending, Ready, Throttled, Unknown
from service.domain.job import Job
from workers.pull import SILENCE_TIMES, given_up

PATIENCE_MS = 900_000
JOB = Job(id="job_1", caller="alice", model="flux-dev", request={}, asked_at=1_000)


def gives_up(job: Job, answer: Answer, after_ms: int) -> bool:
    return given_up(job, answer, 1_000 + after_ms, PATIENCE_MS)


@pytest.mark.parametrize("answer", [Ready("task", "https://x/y"), NotFound(), Pending(), Failed(None, "bad")])
def test_who_is_told_of_the_task_and_gets_no_image_gives_up_in_time(answer: Answer) -> None:
    assert not gives_up(JOB, answer, PATIENCE_MS)
    assert gives_up(JOB, answer, PATIENCE_MS + 1)


@pytest.mark.parametrize("answer", [Unknown("502"), Throttled(), Held("credits", 402)])
def test_an_answer_that_says_nothing_of_the_task_is_no_end_of_a_paid_image(answer: Answer) -> None:
    """All workers were down for a while, and the provider stumbles just when it is asked again."""
    assert not gives_up(JOB, answer, 2 * PATIENCE_MS)
    assert gives_up(JOB, answer, SILENCE_TIMES * PATIENCE_MS + 1)


def test_before_anything_was_asked_for_in_vain_nothing_is_given_up() -> None:
    assert not gives_up(replace(JOB, asked_at=None), NotFound(), 10 * PATIENCE_MS)
