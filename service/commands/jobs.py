"""`python -m service jobs …`: order, look at, wait for, list, cancel and retry jobs, over HTTP."""

import argparse
import itertools
import json
import math
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Literal

from service.client import ENDED, Job, Unfinished
from service.commands.caller import DONE, FAILED, INTERRUPTED, LISTED, Act, Call, common, count, parser, run
from service.commands.screen import duration, plain, row

ABOUT: Final = "order, look at, wait for, list, cancel and retry jobs"
LOOK_S: Final = 1.0  # between two moves of the line that waits
WIDTHS: Final = (30, 10, 18, 8)
_REFERENCES: Final[tuple[Literal["batch_id", "custom_id", "retry_of"], ...]] = ("batch_id", "custom_id", "retry_of")


def main(argv: Sequence[str]) -> int:
    return run(_parser().parse_args(argv))


def _parser() -> argparse.ArgumentParser:
    whole = parser("jobs", ABOUT)
    verbs = whole.add_subparsers(required=True, metavar="VERB")
    made = common(verbs.add_parser("create", help="order an image"), create)
    made.add_argument("prompt", nargs="?", help="what it shows")
    made.add_argument("--model", help="of the catalogue, flux-pro-1.1 say")
    made.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a field of the order, as JSON")
    made.add_argument("--order", metavar="FILE", help="the order as JSON; - is standard input")
    made.add_argument("--key", help="Idempotency-Key: with the same one the same job is found again")
    made.add_argument("--wait", action="store_true", help="until it has ended")
    _of_one(verbs.add_parser("get", help="one job"), get)
    waits = common(verbs.add_parser("wait", help="until they have ended"), wait)
    waits.add_argument("jobs", nargs="+", metavar="JOB")
    for each in (made, waits):
        each.add_argument("--timeout", type=float, metavar="S", help="wait no longer than S seconds")
    lists = common(verbs.add_parser("list", help="newest first"), list_)
    lists.add_argument("--status", help="only jobs in this state")
    lists.add_argument("--batch", help="only jobs of this batch")
    lists.add_argument("--limit", type=count, default=LISTED, metavar="N", help=f"at most N ({LISTED}); 0: all")
    _of_one(verbs.add_parser("cancel", help="want it no more"), cancel)
    again = _of_one(verbs.add_parser("retry", help="a new job for one that failed or was cancelled"), retry)
    again.add_argument("--rerun", action="store_true", help="buy again if what was bought no longer serves")
    image_ = _of_one(verbs.add_parser("image", help="fetch its image"), image)
    image_.add_argument("file", type=Path, metavar="FILE")
    return whole


def _of_one(verb: argparse.ArgumentParser, act: Act) -> argparse.ArgumentParser:
    verb.add_argument("job", metavar="JOB")
    return common(verb, act)


# ---- verbs -----------------------------------------------------------------------------------------------------------


def create(call: Call) -> int:
    job = call.darkroom.submit(order(call.asked), key=call.asked.key)
    if call.asked.wait:
        return _awaited(call, job)
    call.screen.tell(dict(job), [*shown(job), f"  wait       python -m service jobs wait {plain(job['id'])}"])
    return DONE


def get(call: Call) -> int:
    return _told(call, call.darkroom.get(call.asked.job))


def wait(call: Call) -> int:
    """The worst of their exit codes."""
    code = DONE
    for job_id in call.asked.jobs:
        code = max(code, _awaited(call, call.darkroom.get(job_id)))
        if code == INTERRUPTED:
            break
    return code


def list_(call: Call) -> int:
    asked = call.asked
    jobs = call.darkroom.jobs(status=asked.status, batch_id=asked.batch)
    wanted = itertools.islice(jobs, asked.limit or None)
    if not call.screen.pretty:
        call.screen.say(json.dumps(job) for job in wanted)
        return DONE
    call.screen.say([row(("JOB", "STATUS", "MODEL", "TOOK", "WHAT"), WIDTHS)])
    call.screen.say(row(_cells(job), WIDTHS) for job in wanted)
    return DONE


def cancel(call: Call) -> int:
    job = call.darkroom.cancel(call.asked.job)
    call.screen.tell(dict(job), shown(job))
    return DONE


