"""Foreign text made fit for job errors, events and logs: short, printable, without secrets."""

import re
import unicodedata
from typing import Final

TEXT_CHARS_MAX: Final = 500
SCANNED_CHARS_MAX: Final = 4_000  # of a longer text only the start is looked at, so that cost stays bounded
GONE: Final = "[redacted]"
BLANKS: Final = " \t\r\n"

_URL_CHAR: Final = r"[^\s\"'<>]"
_GUARDED: Final = "(?:secret|token|password|passwd|api[-_ ]?key|x-key|authorization)"
_RULES: Final = tuple(
    (re.compile(pattern, re.IGNORECASE), replacement)
    for pattern, replacement in (
        # Our own callback address, which the provider echoes; its path is the proof.
        (rf"webhooks(?:/|%2F)flux(?:/|%2F){_URL_CHAR}*", f"webhooks/flux/{GONE}"),
        # Signatures live in queries (`sig=` of Azure, `X-Amz-Signature=` of S3), also in those cut from their URL.
        (r"\?[^\s\"'<>=?]*=" + f"{_URL_CHAR}*", f"?{GONE}"),
        (r"(?<![\w-])(sig|signature|x-amz-[a-z-]+)=[^\s\"'<>&]+", rf"\1={GONE}"),
        (r"://[^\s/@\"'<>]+@", f"://{GONE}@"),
        (r"\b(bearer)\s+[^\s\"',}]+", rf"\1 {GONE}"),
        # The name of a secret may be part of a longer one (webhook_secret, x-api-key, access_token).
        (rf"({_GUARDED}[\"']?\s*[:=]\s*)(?:\"[^\"]*\"?|'[^']*'?|[^\s\"',}}&]+)", rf"\1{GONE}"),
        (r"\b(sk|whsec)[-_][\w+/=.-]{6,}", rf"\1_{GONE}"),
    )
)


def clean(text: str) -> str:
    """At most TEXT_CHARS_MAX printable characters of `text`, with secrets, URL queries and our callback path redacted.

    Control, format and surrogate characters go before the rules are tried, so that none can split a secret in two;
    backslashes too, which hide quotes and slashes where JSON lies within JSON.
    """
    plain = _printable(text[:SCANNED_CHARS_MAX])
    for pattern, replacement in _RULES:
        plain = pattern.sub(replacement, plain)
    return plain if len(plain) <= TEXT_CHARS_MAX else plain[: TEXT_CHARS_MAX - 1] + "…"


def _printable(text: str) -> str:
    """Runs of blanks become one space; Unicode category C (control, format, surrogate, unassigned) goes."""
    kept = (c for c in text if c in BLANKS or (c != "\\" and unicodedata.category(c)[0] != "C"))
    return " ".join("".join(kept).split())
