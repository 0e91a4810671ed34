"""What the provider says, as JSON values: to a submission, to a poll, in a refusal. Pure.

Source: BFL's OpenAPI description, CometAPI's manual, and what users of both have published.
"""

from typing import Any

from deploy.rehearsal.tasks import Task
from service.domain.instants import rfc3339

MODERATED_WORDS = ("Request Moderated", "Content Moderated")
FAILED_WORDS = ("Error", "Failed")
ODD_WORDS = ("Reasoning", "Queued", "Warming up", "")
ODD_PROGRESS = (-1, 1.7, None, 250)
MODERATION_REASONS = {"Moderation Reasons": ["Derivative Works Filter"]}
CREDITS = {"flux-dev": 2.5, "flux-pro": 5.0, "flux-pro-1.1": 4.0, "flux-pro-1.1-ultra": 6.0, "flux-kontext-pro": 4.0}
"""`cost` of an answer, in BFL's credits (a hundredth of a dollar); a model without a row has no cost in its answer."""

Body = dict[str, Any]


def submitted(task: Task, name: str, polling_url: str) -> Body:
    """`name` is the task id told. With a webhook there is no polling_url, and the URL is echoed, token and all."""
    if "bare_submit" in task.fate:
        return {"id": name, "status": "Pending"}
    cost = {"cost": CREDITS[task.model]} if task.model in CREDITS else {}
    if task.asked.webhook_url:
        return {"id": name, "status": "Pending", "webhook_url": task.asked.webhook_url} | cost
    return {"id": name, "polling_url": polling_url} | cost


def status(task: Task, now: float, sample_url: str) -> Body:
    """The answer to a poll, without the oddities of a poll."""
    if task.ended_at is None:
        done = min(0.99, (now - task.accepted_at) / task.latency_s) if task.latency_s else 0.99
        return _status(task, "Pending" if done < 0.2 else "Generating", progress=round(done, 2))
    if task.outcome == "moderated":
        return _status(task, task.dice.pick("word", MODERATED_WORDS), details=MODERATION_REASONS)
    if task.outcome == "failed":
        return _status(task, task.dice.pick("word", FAILED_WORDS), details={"error": "generation failed"})
    return _status(task, "Ready", result=result(task, sample_url), progress=1.0)


def result(task: Task, sample_url: str) -> Body:
    """What a ready task has to show. FLUX.2 tells no end_time."""
    ended_at = task.ended_at or task.accepted_at
    facts = {
        "sample": sample_url,
        "prompt": task.asked.prompt,
        "seed": task.seed,
        "start_time": task.accepted_at,
        "end_time": ended_at,
        "duration": round(ended_at - task.accepted_at, 3),
    }
    return {key: value for key, value in facts.items() if key != "end_time" or "flux-2" not in task.model}


def odd(task: Task, turn: int) -> Body:
    return _status(
        task, task.dice.pick("odd_word", ODD_WORDS, turn), progress=task.dice.pick("odd_progress", ODD_PROGRESS, turn)
    )


def pending(task: Task) -> Body:
    return _status(task, "Pending")


def not_found(name: str) -> Body:
    return {"id": name, "status": "Task not found", "result": None, "progress": None, "details": None, "preview": None}


def wrapped(task: Task, body: Body) -> Body:
    """CometAPI's envelope; the image is in `data.data.result.sample`, or flat in `data.data.sample`."""
    word = {"Ready": "SUCCESS"} | dict.fromkeys((*FAILED_WORDS, *MODERATED_WORDS), "FAILURE")
    inner = body["result"] if body["result"] and task.dice.roll("flat") < 0.5 else body
    return {
        "code": "success",
        "message": "",
        "data": {
            "task_id": task.id,
            "status": word.get(body["status"], "IN_PROGRESS"),
            "fail_reason": body["status"] if word.get(body["status"]) == "FAILURE" else "",
            "submit_time": rfc3339(int(task.accepted_at * 1000)),
            "data": inner,
        },
    }


def refusal(message: str, code: str, *, comet: bool) -> Body:
    if comet:
        return {"error": {"message": message, "type": "comet_api_error", "code": code}}
    return {"detail": message}


def _status(task: Task, word: str, **more: Any) -> Body:
    empty: Body = {"id": task.id, "status": word, "result": None, "progress": None, "details": None, "preview": None}
    return empty | more
