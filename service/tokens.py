"""Who is calling: the tokens and secrets of provider callbacks (derived, none stored), and callers' API tokens.

A token `{kid}.{attempt}.{mac}` says that we made this address for this attempt of this job; a secret, which only
the provider is told, says that the payload is the provider's. Both are HMAC-SHA256 under a key of `WEBHOOK_KEYS`,
apart by their purpose: who has seen a token knows nothing of the secret.
"""

import base64
import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from service.parsers import WebhookKey
from service.secret import Secret

MAC_BYTES: Final = 18  # 144 bits, and a multiple of 3: base64url without padding or spare bits, so one spelling
ATTEMPT: Final = re.compile(r"[1-9][0-9]{0,3}")  # canonical decimal, 1..9999
NO_KEY: Final = bytes(32)  # what an unknown kid is checked with, so that its refusal costs what others cost


@dataclass(frozen=True, slots=True)
class VerifiedToken:
    kid: str
    attempt: int


class Proof(Enum):
    """What a callback shows of its secret. NONE makes it a hint; WRONG means that nothing of it is used."""

    RIGHT = auto()
    NONE = auto()
    WRONG = auto()


class CallbackKeys:
    """The first key signs, all verify; with none, nothing verifies."""

    def __init__(self, keys: tuple[WebhookKey, ...]) -> None:
        self._signer = keys[0].kid if keys else ""
        self._keys = {key.kid: key.key for key in keys}

    def token(self, job_id: str, attempt: int) -> str:
        return f"{self._signer}.{attempt}.{self._mac(self._signer, job_id, str(attempt))}"

    def secret(self, job_id: str, attempt: int, kid: str | None = None) -> str:
        """The `webhook_secret` of an attempt: 43 characters. `kid` is that of the attempt's token."""
        return _text(self._derive("callback-secret", self._signer if kid is None else kid, job_id, str(attempt)))

    def callback_url(self, public_base_url: str, job_id: str, attempt: int) -> str:
        return f"{public_base_url}/webhooks/flux/{job_id}/{self.token(job_id, attempt)}"

    def verify(self, job_id: str, token: str) -> VerifiedToken | None:
        """Total. Every refusal derives one MAC and makes one comparison in constant time."""
        kid, attempt, mac = (*token.split(".", 2), "", "")[:3]
        same = hmac.compare_digest(_bytes(self._mac(kid, job_id, attempt)), _bytes(mac))
        good = same and kid in self._keys and ATTEMPT.fullmatch(attempt)
        return VerifiedToken(kid, int(attempt)) if good else None

    def proof(
        self,
        job_id: str,
        attempt: int,
        kid: str,
        *,
        body_secret: str | None,
        header_secret: str | None,
        signature: str | None,
        raw_body: bytes,
    ) -> Proof:
        """Total. One right proof suffices; an empty one counts as none. All are compared, in constant time."""
        secret = _bytes(self.secret(job_id, attempt, kid))
        hexmac = hmac.digest(secret, raw_body, "sha256").hex().encode()
        shown = [(secret, body_secret), (secret, header_secret), (hexmac, signature and _hex(signature))]
        right = [hmac.compare_digest(wanted, _bytes(given)) for wanted, given in shown if given]
        if not right:
            return Proof.NONE
        return Proof.RIGHT if any(right) and kid in self._keys else Proof.WRONG

    def _mac(self, kid: str, job_id: str, attempt: str) -> str:
        return _text(self._derive("callback-token", kid, job_id, attempt)[:MAC_BYTES])

    def _derive(self, purpose: str, kid: str, job_id: str, attempt: str) -> bytes:
        """The job's id comes last: purpose and attempt hold no NUL, so no two triples spell alike."""
        message = _bytes(f"{purpose}\0{attempt}\0{job_id}")
        return hmac.digest(self._keys.get(kid, NO_KEY), message, "sha256")


class ApiTokens:
    """Callers' tokens by name. Only their digests are kept."""

    def __init__(self, tokens: Mapping[str, Secret]) -> None:
        self._digests = {name: _digest(token.reveal()) for name, token in tokens.items()}

    def caller(self, authorization: str | None) -> str | None:
        """Whose token `Authorization: Bearer …` carries, else None. Total; compares with every token each time."""
        scheme, _, token = (authorization or "").partition(" ")
        given = _digest(token.strip())
        names = [name for name, digest in self._digests.items() if hmac.compare_digest(digest, given)]
        return names[0] if names and scheme.lower() == "bearer" else None


def _hex(signature: str) -> str:
    """`sha256=<hex>` in any case (header X-BFL-Signature); a blank one stays a wrong proof, not none."""
    return signature.strip().lower().removeprefix("sha256=") or "-"


def _digest(token: str) -> bytes:
    return hashlib.sha256(_bytes(token)).digest()


def _text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")  # a path or a JSON string may hold lone surrogates
