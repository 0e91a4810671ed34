"""Every setting: name, default, parser, unit, meaning. `python -m service.settings` prints `.env.example`.

A field of `Settings` is a row of the table; its name in capitals is the name in the environment.
"""
# ruff: noqa: RUF009  `_row` and `_maybe` are field specifiers: called once, on purpose

import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from service import environment
from service import parsers as p
from service.environment import Row
from service.parsers import WebhookKey
from service.secret import Secret

__all__ = ["BadSettings", "Role", "Row", "Secret", "Settings", "WebhookKey", "example", "load", "of_process", "rows"]

T = TypeVar("T")
Role = Literal["http", "workers", "store"]  # store: a command that needs Redis and the bucket, and nobody else

DAY_S: Final = 86_400
DOTENV: Final = Path(".env")
HEAD: Final = """\
# Every setting with its default; copy to .env and fill in S3_BUCKET, FLUX_API_KEY and API_TOKENS. Empty means unset.
# The environment wins over .env. Credentials of the store are boto3's own (AWS_ACCESS_KEY_ID, profiles, roles); AWS_…
# lines may stand here, and count where the environment has no AWS_… at all.
# Printed by `python -m service.settings`.

"""


def _row(
    default: str | None, parse: p.Parser[T], doc: str, *, unit: str = "", secret: bool = False, example: str = ""
) -> T:
    found: T = field(metadata={"row": Row("", default, parse, unit, doc, secret, example or default or "")})
    return found


