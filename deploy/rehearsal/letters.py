"""Callbacks as bytes: two dialects, four ways to prove the secret, and three ways to lie. Pure."""

import hmac
import json
from dataclasses import dataclass
from typing import Any

from deploy.rehearsal.answers import FAILED_WORDS, MODERATED_WORDS, MODERATION_REASONS, result
from deploy.rehearsal.control import Control
from deploy.rehearsal.tasks import Task

BODY_FIELDS = ("webhook_secret", "secret")
"""CometAPI says that the secret is in the payload, not under which name."""
LIES = ("wrong-secret", "altered", "no-proof")
WRONG_SECRET = "whsec_guessed-by-somebody-else"  # noqa: S105  a lie, not a secret


@dataclass(frozen=True, slots=True)
class Letter:
    body: bytes
    headers: dict[bytes, bytes]


def progress(task: Task, control: Control, done: float) -> Letter:
    payload: dict[str, Any] = {"status": "processing", "progress": round(done, 2)}
    if control.dialect == "new":
        payload["status"] = "Generating"
    return _sealed(task, control, payload, task.asked.webhook_secret)


def final(task: Task, control: Control, sample_url: str) -> Letter:
    return _sealed(task, control, _ending(task, control, sample_url), task.asked.webhook_secret)


def forged(task: Task, control: Control, decoy_url: str) -> Letter:
    """Says that the task is ready and that its image is at `decoy_url`. No proof in it is right."""
    payload = _good(task, control, decoy_url)
    lie = task.dice.pick("lie", LIES)
    if lie == "no-proof":
        return _sealed(task, control, payload, None)
    if lie == "altered" and control.proof == "hmac":
        stale = _sealed(task, control, payload | {"progress": 1}, task.asked.webhook_secret)
        return Letter(_sealed(task, control, payload, None).body, stale.headers)
    return _sealed(task, control, payload, WRONG_SECRET)


def _ending(task: Task, control: Control, sample_url: str) -> dict[str, Any]:
    if task.outcome == "ready":
        return _good(task, control, sample_url)
    words = MODERATED_WORDS if task.outcome == "moderated" else FAILED_WORDS
    word = "FAILED" if control.dialect == "old" else task.dice.pick("word", words)
    details = MODERATION_REASONS if task.outcome == "moderated" else {"error": "generation failed"}
    empty = {"result": None} if task.dice.roll("result_key") < 0.5 else {}
    return {"status": word, "details": details} | empty


def _good(task: Task, control: Control, sample_url: str) -> dict[str, Any]:
    return {"status": "SUCCESS" if control.dialect == "old" else "Ready", "result": result(task, sample_url)}


def _sealed(task: Task, control: Control, payload: dict[str, Any], secret: str | None) -> Letter:
    """The payload with the task's id and, if there is a secret, its proof."""
    payload = {"task_id" if control.dialect == "old" else "id": task.id} | payload
    if secret and control.proof == "body":
        payload[task.dice.pick("body_field", BODY_FIELDS)] = secret
    body = json.dumps(payload).encode()
    headers = {b"Content-Type": b"application/json"}
    if secret and control.proof == "header":
        headers[b"X-Webhook-Secret"] = secret.encode()
    if secret and control.proof == "hmac":
        headers[b"X-BFL-Signature"] = b"sha256=" + hmac.new(secret.encode(), body, "sha256").hexdigest().encode()
    return Letter(body, headers)
