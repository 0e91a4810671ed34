"""What the provider's word on a task means for its job."""

from typing import Final

from service.domain import events
from service.domain.answers import Answer, Failed, Moderated, Ready
from service.domain.job import FoundBy

RESULT_LIFE_MS: Final = 600_000  # provider fact: image URLs live about ten minutes


def ended_event(answer: Answer, attempt: int, task: str, now_ms: int, *, hinted: bool = False) -> events.Event | None:
    """What `get_result` says of a task that has ended; None for everything else. `hinted`: a callback rang for it."""
    match answer:
        case Ready():
            return ready_event(answer, attempt, task, FoundBy.WEBHOOK if hinted else FoundBy.POLL, now_ms=now_ms)
        case Moderated(_, reasons):
            return events.Moderated(attempt=attempt, detail=reasons)
        case Failed(_, message):
            return events.TaskFailed(attempt=attempt, detail=message)
        case _:
            return None


def ready_event(answer: Ready, attempt: int, provider_id: str, found_by: FoundBy, *, now_ms: int) -> events.Ready:
    """`now_ms`: from when the URL's ten minutes count, if it does not say itself when it dies."""
    return events.Ready(
        attempt=attempt,
        provider_id=provider_id,
        url=answer.url,
        expires_at=answer.expires_at or now_ms + RESULT_LIFE_MS,
        seed=answer.seed,
        cost=answer.cost,
        found_by=found_by,
    )