def _maybe(parse: p.Parser[T], doc: str, example: str, *, secret: bool = False) -> T | None:
    return _row(None, parse, doc, secret=secret, example=example)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One process's settings, checked. An unset optional is None; an unset list or mapping is empty."""

    host: str = _row(
        "127.0.0.1", p.matching(r"[A-Za-z0-9.:-]+", "a host name or address"), "Where the HTTP process listens."
    )
    port: int = _row("8000", p.whole(0, 65_535), "Its port; 0 takes a free one.")
    serve: frozenset[str] = _row(
        "all",
        p.some_of("api", "webhooks", "console", "metrics"),
        "What it serves: `all`, or a list of api, webhooks, console, metrics.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = _row(
        "info",
        p.one_of("debug", "info", "warning", "error"),
        "Least severity that is logged: debug, info, warning, error.",
    )
    metrics_port: int = _row("0", p.whole(0, 65_535), "Port of the workers' /metrics; 0 = off.")

    redis_url: Secret = _row(
        "redis://127.0.0.1:6379/0",
        p.redis_url,
        "redis://, rediss://, unix://, or sentinel[s]://[user:pass@]host:port,host:port/service/db.",
        secret=True,
    )
    redis_replicas_to_wait: int = _row(
        "0", p.whole(0, 16), "Replicas that must confirm a create and the intent to buy.", unit="replicas"
    )
    redis_checks: Literal["strict", "warn"] = _row(
        "strict",
        p.one_of("strict", "warn"),
        "Refuse an evicting, non-persistent or open Redis at start; warn: for managed ones that hide their CONFIG.",
    )

    s3_endpoint_url: str | None = _maybe(
        p.url, "Any S3-compatible store; unset: AWS. Credentials are boto3's own.", "https://s3.example.com"
    )
    s3_bucket: str = _row(
        None,
        p.matching(r"[A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9]", "a bucket's name"),
        "Where the images go. Required.",
        example="images",
    )
    s3_region: str = _row("us-east-1", p.matching(r"[A-Za-z0-9-]{1,64}", "a region's name"), "The store's region.")
    s3_prefix: str = _row("", p.prefix, "Every key starts with it; a slash follows by itself.", example="darkroom")
    s3_public_endpoint_url: str | None = _maybe(
        p.url, "Host of presigned links, if callers reach the store elsewhere.", "https://images.example.com"
    )
    presign_ttl_s: int = _row("300", p.whole(1, 7 * DAY_S), "Life of a presigned link.", unit="s")
    s3_conditional_writes: bool = _row(
        "on", p.switch, "Proved at start; off (HEAD before PUT) for stores without If-None-Match."
    )
    s3_sse_kms_key_id: str | None = _maybe(
        p.matching(r"[\x21-\x7e]{1,2048}", "a key id or ARN"), "KMS key that encrypts every write.", "alias/images"
    )
    s3_expected_bucket_owner: str | None = _maybe(
        p.matching(r"[0-9]{12}", "an account id of 12 digits"), "Account that must own the bucket.", "123456789012"
    )
    s3_storage_class: str | None = _maybe(
        p.matching(r"[A-Z0-9_]{1,64}", "a storage class in capitals"), "Storage class of every write.", "STANDARD_IA"
    )
    s3_tags: Mapping[str, str] = _row(
        "",
        p.tags,
        "name=value pairs, comma-separated: tags of every write, at most 10.",
        example="team=images,env=prod",
    )
    s3_timeout_s: float = _row("30", p.seconds(0.1, 600), "Deadline of one call to the store.", unit="s")

    flux_api_base_url: str = _row(
        "https://api.cometapi.com/flux/v1",
        p.url,
        "Submit is POST {base}/{model}, status is GET {base}/get_result?id=.",
    )
    flux_api_key: Secret | None = _maybe(
        p.api_key, "The provider's key. Required by the API and the workers.", "<your key>", secret=True
    )
    flux_api_auth: Literal["bearer", "x-key"] = _row(
        "bearer", p.one_of("bearer", "x-key"), "bearer: Authorization; x-key: Black Forest Labs' own header."
    )
    flux_timeout_s: float = _row("30", p.seconds(0.1, 300), "Deadline of a submit POST or status call.", unit="s")
    flux_max_in_flight: int = _row(
        "24", p.whole(0, 100_000), "Provider tasks outstanding at once, over all workers; 0 = no cap.", unit="tasks"
    )
    flux_extra_models: tuple[str, ...] = _row(
        "",
        p.list_of(p.matching(r"[a-z0-9][a-z0-9.-]{0,63}", "a list of model names [a-z0-9][a-z0-9.-]*")),
        "Models the catalogue does not know; their parameters pass unchecked.",
        example="flux-3-pro",
    )
    flux_result_hosts: str = _row(
        "*.bfl.ai,bfldelivery*.blob.core.windows.net,*.cometapi.com",
        p.hosts,
        "Hosts an image may be pulled from; a private address only as an exact host:port.",
    )

    public_base_url: str | None = _maybe(
        p.public_url, "Public address of the callbacks; unset: polling alone serves.", "https://images.example.com"
    )
    webhook_keys: tuple[WebhookKey, ...] = _row(
        "",
        p.webhook_keys,
        "kid:base64 pairs, comma-separated; the first signs, all verify. Required with PUBLIC_BASE_URL.",
        secret=True,
        example="k1:<output of: openssl rand -base64 32>",
    )
    api_tokens: Mapping[str, Secret] = _row(
        "",
        p.api_tokens,
        "name:token pairs, comma-separated: who may call. `admin` sees all callers. Required by the API.",
        secret=True,
        example="admin:<output of: openssl rand -hex 24>",
    )
    notify_hosts: str = _row(
        "", p.hosts, "Private hosts that callers' callback_url may point to.", example="hooks.internal:8443"
    )
    notify_secrets: Mapping[str, tuple[Secret, ...]] = _row(
        "",
        p.notify_secrets,
        "name:whsec_… pairs: the key that signs each caller's notifications; a name twice: both sign.",
        secret=True,
        example="catalogue:whsec_<output of: openssl rand -base64 32>",
    )

    unknown_outcome: Literal["resubmit", "fail"] = _row(
        "resubmit",
        p.one_of("resubmit", "fail"),
        "A submission whose outcome stays unknown: resubmit once, flagged, or fail.",
    )
    unknown_wait_s: float = _row(
        "180", p.seconds(0.1, DAY_S), "After how long it counts as unknown for good.", unit="s"
    )
    generation_timeout_s: float = _row("900", p.seconds(0.1, DAY_S), "How long a job may be generating.", unit="s")
    poll_max_s: float = _row("60", p.seconds(0.1, 600), "Longest gap between two polls of a job.", unit="s")
    budgets: Mapping[str, Decimal] = _row(
        "", p.budgets, "name:usd_per_day pairs: what each caller may spend.", example="catalogue:50"
    )

    spool_dir: Path = _row(".local/spool", p.path, "Where pulled images wait when the store is away.")
    spool_max_bytes: int = _row("10GiB", p.size("0", "1024TiB"), "How much of them.", unit="bytes")
    spool_lost_s: float = _row("900", p.seconds(0.1, DAY_S), "A spool silent for so long is lost.", unit="s")
    temp_dir: Path = _row(".local/tmp", p.path, "Uploads and pulls in progress.")

    backlog_max: int = _row("200000", p.whole(1, 100_000_000), "Jobs waiting; over it: 429.", unit="jobs")
    max_body_bytes: int = _row("256KiB", p.size("1KiB", "16MiB"), "One job, without its base64 images.", unit="bytes")
    input_image_max_bytes: int = _row("20MiB", p.size("1KiB", "256MiB"), "A job's input images, decoded.", unit="bytes")
    job_retention_days: int = _row("7", p.whole(1, 3_650), "How long an ended record stays in Redis.", unit="days")
    events_max: int = _row("100000", p.whole(100, 10_000_000), "Events kept in Redis.", unit="events")

    web_wait_max_s: float = _row("60", p.seconds(0, 60), "Longest `Prefer: wait`.", unit="s")
    submit_slots: int = _row("64", p.whole(1, 10_000), "Submit bells one worker process serves at once.", unit="bells")
    collect_slots: int = _row(
        "64", p.whole(1, 10_000), "Collect bells one worker process serves at once.", unit="bells"
    )
    lease_s: float = _row("12", p.seconds(0.1, 600), "A step's claim on its job; renewed while it runs.", unit="s")
    sweep_interval_s: float = _row("1", p.seconds(0.01, 60), "Gap between two sweeps.", unit="s")
    sweep_again_s: float = _row(
        "5", p.seconds(0.1, 60), "A bell that led to nothing is rung again after so long.", unit="s"
    )
    process_lost_s: float = _row(
        "6", p.seconds(0.1, 600), "A worker process without a heartbeat for so long is dead.", unit="s"
    )
    watchdog_s: float = _row(
        "10", p.seconds(0.1, 600), "A worker process whose event loop stands still for so long is ended.", unit="s"
    )
    suspect_retry_s: tuple[float, ...] = _row(
        "60,180",
        p.series(p.seconds(0, DAY_S)),
        "After a crash of a job alone: the waits before each further try; then it is poisoned.",
        unit="s",
    )
    shutdown_grace_s: float = _row("20", p.seconds(0.1, 600), "How long running steps may end after SIGTERM.", unit="s")


