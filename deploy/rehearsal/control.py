"""The knobs: one table from which the command's flags and `/_control` are both made.

A *share* is a chance between 0 and 1 (`true` counts as 1), rolled once for each submission; those that say *each poll*
are rolled again for every question. A share with a *mark* also plays, whatever its value, for a prompt that contains
that mark.
"""

from dataclasses import dataclass, fields, replace
from typing import Any, Self

from deploy.rehearsal.dice import Dice
from deploy.rehearsal.knobs import COUNT_MAX, BadKnobError, choice, count, read, seconds, share


@dataclass(frozen=True, slots=True)
class Control:
    """How the provider behaves from now on. Tasks already accepted keep the fate they were given."""

    seed: int = count(0, "of all dice; the same seed and the same order of requests repeat a run", low=-COUNT_MAX)

    latency_s: float = seconds(2.0, "from acceptance to the end of a task, on average")
    latency_spread_s: float = seconds(1.0, "a task takes up to this much more or less")
    max_in_flight: int = count(24, "tasks outstanding at once before 429, 0 for no cap")
    max_in_flight_kontext_max: int = count(6, "the same for flux-kontext-max alone")
    retry_after_s: int = count(0, "sent as Retry-After with a 429, 0 for none")

    bad_key: float = share("401 as if the key were wrong; each poll too")
    no_credits: float = share("402 as if the account were empty")
    rate_429: float = share("429 although there is room", "[429]")
    rate_5xx: float = share("a 5xx, nothing accepted", "[5xx]")
    kind_5xx: str = choice(("any", "500", "502", "503", "503-html", "504", "524"), "which 5xx rate_5xx sends")
    invalid_500: float = share("a 500 that says the request is wrong, as CometAPI does", "[invalid-500]")
    rate_hang: float = share("nothing accepted and no answer", "[hang]")
    rate_html: float = share("an HTML page with status 200, nothing accepted", "[html-answer]")
    rate_redirect: float = share("a 301, nothing accepted", "[301]")
    drop_answer: float = share("accepted, then the connection is closed without an answer", "[drop-answer]")
    accept_hang: float = share("accepted, then no answer", "[accept-hang]")
    accept_5xx: float = share("accepted, then a 500, 502, 504 or 524", "[accept-5xx]")
    bare_submit: float = share("the answer is id and status alone")
    same_id: float = share("the answer names the task accepted before this one", "[same-id]")
    far_polling: float = share("polling_url leads to a place that answers 404")

    moderated: float = share("the task ends moderated and costs nothing", "[moderated]")
    failed: float = share("the task ends in an error and costs nothing", "[error]")
    stuck: float = share("the task never ends", "[stuck]")

    wrapped: float = share("each poll: the answer is in CometAPI's envelope")
    not_found: float = share("each poll: Task not found, although it is known")
    not_found_200: float = share("each poll: Task not found has status 200 instead of 404")
    odd_status: float = share("each poll of a running task: a status nobody listed, a progress out of range")
    flip_back: float = share("each poll of an ended task: Pending again")
    poll_5xx: float = share("each poll: a 5xx")
    poll_hang: float = share("each poll: no answer")
    failed_503: float = share("a failed task is told with status 503")

    callback_loss: float = share("no callback of the task is sent", "[lost]")
    callback_delay_s: float = seconds(0.0, "from the end of a task to its callback")
    callback_duplicate: float = share("the last callback is sent twice at once", "[twice]")
    callback_reorder: float = share("the last callback comes before the progress events", "[reorder]")
    callback_early: float = share("the task ends at once and its callback comes before the submit answer", "[early]")
    callback_forged: float = share("a lie about the image comes before the true callback", "[forged]")
    progress_events: int = count(1, "progress callbacks before the last one")
    dialect: str = choice(("old", "new"), "of callbacks")
    proof: str = choice(("body", "header", "hmac", "none"), "of the secret in callbacks")

    url_life_s: float = seconds(600.0, "of image URLs; 0 has expired when told")
    fresh_url: float = share("asking again signs the image URL anew", default=1.0)
    image_fault_times: int = count(0, "the image faults below end after so many pulls of a task, 0 for never")
    image_truncated: float = share("the body is cut in the middle", "[truncated]")
    image_html: float = share("an HTML page labelled as the image", "[html]")
    image_oversized: float = share("5 GB promised, or a stream without end", "[oversized]")
    image_wrong_size: float = share("another width and height than asked for", "[wrong-size]")
    image_drip: float = share("a byte a second", "[drip]")
    image_redirect: float = share("a redirect to a private address", "[redirect]")
    image_private: float = share("result.sample itself is at a private address", "[private-url]")
    image_expired: float = share("result.sample has expired when told", "[expired]")

    def values(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in KNOBS}

    def turned(self, changes: dict[str, object]) -> Self:
        """A copy with `changes`, all or nothing. Raises BadKnobError."""
        settings: dict[str, Any] = {name: read_knob(name, value) for name, value in changes.items()}
        return replace(self, **settings)

    def fate(self, dice: Dice, prompt: str) -> frozenset[str]:
        """The names of the shares that play for one submission."""
        return frozenset(
            name for name, mark in SHARES.items() if (mark and mark in prompt) or dice.plays(name, getattr(self, name))
        )


KNOBS = {knob.name: knob for knob in fields(Control)}
SHARES: dict[str, str] = {name: knob.metadata["mark"] for name, knob in KNOBS.items() if knob.metadata["share"]}
"""The mark of each share, empty where it has none."""


def read_knob(name: str, value: object) -> object:
    """Raises BadKnobError."""
    if name not in KNOBS:
        raise BadKnobError(name, "there is no such knob", value)
    return read(KNOBS[name], value)
