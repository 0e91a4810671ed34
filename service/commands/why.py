"""`python -m service why JOB`: a job's life in plain words: what happened, who wrote it down, its proof, what comes."""

import argparse
import textwrap
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, Final

from service.client import Job, Log
from service.client.shapes import Moment
from service.commands import words
from service.commands.caller import DONE, Call, common, parser, run
from service.commands.screen import columns, duration, plain

ABOUT: Final = "tell a job's life in plain words, and what comes next"
INDENT: Final = " " * 12
WIDTH_LEAST: Final = 40


def main(argv: Sequence[str]) -> int:
    return run(_parser().parse_args(argv))


def _parser() -> argparse.ArgumentParser:
    whole = common(parser("why", ABOUT), why)
    whole.add_argument("job", metavar="JOB")
    return whole


def why(call: Call) -> int:
    job = call.darkroom.get(call.asked.job)
    log = call.darkroom.log(call.asked.job)
    call.screen.tell(document(job, log), lines(job, log))
    return DONE


def document(job: Job, log: Log) -> dict[str, Any]:
    """The same for a program: each moment with its words."""
    events = [{**each, "told": words.told(each), "proof": words.proof(each)} for each in log["events"]]
    coming, suspicion = words.coming(job, log["next"]), words.suspicion(log["next"])
    return {"job": job, "events": events, "next": log["next"], "coming": coming, "suspicion": suspicion}


def lines(job: Job, log: Log) -> Iterator[str]:
    yield f"{plain(job['id'])}  {plain(job['status'])}  {plain(job['model'])}"
    prompt = job["request"].get("prompt")
    if prompt:
        yield from _wrapped(f"“{plain(prompt)}”", "  ")
    yield ""
    yield from _life(job, log["events"])
    if error := job["error"]:
        again = "another try may end better" if error["retryable"] else "another try would end alike"
        yield from _wrapped(f"It failed with {plain(error['code'])}: {plain(error['message'])} ({again}).", "")
    if job["possible_duplicate"]:
        yield from _wrapped("It may have been bought twice: what became of one attempt was never told.", "")
    if suspicion := words.suspicion(log["next"]):
        yield from _wrapped(f"{suspicion}.", "")
    yield from _wrapped(f"Next: {words.coming(job, log['next'])}.", "")
    if advice := words.advice(job):
        yield f"Try:  {advice}"


def _life(job: Job, events: Sequence[Moment]) -> Iterator[str]:
    if not events:
        yield from _wrapped("Its log is no longer kept; this is what the bucket's record of it says.", "")
        yield from _instants(job)
        yield ""
        return
    yield f"{plain(events[0]['at'])}"
    began, before = datetime.fromisoformat(events[0]["at"]), None
    for each in events:
        after = duration((datetime.fromisoformat(each["at"]) - began).total_seconds())
        state = f"[{plain(each['status'])}] " if each["status"] != before else ""
        before = each["status"]
        yield from _wrapped(f"{state}{words.told(each)}", f"  +{after:<8} ")
        yield from _wrapped(f"{plain(each.get('by') or 'nobody knows')}; proof: {words.proof(each)}", INDENT + "  ")
    yield ""


def _instants(job: Job) -> Iterator[str]:
    for name, at in (
        ("ordered", job["created_at"]),
        ("submitted", job["submitted_at"]),
        ("ready", job["ready_at"]),
        ("ended", job["finished_at"]),
    ):
        if at:
            yield f"  {name:<11}{plain(at)}"


def _wrapped(text: str, before: str) -> list[str]:
    """Lines no longer than the terminal; what goes on stands below where it began."""
    width = max(WIDTH_LEAST, columns())
    return textwrap.wrap(text, width, initial_indent=before, subsequent_indent=" " * len(before))
