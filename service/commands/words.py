"""What each line of a job's log means, in plain words, and what proves it.

The names are those of `service.domain.events`; a test holds that none is missing.
"""

from dataclasses import dataclass
from typing import Final

from service.client import Job
from service.client.shapes import Moment, Next
from service.commands.screen import plain

ASKED: Final = "the provider's own answer when it was asked (get_result)"
SUBMITTED: Final = "the provider's answer to the submission"
PROVED: Final = "a callback that proved its secret"
OURS: Final = "our own decision, on record"
CALLER: Final = "the caller's token"
HTTP: Final = "http "  # how the HTTP process names itself; workers are `worker …`


@dataclass(frozen=True, slots=True)
class Word:
    """`told`: what happened. `proof`: what it rests on if a worker wrote it; `by_http`: if the HTTP process did."""

    told: str
    proof: str = OURS
    by_http: str = PROVED


WORDS: Final = {
    "created": Word(
        "accepted, and written down: from here on it survives any crash", "the batch that it is a line of", CALLER
    ),
    "intended": Word("about to be submitted; that is on record before a byte leaves"),
    "inputs_away": Word("its input images cannot be read just now; it comes again soon"),
    "accepted": Word("the provider has accepted it", SUBMITTED),
    "refused": Word(
        "the provider has surely not accepted it this time; it is submitted again after a pause", SUBMITTED
    ),
    "throttled": Word("the provider has too much to do (429); it waits for its turn again", SUBMITTED),
    "held": Word(
        "the provider refuses the account, not the job: all submissions pause until that is mended", SUBMITTED
    ),
    "exhausted": Word("the provider has not accepted it, and that was the last attempt", SUBMITTED),
    "rejected": Word("the provider says that the request itself is wrong", SUBMITTED),
    "outcome_unknown": Word(
        "it was sent, and no answer tells what became of it: it is not sent again while a callback could still come",
        "none: that is what is unknown",
    ),
    "gave_up": Word("nobody ever told whether the provider had accepted it, and it may not be bought once more"),
    "polled": Word("asked the provider: not ready yet", ASKED),
    "hinted": Word(
        "a callback came without proof: nothing in it is believed, but the provider is asked", "none", "none"
    ),
    "disproved": Word(
        "a callback came with a wrong proof: nothing in it is used; the provider is asked once", "wrong", "wrong"
    ),
    "hint_dropped": Word("the provider does not know the task that a callback without proof had named", ASKED),
    "ready": Word("the image is ready, at a link that dies within minutes", ASKED),
    "moderated": Word("the provider will not make it, or not show what it made", ASKED),
    "task_failed": Word("the provider ended its task badly", ASKED),
    "timed_out": Word("the provider did not end its task in the time that is waited for"),
    "pull_failed": Word("the image could not be pulled or stored this time", "what came over the wire"),
    "spooled": Word(
        "the bucket is away: the image waits on a worker's disk", "bytes that were hashed and synced to disk"
    ),
    "store_failed": Word("the bucket is away: the lasting record is written again soon", "the bucket's answer"),
    "refreshed": Word("the provider gave a fresh link to the image", ASKED),
    "lost": Word("there is no image to be had any more", "what came over the wire"),
    "sealed": Word(
        "the image is in the bucket, whole; from here on it can only succeed", "its SHA-256, which the bucket checked"
    ),
    "sidecar_written": Word("the lasting record of the job lies in the bucket", "the bucket's answer"),
    "still_open": Word("what was bought for it is not settled yet", ASKED),
    "cancel_asked": Word("its caller wants it no more", "its batch was cancelled", CALLER),
    "deadline_passed": Word("the deadline that its caller had set is over"),
    "poisoned": Word("it has killed its worker again and again, with no other job near it"),
    "corrupt": Word(
        "its record was damaged and could not be read; what was left of it is kept aside", "the record's checksum"
    ),
}
UNKNOWN: Final = Word("something that this release of the command has no words for", "-", "-")

STEPS: Final = {
    "submit": "it waits for a free slot at the provider, then it is submitted",
    "outcome": "what became of the submission is waited for: a callback, or the end of the wait",
    "poll": "the provider is asked, unless its callback comes first",
    "collect": "a worker pulls the image into the bucket; should it die, another takes over",
    "sidecar": "the lasting record is written into the bucket",
    "settle": "the provider is asked what became of what was bought",
}
PAUSES: Final = {
    "storage": "images cannot be stored or pulled in time",
    "held": "the provider refuses the account (key, credits or address)",
    "throttled": "the provider asked for a pause",
    "refused": "the provider cannot be reached, or too few of Redis's replicas confirm a purchase",
}


def told(moment: Moment) -> str:
    """What happened, with what was noted about it."""
    word = WORDS.get(moment["reason"], UNKNOWN)
    return word.told + (f": {plain(moment['detail'])}" if moment.get("detail") else "")


def proof(moment: Moment) -> str:
    word = WORDS.get(moment["reason"], UNKNOWN)
    return word.by_http if (moment.get("by") or "").startswith(HTTP) and word.proof != OURS else word.proof


def coming(job: Job, next_: Next | None) -> str:
    """What the job waits for."""
    if next_ is None:
        return (
            "nothing: it has ended, and everything is written"
            if job["status"] in _ENDS
            else "it is in a worker's hands"
        )
    step = STEPS.get(next_["what"], plain(next_["what"]))
    paused = [PAUSES.get(reason, plain(reason)) for reason in next_.get("paused", [])]
    why = f"; submissions pause: {', '.join(paused)}" if paused else ""
    return f"{step} (looked at by {plain(next_['at'])} at the latest){why}"


def suspicion(next_: Next | None) -> str | None:
    """Why the job runs apart from others, if it does."""
    suspect = next_ and next_.get("suspect")
    if not suspect:
        return None
    if crashes := suspect["crashes"]:
        times = "once" if crashes == 1 else f"{crashes} times"
        return f"Its step has taken its process down {times} with no other job near it: it runs alone now"
    return "A worker process died while it had this job in hand: it runs apart from others until a step of it ends well"


def advice(job: Job) -> str | None:
    """What its caller can do now."""
    match job["status"]:
        case "succeeded":
            return f"python -m service jobs image {plain(job['id'])} FILE   fetches the image"
        case "failed" | "cancelled":
            return f"python -m service jobs retry {plain(job['id'])}   tries again, and buys nothing twice"
    return None


_ENDS: Final = frozenset({"succeeded", "failed", "cancelled"})
