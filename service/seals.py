"""Sealing: what must be kept and must not be read where it is kept (a Flux client's own webhook address and secret).

AES-256-GCM under a key derived from one of `WEBHOOK_KEYS`. A seal names that key: the first seals, all open, and a key
that is removed takes with it what was sealed under it.
"""

import base64
import hmac
import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from service.parsers import WebhookKey

NONCE_BYTES: Final = 12  # random: safe for 2³² seals under one key
PURPOSE: Final = b"flux-webhook"


@dataclass(frozen=True, slots=True)
class Hook:
    """A Flux client's `webhook_url` and `webhook_secret` (empty: none was given)."""

    url: str = field(repr=False)
    secret: str = field(repr=False)


class Seals:
    def __init__(self, keys: Sequence[WebhookKey]) -> None:
        self._keys = {key.kid: AESGCM(hmac.digest(key.key, PURPOSE, "sha256")) for key in keys}
        self._first = keys[0].kid if keys else None

    @property
    def can_seal(self) -> bool:
        return self._first is not None

    def seal(self, hook: Hook) -> str:
        """`{kid}.{base64url}`. KeyError without a key."""
        kid = self._first or ""
        nonce = secrets.token_bytes(NONCE_BYTES)
        sealed = self._keys[kid].encrypt(nonce, json.dumps([hook.url, hook.secret]).encode(), PURPOSE)
        return f"{kid}.{base64.urlsafe_b64encode(nonce + sealed).decode()}"

    def open(self, text: str) -> Hook | None:
        """Total. None: its key is gone, or it is no seal of ours."""
        kid, _, encoded = text.partition(".")
        key = self._keys.get(kid)
        if key is None:
            return None
        try:
            raw = base64.urlsafe_b64decode(encoded)
            url, secret = json.loads(key.decrypt(raw[:NONCE_BYTES], raw[NONCE_BYTES:], PURPOSE))
        except (ValueError, InvalidTag):  # ValueError: no base64, too short, no JSON, not two
            return None
        return Hook(url, secret)
