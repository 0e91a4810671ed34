"""What schemathesis is told besides the OpenAPI document: where a JSON Schema cannot say what the service checks.

Loaded by the command itself, through `SCHEMATHESIS_HOOKS`. One check of its own is replaced by ours, which asks the
same and lets pass only a 422 whose every mistake is of a kind listed here.
"""

import re
from typing import Any, Final, cast

import schemathesis
from schemathesis.checks import CHECKS

# pointer, detail → why no schema says it. Both are matched whole.
BEYOND: Final = {
    (r"/cursor", r"Is no cursor of this list"): "only `next_cursor` makes cursors",
    (r"/aspect_ratio", r"Input should be between 21:9 and 9:21"): "a quotient",
    (r"/width", r"Width times height should be at most \d+ pixels"): "a product",
    (r"/metadata", r"Input should be at most 16 KiB as compact JSON"): "a size in bytes",
    (r"/metadata", r"Is not JSON in UTF-8|Input should be a valid dictionary"): "JSON inside a query parameter",
    (r"/callback_url", r"Is not called: .*"): "which addresses are public",
    (r"/.*", r"Holds half of a surrogate pair|Has a name that is not Unicode text"): "JSON allows it, Unicode does not",
    (
        r"/metadata/.*",
        r"Is over 64 bits|Nests too deep",
    ): "metadata is free, but what databases cannot hold is not taken",
}
NOT_WHOLE: Final = "Input should be a valid integer"  # JSON Schema calls 2.0 an integer, the provider may not

_accepted: Final = cast("schemathesis.CheckFunction", CHECKS.get_one("positive_data_acceptance"))


@schemathesis.check
def what_the_schema_allows_is_taken(ctx: Any, response: Any, case: Any) -> bool | None:
    """`positive_data_acceptance`, but for what BEYOND and NOT_WHOLE list."""
    if response.status_code == 422 and beyond_the_schema(response.json().get("errors", []), case.body):
        return None
    return _accepted(ctx, response, case)


def beyond_the_schema(mistakes: list[dict[str, str]], body: Any) -> bool:
    return bool(mistakes) and all(_is_listed(one) or _is_a_float(one, body) for one in mistakes)


def _is_listed(mistake: dict[str, str]) -> bool:
    told = mistake["pointer"], mistake["detail"]
    return any(all(map(re.fullmatch, patterns, told)) for patterns in BEYOND)


def _is_a_float(mistake: dict[str, str], body: Any) -> bool:
    name = mistake["pointer"].removeprefix("/")
    if isinstance(body, dict) and "line" in mistake:  # of a batch
        body = body["jobs"][int(mistake["line"]) - 1]
    return mistake["detail"] == NOT_WHOLE and isinstance(body, dict) and isinstance(body.get(name), float)