class BadSettings(ValueError):
    """All mistakes at once, a line each, naming the line to change; never a secret's value."""

    def __init__(self, mistakes: Iterable[str]) -> None:
        self.mistakes = tuple(mistakes)
        super().__init__("\n  ".join(["These settings must be changed:", *self.mistakes]))


def of_process(role: Role) -> Settings:
    """The settings of this process, by its environment and by the `.env` where it was started. Raises BadSettings.

    The store's credentials in that file are in the environment afterwards, for boto3 and for this process's children.
    """
    settings = load(os.environ, dotenv=DOTENV, role=role)
    environment.take_credentials(os.environ, DOTENV)
    return settings


def rows() -> list[Row]:
    found = [(f.name.upper(), f.metadata["row"]) for f in fields(Settings)]
    return [row._replace(name=name) for name, row in found]


def load(environ: Mapping[str, str], *, dotenv: Path | None = None, role: Role = "http") -> Settings:
    """The settings of a process of this role. The environment wins over the file `dotenv`, if there is one.

    An empty value counts as unset. Raises BadSettings.
    """
    table = rows()
    texts, mistakes = environment.texts(table, environ, dotenv)
    values: dict[str, Any] = {}
    for row in table:
        try:
            values[row.name.lower()] = environment.value(row, texts)
        except ValueError as error:
            mistakes.append(str(error))
    mistakes += _missing(values, role)
    mistakes += environment.misspelt(table, texts)
    if mistakes:
        raise BadSettings(mistakes)
    return Settings(**values)


def _missing(values: Mapping[str, Any], role: Role) -> list[str]:
    """Settings that this process needs and that are not set. One that is set wrongly is not in `values`."""
    serves = values.get("serve", frozenset()) if role == "http" else frozenset()
    callbacks = role != "store" and (values.get("public_base_url") or serves == {"webhooks"})
    needs = {
        "s3_bucket": (True, "every process needs the store"),
        "flux_api_key": (
            role == "workers" or "api" in serves,
            "`make run` brings a rehearsal provider for trying without",
        ),
        "api_tokens": (serves & {"api", "console"}, "nobody may call without one"),
        "webhook_keys": (callbacks, "callbacks are checked with them"),
    }
    examples = {row.name: row.example for row in rows()}
    return [
        f"{name.upper()}: missing; {why}, e.g. {name.upper()}={examples[name.upper()]}"
        for name, (needed, why) in needs.items()
        if needed and not values.get(name, True)
    ]


def example() -> str:
    """The text of `.env.example`."""
    return HEAD + "\n".join(map(_paragraph, rows()))


def _paragraph(row: Row) -> str:
    unit = f" [{row.unit}]" if row.unit else ""
    hint = "" if row.default or not row.example else f" E.g. {row.name}={row.example}"
    twin = f" Or {row.name}_FILE=path." if row.secret else ""
    return f"# {row.doc}{unit}{twin}{hint}\n{row.name}={row.default or ''}\n"


if __name__ == "__main__":
    sys.stdout.write(example())
