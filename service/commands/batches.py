"""`python -m service batches …`: submit a file of orders, watch and list them, and retry what failed, over HTTP."""

import argparse
import itertools
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from service.client import Batch
from service.commands.caller import DONE, FAILED, INTERRUPTED, LISTED, Act, Call, common, count, parser, run
from service.commands.screen import bar, duration, plain, row

ABOUT: Final = "submit a file of orders, watch and list them, and retry what failed"
WIDTHS: Final = (32, 9, 4)


def main(argv: Sequence[str]) -> int:
    return run(_parser().parse_args(argv))


def _parser() -> argparse.ArgumentParser:
    whole = parser("batches", ABOUT)
    verbs = whole.add_subparsers(required=True, metavar="VERB")
    submits = common(verbs.add_parser("submit", help="a line of the file is a job"), submit)
    submits.add_argument("file", metavar="FILE", help="NDJSON; - is standard input")
    submits.add_argument("--key", help="Idempotency-Key: with the same one the same batch is found again")
    submits.add_argument("--callback-url", metavar="URL", help="told when all have ended")
    submits.add_argument("--metadata", type=metadata, metavar="JSON", help="kept with the batch")
    submits.add_argument("--watch", action="store_true", help="until all have ended")
    _of_one(verbs.add_parser("get", help="one batch"), get)
    _of_one(verbs.add_parser("watch", help="until all of its jobs have ended"), watch)
    lists = common(verbs.add_parser("list", help="newest first"), list_)
    lists.add_argument("--limit", type=count, default=LISTED, metavar="N", help=f"at most N ({LISTED}); 0: all")
    again = _of_one(verbs.add_parser("retry", help="a new batch of the lines that failed"), retry)
    again.add_argument("--watch", action="store_true", help="until all have ended")
    _of_one(verbs.add_parser("cancel", help="want no more of it"), cancel)
    _of_one(verbs.add_parser("manifest", help="its ended jobs as NDJSON, in the order of its lines"), manifest)
    return whole


def metadata(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise argparse.ArgumentTypeError("should be a JSON object") from None


def _of_one(verb: argparse.ArgumentParser, act: Act) -> argparse.ArgumentParser:
    verb.add_argument("batch", metavar="BATCH")
    return common(verb, act)


# ---- verbs -----------------------------------------------------------------------------------------------------------


def submit(call: Call) -> int:
    asked = call.asked
    with _file(asked.file) as path:
        how = {"key": asked.key, "callback_url": asked.callback_url, "metadata": asked.metadata}
        return _begun(call, call.darkroom.submit_batch(path, **how))


def get(call: Call) -> int:
    batch = call.darkroom.batch(call.asked.batch)
    call.screen.tell(dict(batch), shown(batch))
    return _code(batch)


def watch(call: Call) -> int:
    return _watched(call, call.asked.batch)


def list_(call: Call) -> int:
    wanted = itertools.islice(call.darkroom.batches(), call.asked.limit or None)
    if not call.screen.pretty:
        call.screen.say(json.dumps(batch) for batch in wanted)
        return DONE
    call.screen.say([row(("BATCH", "STATUS", "DONE", "JOBS"), WIDTHS)])
    call.screen.say(row(_cells(batch), WIDTHS) for batch in wanted)
    return DONE


def retry(call: Call) -> int:
    return _begun(call, call.darkroom.retry_batch(call.asked.batch))


def cancel(call: Call) -> int:
    batch = call.darkroom.cancel_batch(call.asked.batch)
    call.screen.tell(dict(batch), shown(batch))
    return DONE


def manifest(call: Call) -> int:
    call.screen.say(json.dumps(job) for job in call.darkroom.manifest(call.asked.batch))
    return DONE


def _begun(call: Call, batch: Batch) -> int:
    if call.asked.watch:
        return _watched(call, batch["id"])
    call.screen.tell(dict(batch), [*shown(batch), f"  watch      python -m service batches watch {plain(batch['id'])}"])
    return DONE


def _watched(call: Call, batch_id: str) -> int:
    """Each change: a line of JSON for a program, the moving line for a person. Ctrl-C says how to go on."""
    batch: Batch | None = None
    try:
        for batch in call.darkroom.watch(batch_id):
            if not call.screen.pretty:
                call.screen.tell(dict(batch), [])
            call.screen.move(moving(batch))
    except KeyboardInterrupt:
        id_ = plain(batch_id)
        call.screen.complain(f"{id_} goes on.", f"Watch on: python -m service batches watch {id_}")
        return INTERRUPTED
    call.screen.clear()
    if batch is None:
        return FAILED
    if call.screen.pretty:
        call.screen.say(shown(batch))
    return _code(batch)


@contextmanager
def _file(name: str) -> Iterator[Path]:
    """The file of that name; standard input is kept in one first, since it may have to be sent twice."""
    if name != "-":
        yield Path(name)
        return
    with tempfile.NamedTemporaryFile() as kept:
        shutil.copyfileobj(sys.stdin.buffer, kept)
        kept.flush()
        yield Path(kept.name)


# ---- words -----------------------------------------------------------------------------------------------------------


def shown(batch: Batch) -> list[str]:
    """One batch in lines."""
    lines = [f"{plain(batch['id'])}  {plain(batch['status'])}", f"  jobs       {batch['total']:,}: {counts(batch)}"]
    lines.append(f"  progress   {bar(batch['progress'])} {batch['progress']:.0%}")
    if batch.get("retry_of"):
        lines.append(f"  retry_of   {plain(batch.get('retry_of'))}")
    if batch["status"] != "running":
        lines.append(f"  manifest   {plain(batch.get('manifest_key'))}")
    return lines


def moving(batch: Batch) -> str:
    """The line that moves while the batch runs."""
    eta_s = batch.get("eta_s")
    left = f"  about {duration(eta_s)} left" if eta_s else ""
    return f"{bar(batch['progress'])} {batch['progress']:>4.0%}  {counts(batch)}{left}"


def counts(batch: Batch) -> str:
    return ", ".join(f"{number:,} {plain(status)}" for status, number in batch["counts"].items() if number) or "none"


def _cells(batch: Batch) -> tuple[str, ...]:
    return batch["id"], batch["status"], f"{batch['progress']:.0%}", counts(batch)


def _code(batch: Batch) -> int:
    lost = batch["counts"].get("failed", 0) + batch["counts"].get("cancelled", 0)
    return FAILED if batch["status"] == "cancelled" or (batch["status"] == "completed" and lost) else DONE
