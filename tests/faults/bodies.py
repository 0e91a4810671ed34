"""Bodies of callbacks as strangers might send them: a corpus of known horrors, and mutations of valid ones."""

import gzip
import json
import random
from collections.abc import Iterator
from copy import deepcopy
from typing import Any, Final

SAMPLE: Final = "https://delivery.eu1.bfl.ai/a.png?se=2036-11-22T22%3A00%3A00Z&sig=s"
TASK: Final = "task-fuzz"
BODY_BYTES_MAX: Final = 65_536
RESULT: Final = {"sample": SAMPLE, "seed": 7, "duration": 1.5}
VALID: Final[tuple[dict[str, Any], ...]] = (
    {"task_id": TASK, "status": "SUCCESS", "result": RESULT},
    {"id": TASK, "status": "Ready", "result": RESULT, "cost": 4.0},
    {"task_id": TASK, "status": "processing", "progress": 0.4},
    {"id": TASK, "status": "Generating", "progress": 0.9},
    {"id": TASK, "status": "Request Moderated", "result": None, "details": {"Moderation Reasons": ["x"]}},
    {"task_id": TASK, "status": "FAILED", "details": {"error": "generation failed"}},
    {"code": "success", "data": {"task_id": TASK, "status": "SUCCESS", "data": {"status": "Ready", "result": RESULT}}},
)
WORDS: Final = tuple(json.dumps(payload).encode() for payload in VALID)
CORPUS: Final = (
    b"",
    b"\0",
    b"\xff\xfe{}",
    b"\xef\xbb\xbf" + WORDS[1],
    WORDS[1].decode().encode("utf-16"),
    b'{"id": "\xc3\x28", "status": "Ready"}',
    b'{"id": "\\ud800", "status": "Ready", "result": {"sample": "\\udfff"}}',
    b'{"id": "task-fuzz", "status": "Ready", "result": {"sample": "https://a\\ud800.bfl.ai/x.png"}}',
    b"[" * 10_000,
    b"[" * 10_000 + b"]" * 10_000,
    b'{"data":' * 7_000 + b"1" + b"}" * 7_000,
    b'{"id": NaN, "status": Infinity, "progress": -Infinity}',
    b'{"id": "task-fuzz", "status": "Ready", "cost": 1e999, "result": {"sample": "x", "seed": 1e999}}',
    b'{"seed": ' + b"9" * 5_000 + b"}",
    b'{"id": "other", "id": "task-fuzz", "status": "Pending", "status": "Ready", "result": {"sample": "https://x/"}}',
    b'{"secret": "a", "secret": "b", "webhook_secret": {"a": 1}}',
    b"x" * BODY_BYTES_MAX,
    b"x" * (BODY_BYTES_MAX + 1),
    b'"' + b"\\u0000" * 10_000 + b'"',
    b"true", b"null", b"0", b"[]", b"{}", b'""', b'"Ready"',
    gzip.compress(WORDS[0]),
    b"--b\r\nContent-Disposition: form-data; name=id\r\n\r\ntask-fuzz\r\n--b--",
    b"id=task-fuzz&status=Ready",
    b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><x>&a;</x>',
)  # fmt: skip
COPIES: Final = 8
ODD: Final[tuple[Any, ...]] = (
    None, True, -1, 0, 2**63, -(2**64), 1e308, "", "Ready", "\0", "\ud800", "x" * 9_000, [], {}, [[]], {"": {}},
    {"sample": SAMPLE}, [RESULT], "https://[::1", "javascript:0", TASK,
)  # fmt: skip
KEYS: Final = (
    "id", "task_id", "status", "result", "sample", "seed", "data", "code", "progress", "details", "detail", "cost",
    "webhook_secret", "secret", "fail_reason", "start_time", "end_time", "duration", "message",
)  # fmt: skip


def bodies(dice: random.Random, count: int) -> Iterator[bytes]:
    """The corpus first, several times over, so that it meets jobs of every kind; then mutations, up to `count`."""
    known = [body for body in CORPUS for _ in range(COPIES)]
    yield from known[:count]
    for _ in range(count - len(known)):
        yield mutated(dice)


def mutated(dice: random.Random) -> bytes:
    roll = dice.random()
    if roll < 0.35:
        return _bent(dice, dice.choice(WORDS))
    payload = json.loads(dice.choice(WORDS))
    for _ in range(dice.randint(1, 4)):
        _twist(dice, payload)
    text = json.dumps(payload, ensure_ascii=dice.random() < 0.5)
    return _bent(dice, text.encode(errors="surrogatepass")) if roll < 0.5 else text.encode(errors="surrogatepass")


def _twist(dice: random.Random, payload: Any) -> None:
    """One member of the payload, at any depth, takes another value, or goes."""
    while dice.random() < 0.4 and (inner := [value for value in payload.values() if isinstance(value, dict)]):
        payload = dice.choice(inner)
    name = dice.choice([*payload, *KEYS])
    if dice.random() < 0.2:
        payload.pop(name, None)
    else:
        payload[name] = deepcopy(dice.choice(ODD))


def _bent(dice: random.Random, body: bytes) -> bytes:
    """Bytes flipped, cut, doubled or put in."""
    bent = bytearray(body)
    for _ in range(dice.randint(1, 6)):
        at = dice.randrange(len(bent) + 1)
        match dice.randrange(4):
            case 0:
                bent[at : at + 1] = dice.randbytes(1)
            case 1:
                del bent[at : at + dice.randint(1, 40)]
            case 2:
                bent[at:at] = bent[at : at + dice.randint(1, 40)]
            case _:
                bent[at:at] = dice.choice((b'"', b"{", b"}", b"\\", b"\0", b"\xff", b"NaN", b"\\ud800", b"e999"))
    return bytes(bent)