def retry(call: Call) -> int:
    job = call.darkroom.retry(call.asked.job, rerun=call.asked.rerun)
    call.screen.tell(dict(job), shown(job))
    return DONE


def image(call: Call) -> int:
    """The file is there whole, and its SHA-256 is right, or it is not there."""
    job = call.darkroom.get(call.asked.job)
    data = call.darkroom.image(job)
    file: Path = call.asked.file
    part = file.with_name(file.name + ".part")
    part.write_bytes(data)
    part.replace(file)
    call.screen.tell({"file": str(file), "bytes": len(data)}, [f"{plain(file)}: {len(data):,} bytes"])
    return DONE


def _awaited(call: Call, job: Job) -> int:
    """Wait for its end, and tell it. Ctrl-C, and a wait that is over, say how to go on."""
    began_s = time.monotonic()
    until_s = began_s + (math.inf if call.asked.timeout is None else call.asked.timeout)
    try:
        while job["status"] not in ENDED and (left_s := until_s - time.monotonic()) > 0:
            call.screen.move(f"{plain(job['id'])}  {plain(job['status'])}  {duration(time.monotonic() - began_s)}")
            job = _looked(call, job, left_s)
    except KeyboardInterrupt:
        _go_on(call, job)
        return INTERRUPTED
    call.screen.clear()
    if job["status"] not in ENDED:
        _go_on(call, job)
        return FAILED
    return _told(call, job)


def _looked(call: Call, job: Job, left_s: float) -> Job:
    try:
        return call.darkroom.wait(job["id"], timeout_s=min(left_s, LOOK_S if call.screen.moving else left_s))
    except Unfinished as unfinished:
        return unfinished.job


def _go_on(call: Call, job: Job) -> None:
    id_ = plain(job["id"])
    call.screen.complain(
        f"{id_} is {plain(job['status'])}, and goes on.", f"Wait on: python -m service jobs wait {id_}"
    )


def _told(call: Call, job: Job) -> int:
    call.screen.tell(dict(job), shown(job))
    return FAILED if job["status"] in {"failed", "cancelled"} else DONE


# ---- words -----------------------------------------------------------------------------------------------------------


def order(asked: argparse.Namespace) -> dict[str, Any]:
    """What the arguments order; single fields win over those of a file. Raises ValueError, OSError."""
    whole: Any = {}
    if asked.order:
        whole = json.loads(sys.stdin.read() if asked.order == "-" else Path(asked.order).read_text())
    if not isinstance(whole, dict):
        raise ValueError("An order is a JSON object.")  # noqa: TRY004 -- a caller's text that is wrong, not a type of ours
    named = {"model": asked.model, "prompt": asked.prompt}
    whole |= {name: text for name, text in named.items() if text is not None}
    return whole | dict(_field(each) for each in asked.set)


def _field(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--set takes NAME=VALUE, not {text!r}")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value  # a word needs no quotes


def shown(job: Job) -> list[str]:
    """One job in lines."""
    lines = [
        f"{plain(job['id'])}  {plain(job['status'])}",
        f"  model      {plain(job['model'])}, {plain(job['priority'])}",
    ]
    lines.append(f"  ordered    {plain(job['created_at'])} by {plain(job['caller'])}")
    if took_s := _took_s(job):
        lines.append(f"  took       {duration(took_s)}")
    if image := job["image"]:
        size = f"{image['width']} by {image['height']}, {image['bytes']:,} bytes"
        lines.append(f"  image      s3://{plain(image['bucket'])}/{plain(image['key'])} ({size})")
    if error := job["error"]:
        lines.append(f"  error      {plain(error['code'])}: {plain(error['message'])}")
    lines += [f"  {name:<11}{plain(job[name])}" for name in _REFERENCES if job[name]]
    if job["possible_duplicate"]:
        lines.append("  note       it may have been bought twice: what became of one attempt was never told")
    return lines


def _cells(job: Job) -> tuple[str, ...]:
    error = job["error"]
    what = error["code"] if error else job["request"].get("prompt", "")
    took_s = _took_s(job)
    return job["id"], job["status"], job["model"], duration(took_s) if took_s else "", str(what)


def _took_s(job: Job) -> float | None:
    if not job["finished_at"]:
        return None
    return (datetime.fromisoformat(job["finished_at"]) - datetime.fromisoformat(job["created_at"])).total_seconds()
