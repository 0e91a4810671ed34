"""Signatures of notifications, as Standard Webhooks have them (https://www.standardwebhooks.com), and as the provider.

The first signs `{webhook-id}.{webhook-timestamp}.{body}` by HMAC-SHA256; while a secret is being changed there are two
signatures, of which a receiver needs one.
"""

import base64
import hmac
import re
from collections.abc import Sequence
from typing import Final

from service.parsers import notify_key
from service.secret import Secret

HEADER: Final = re.compile(r"[\x21-\x7e]{1,1024}")  # what a header can carry unchanged


def standard(secrets: Sequence[Secret], message_id: str, at_s: int, body: bytes) -> dict[str, str]:
    """The three headers; `at_s` is Unix time."""
    signed = f"{message_id}.{at_s}.".encode() + body
    macs = [hmac.digest(notify_key(secret.reveal()), signed, "sha256") for secret in secrets]
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(at_s),
        "webhook-signature": " ".join(f"v1,{base64.b64encode(mac).decode()}" for mac in macs),
    }


def provider(secret: str, body: bytes) -> dict[str, str]:
    """What the provider proves itself with, in both ways that are told of it; without a secret, nothing."""
    if not secret:
        return {}
    mac = hmac.digest(secret.encode("utf-8", "surrogatepass"), body, "sha256").hex()
    shown = {"X-Webhook-Secret": secret} if HEADER.fullmatch(secret) else {}
    return shown | {"X-BFL-Signature": f"sha256={mac}"}
