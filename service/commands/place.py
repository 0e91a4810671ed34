"""Which Redis and bucket a command looks at: those of the settings, or, where none names one, those of `make run`.

All or nothing: with a Redis of one place and a bucket of another, `rebuild` would mix what never belonged together.
"""

import sys
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Final

from service.commands.facts import RUN_ENV, run_facts
from service.environment import CREDENTIALS, is_proxy, take_credentials, texts, twins
from service.settings import DOTENV, Settings, load, rows
from service.storage.address import parse

PLACES: Final = ("REDIS_", "S3_")  # what begins so, a setting or not, speaks of somebody's own Redis or store
TAKEN: Final = ("REDIS_URL", "S3_ENDPOINT_URL", "S3_BUCKET")


def settled(environ: MutableMapping[str, str], dotenv: Path = DOTENV, facts: Path = RUN_ENV) -> Settings:
    """The settings of a command that needs Redis and the bucket; which ones they are is said on standard error.

    `environ` has the credentials afterwards: those of `make run` and no others, else its own or `.env`'s.
    Raises BadSettings.
    """
    local = {} if _named(environ, dotenv) else run_facts(facts)
    found = {name: local[name] for name in TAKEN} if local.keys() >= set(TAKEN) else {}
    told = {name: text for name, text in environ.items() if not (found and name.startswith(PLACES))}
    settings = load(told | found, dotenv=dotenv, role="store")
    if found:
        _replace(environ, local)
    else:
        take_credentials(environ, dotenv)
    print(f"{f'`make run` of {facts}: ' if found else ''}{where(settings)}", file=sys.stderr)
    return settings


def _named(environ: Mapping[str, str], dotenv: Path) -> bool:
    """Whether a setting speaks of a Redis or of a store."""
    told, _ = texts(rows(), environ, dotenv)
    return any(name in told for row in rows() if row.name.startswith(PLACES) for name in twins(row))


def _replace(environ: MutableMapping[str, str], local: Mapping[str, str]) -> None:
    """The shell's credentials are for another store, and its proxies for what is not on loopback."""
    for name in [name for name in environ if name.startswith(CREDENTIALS) or is_proxy(name)]:
        del environ[name]
    environ.update({name: text for name, text in local.items() if name.startswith(CREDENTIALS)})


def where(settings: Settings) -> str:
    """The place in words, without anything that opens it."""
    at = parse(settings.redis_url.reveal())
    redis = at.path or ", ".join(f"{host}:{port}" for host, port in at.nodes)
    named = f"{at.service} of {redis}" if at.service else redis
    return f"Redis {named}, database {at.db}; bucket {settings.s3_bucket} at {settings.s3_endpoint_url or 'AWS'}"
