"""What the service's processes are told: the user's settings, and the addresses and secrets of the embedded parts."""

import base64
import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from service.environment import is_proxy, texts
from service.settings import BadSettings, rows

from .files import keep
from .ports import LOOPBACK
from .seaweed import REGION

ROOT: Final = Path(__file__).parents[2]
# These speak of a Redis, a store and an address that are not ours: what the user set of them is for elsewhere.
EMBEDDED: Final = ("REDIS_", "S3_", "HOST", "PORT", "SERVE", "SPOOL_DIR", "TEMP_DIR")
# AWS_… of the user's shell would reach boto3; PYTHON… would change the interpreter under us; REDIS_… and S3_… that are
# no settings speak of somebody's own, and would be taken for ours misspelt.
FOREIGN: Final = ("AWS_", "PYTHON", "REDIS_", "S3_")
NOTHING: Final = "/dev/null"
STOP_GRACE_S: Final = 2  # what is cut off comes due again by itself, and a person waits at the terminal


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where the embedded parts listen, and what opens them. `rehearsal_port` is None with the real provider."""

    redis_url: str
    s3_endpoint_url: str
    s3_bucket: str
    access_key: str
    secret_key: str
    port: int
    rehearsal_port: int | None

    @property
    def service_url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"

    @property
    def rehearsal_url(self) -> str:
        return f"http://{LOOPBACK}:{self.rehearsal_port}"


def chosen(environ: Mapping[str, str], dotenv: Path) -> dict[str, str]:
    """What the user has set in the environment or in `.env`, by name. BadSettings if the file cannot be read."""
    found, mistakes = texts(rows(), environ, dotenv)
    if mistakes:
        raise BadSettings(mistakes)
    return {name: text for name, text in found.items() if name in setting_names()}


def generated(file: Path) -> dict[str, str]:
    """The secrets of this folder, made on first use: one caller, one key for callbacks, one for the rehearsal."""
    made: dict[str, str] = json.loads(keep(file, _fresh_secrets))
    return made


def compose(
    user: Mapping[str, str], made: Mapping[str, str], at: Addresses, folder: Path, overrides: Mapping[str, str]
) -> dict[str, str]:
    """The whole environment of a child. Every setting is in it, empty if unset, so that `.env` is not read twice.

    `overrides` win over the embedded parts' addresses, these over the user's settings, and these over `made`.
    """
    inherited = {name: text for name, text in os.environ.items() if not _is_foreign(name)}
    unset = dict.fromkeys(setting_names(), "")
    wanted = {name: text for name, text in user.items() if not name.startswith(EMBEDDED)}
    mine = {name: text for name, text in made.items() if f"{name}_FILE" not in wanted and name != "FLUX_API_KEY"}
    told = mine | wanted | _embedded(at, folder)
    if at.rehearsal_port is not None:
        told |= _rehearsing(at, made, wanted)
    return inherited | unset | told | _python() | dict(overrides)


def is_rehearsal(user: Mapping[str, str]) -> bool:
    return not (user.get("FLUX_API_KEY") or user.get("FLUX_API_KEY_FILE"))


def _is_foreign(name: str) -> bool:
    return name.startswith(FOREIGN) or is_proxy(name)


def _embedded(at: Addresses, folder: Path) -> dict[str, str]:
    return {
        "HOST": LOOPBACK,
        "PORT": str(at.port),
        "SERVE": "all",
        "REDIS_URL": at.redis_url,
        "S3_ENDPOINT_URL": at.s3_endpoint_url,
        "S3_BUCKET": at.s3_bucket,
        "S3_REGION": REGION,
        "AWS_ACCESS_KEY_ID": at.access_key,
        "AWS_SECRET_ACCESS_KEY": at.secret_key,
        "AWS_CONFIG_FILE": NOTHING,
        "AWS_SHARED_CREDENTIALS_FILE": NOTHING,
        "AWS_EC2_METADATA_DISABLED": "true",
        "SPOOL_DIR": str(folder / "spool"),
        "TEMP_DIR": str(folder / "tmp"),
        "SHUTDOWN_GRACE_S": str(STOP_GRACE_S),
    }


def _rehearsing(at: Addresses, made: Mapping[str, str], wanted: Mapping[str, str]) -> dict[str, str]:
    hosts = wanted.get("FLUX_RESULT_HOSTS") or next(row.default for row in rows() if row.name == "FLUX_RESULT_HOSTS")
    return {
        "FLUX_API_BASE_URL": f"{at.rehearsal_url}/flux/v1",
        "FLUX_API_KEY": made["FLUX_API_KEY"],
        "FLUX_API_AUTH": "",
        "FLUX_RESULT_HOSTS": f"{hosts},{LOOPBACK}:{at.rehearsal_port}",
        "PUBLIC_BASE_URL": at.service_url,
    }


def _python() -> dict[str, str]:
    return {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


def setting_names() -> set[str]:
    return {name for row in rows() for name in (row.name, *([f"{row.name}_FILE"] if row.secret else []))}


def _fresh_secrets() -> str:
    made = {
        "API_TOKENS": f"admin:{secrets.token_hex(24)}",
        "WEBHOOK_KEYS": f"k1:{base64.b64encode(secrets.token_bytes(32)).decode()}",
        "FLUX_API_KEY": f"rehearsal-{secrets.token_hex(16)}",
    }
    return json.dumps(made, indent=2) + "\n"
