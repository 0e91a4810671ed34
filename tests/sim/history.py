"""The history checker: what happened, read afterwards from what was written down, against the promises P1 to P6.

It takes plain dicts, so that it reads simulated, tested and real systems alike:

- `lines`: the events stream, oldest first, as `Store.events` gives it: id, status, from, reason, at, version, by;
- `jobs`: the jobs as the API shows them at the end (`service.domain.view.view`);
- `ledger`: what the provider accepted, a row each: job_id, provider_id (of the rehearsal provider: `/_ledger`'s
  submissions; the job's id is in the `webhook_url`);
- `objects`: what the bucket holds: key -> job_id, sha256 (of the bytes), and made_for (the provider task that an image
  shows, where the test's images say so);
- `answers`: to whom (`order`, `cancel`, … or `callback`) and with which status, and the id of an accepted order.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

Row = Mapping[str, Any]

ENDED: Final = frozenset({"succeeded", "failed", "cancelled"})
TO_CALLBACKS: Final = frozenset({204, 401, 404, 503})
PURCHASES_MOST: Final = 2


def violations(
    *,
    lines: Iterable[Row],
    jobs: Iterable[Row],
    ledger: Iterable[Row],
    objects: Mapping[str, Row],
    answers: Iterable[Row] = (),
    unknown_wait_ms: int = 0,
) -> list[str]:
    """Every broken promise as a sentence; empty: all were kept. All jobs are expected to have ended."""
    stories: defaultdict[str, list[Row]] = defaultdict(list)
    for line in lines:
        stories[line["id"]].append(line)
    shown = {job["id"]: job for job in jobs}
    bought = [dict(row) for row in ledger]
    own = images_of(objects)
    found = [f"{job_id}: {fault}" for job_id, story in stories.items() for fault in story_faults(story)]
    found += [f"{job_id}: {fault}" for job_id, story in stories.items() for fault in haste(story, unknown_wait_ms)]
    found += [f"{job['id']}: P2 still {job['status']}" for job in shown.values() if job["status"] not in ENDED]
    for job in shown.values():
        found += [f"{job['id']}: {fault}" for fault in image_faults(job, shown, bought, objects, own[job["id"]])]
    found += purchase_faults(shown, bought)
    found += answer_faults(answers, stories)
    return found


def story_faults(story: Sequence[Row]) -> Iterable[str]:
    """P2, and the fence: one write a version, each from where the one before had led, and no way back from an end."""
    if story[0]["reason"] != "created":
        yield f"P1 its first event is {story[0]['reason']}"
    for before, line in pairwise(story):
        where = f"{line['reason']} at version {line['version']}"
        if line["from"] != before["status"]:
            yield f"P2 {where} left {line['from']}, but the job was {before['status']}"
        if int(line["version"]) <= int(before["version"]):
            yield f"P2 {where} follows version {before['version']}"
        if before["status"] in ENDED and line["status"] != before["status"]:
            yield f"P2 {where} changed {before['status']} to {line['status']}"


def haste(story: Sequence[Row], wait_ms: int) -> Iterable[str]:
    """P4: after an unknown outcome nothing is posted again while a callback could still come."""
    intents = [(number, int(line["at"])) for number, line in enumerate(story) if line["reason"] == "intended"]
    for (_, first), (number, second) in pairwise(intents):
        if story[number]["from"] == "submitting" and second - first < wait_ms:
            yield f"P4 posted again {second - first} ms after an attempt whose outcome was not known"


def images_of(objects: Mapping[str, Row]) -> defaultdict[str, list[str]]:
    """The keys of each job's images."""
    own: defaultdict[str, list[str]] = defaultdict(list)
    for key, thing in objects.items():
        if key.startswith("images/"):
            own[thing["job_id"]].append(key)
    return own


def image_faults(
    job: Row, jobs: Mapping[str, Row], ledger: Sequence[Row], objects: Mapping[str, Row], own: Sequence[str]
) -> Iterable[str]:
    """P3: what succeeded has its image, whole, its own; what did not leaves none behind. `own`: keys of its images."""
    if job["status"] != "succeeded":
        if own and job["status"] in ENDED:
            yield f"P3 {job['status']}, and yet {own} is there"
        return
    image = job["image"]
    thing = objects.get(image["key"])
    if thing is None:
        yield "P3 succeeded without its object"
    elif thing["sha256"] != image["sha256"]:
        yield "P3 the object is not what was hashed"
    elif thing["job_id"] != job["id"]:
        yield f"P3 the object belongs to {thing['job_id']}"
    elif "made_for" in thing:
        line = set(ancestry(job, jobs))
        makers = {row["job_id"] for row in ledger if row["provider_id"] == thing["made_for"]}
        if not makers & line:
            yield f"P3 shows the image of {makers}"


def ancestry(job: Row, jobs: Mapping[str, Row]) -> Iterable[str]:
    """The job and those that it retries."""
    at: str | None = job["id"]
    while at is not None:
        yield at
        at = jobs[at]["retry_of"] if at in jobs else None


def purchase_faults(jobs: Mapping[str, Row], ledger: Sequence[Row]) -> Iterable[str]:
    """P4: one purchase; two only where the job says so; never three."""
    for job_id, count in Counter(row["job_id"] for row in ledger).items():
        flagged = job_id not in jobs or jobs[job_id]["possible_duplicate"]
        if count > PURCHASES_MOST or (count > 1 and not flagged):
            yield f"{job_id}: P4 bought {count} times, possible_duplicate={flagged}"


def answer_faults(answers: Iterable[Row], stories: Mapping[str, list[Row]]) -> Iterable[str]:
    """P1, P5, P6: an accepted order is on record, a key names one job, and a callback is never a surprise."""
    keys: dict[tuple[str, str], str] = {}
    for answer in answers:
        job_id, status = answer.get("job_id"), answer["status"]
        if answer["to"] == "callback" and status not in TO_CALLBACKS:
            yield f"P6 a callback was answered {status}"
        if status >= 500 and status != 503:
            yield f"P10 {answer['to']} was answered {status}"
        if job_id is not None and job_id not in stories:
            yield f"{job_id}: P1 accepted, and not on record"
        if job_id is not None and "key" in answer:
            first = keys.setdefault((answer["caller"], answer["key"]), job_id)
            if first != job_id:
                yield f"{job_id}: P5 its key had made {first}"


def batch_faults(
    uploads: Iterable[Row], *, batches: Mapping[str, Row], objects: Mapping[str, bytes], deleted: Collection[str] = ()
) -> Iterable[str]:
    """A batch is there whole or not at all: one for a key, a job for each line, and in the bucket, in this order, the
    sidecars of its jobs, its manifest with their lines in the order of the batch's, and its marker.

    `uploads`: what callers were told: key, id, prompts. `batches`: the records, with the ids of their jobs as `lines`.
    `objects`: the bucket, in the order in which it was filled. `deleted`: jobs whose callers wanted nothing left.
    """
    keys: dict[Any, str] = {}
    for upload in uploads:
        if (first := keys.setdefault(upload["key"], upload["id"])) != upload["id"]:
            yield f"{upload['id']}: P5 its key had made {first}"
        batch = batches.get(upload["id"])
        if batch is None:
            yield f"{upload['id']}: P1 accepted, and not on record"
        elif len(batch["lines"]) != len(upload["prompts"]):
            yield f"{upload['id']}: {len(batch['lines'])} jobs for {len(upload['prompts'])} lines"
    order = {key: number for number, key in enumerate(objects)}
    sealed: dict[Any, str] = {}
    for batch_id, batch in batches.items():
        if batch["idem"] and (first := sealed.setdefault((batch["caller"], batch["idem"]), batch_id)) != batch_id:
            yield f"{batch_id}: P5 its key had made {first}"
        if batch["status"] == "staging":
            yield f"{batch_id}: half a batch is left"
        else:
            yield from (f"{batch_id}: {fault}" for fault in end_faults(batch, objects, order, deleted))


def end_faults(
    batch: Row, objects: Mapping[str, bytes], order: Mapping[str, int], deleted: Collection[str]
) -> Iterable[str]:
    """How a batch stands in the bucket once it is over."""
    folder = next((key.rpartition("/")[0] for key in objects if f"/{batch['id']}/" in key), "")
    manifest, markers = f"{folder}/manifest.ndjson", [f"{folder}/{name}" for name in ("_SUCCESS", "_FAILED")]
    there = [key for key in markers if key in objects]
    if len(there) != 1 or manifest not in objects:
        yield f"its markers are {there}, and its manifest is there: {manifest in objects}"
        return
    told = [json.loads(line) for line in objects[manifest].splitlines()]
    listed = [job["id"] for job in told]
    if listed != [line for line in batch["lines"] if line in listed or line not in deleted]:
        yield f"its manifest tells of {len(told)} jobs, not of its {len(batch['lines'])} in their order"
    sidecars = [key for key in objects if any(key.endswith(f"/{job_id}.json") for job_id in listed)]
    if any(order[key] > order[manifest] for key in sidecars) or order[manifest] > order[there[0]]:
        yield "the bucket was not filled in its order"
    succeeded = any(job["status"] == "succeeded" for job in told)
    if there[0].endswith("_SUCCESS") != succeeded and not any(line in deleted for line in batch["lines"]):
        yield f"its marker is {there[0]}, its manifest says otherwise"


def notice_faults(wanted: Iterable[str], letters: Sequence[Row]) -> Iterable[str]:
    """Who wants to hear of a job or batch hears of it, at least once, in one wording under one id, and not before the
    bucket tells of it.

    `wanted`: ids of what is over. `letters`: what receivers were sent: about (the id), webhook_id, body (its
    digest), taken (they said so), early (nothing lay in the bucket yet).
    """
    told: defaultdict[str, list[Row]] = defaultdict(list)
    for letter in letters:
        told[letter["about"]].append(letter)
        if letter["early"]:
            yield f"{letter['about']}: told before its sidecar was there"
    for about in wanted:
        if not any(letter["taken"] for letter in told[about]):
            yield f"{about}: its caller was told {len(told[about])} times, and heard none of them"
    for about, rows in told.items():
        if len({(row["webhook_id"], row["body"]) for row in rows}) > 1:
            yield f"{about}: told in more than one way"
    if len({row["webhook_id"] for row in letters}) < len({row["about"] for row in letters}):
        yield "two notifications share an id"
