"""A command that calls the service, as any other client does: where it is, who asks, and what its exit code means.

Exit codes: 0 done; 1 the job (or one of the batch) failed or was cancelled; 2 wrong usage, or the service said no;
3 the service cannot be reached, or cannot serve just now; 130 Ctrl-C.
"""

import argparse
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from service.client import Client, Patience, ServiceError, Unreachable
from service.commands.facts import RUN_ENV, run_facts
from service.commands.screen import Screen, plain

DONE: Final = 0
FAILED: Final = 1
REFUSED: Final = 2
AWAY: Final = 3
INTERRUPTED: Final = 130

PATIENCE_S: Final = 10.0
ERRORS_SHOWN: Final = 20
UNABLE: Final = frozenset({502, 503, 504})
HELP: Final = (
    "The service is found by --url or SERVICE_URL, the token by API_TOKEN or API_TOKEN_FILE; "
    "both are those of `make run` where neither is set."
)
LISTED: Final = 20  # of a list, unless --limit says otherwise


@dataclass(frozen=True, slots=True)
class Call:
    """What a command has at hand. `asked`: its arguments."""

    darkroom: Client
    asked: argparse.Namespace
    screen: Screen


Act = Callable[[Call], int]


class Unknown(Exception):
    """Nothing says where the service is, or who asks."""


def parser(name: str, about: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(prog=f"python -m service {name}", description=about, epilog=HELP)


def count(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError("should be a number, 0 or more")
    return int(text)


def common(parser: argparse.ArgumentParser, act: Act) -> argparse.ArgumentParser:
    """Options of every command."""
    parser.add_argument("--url", help="the service's address")
    parser.add_argument("--json", action="store_true", help="JSON, as when it is piped")
    parser.add_argument(
        "--patience", type=float, default=PATIENCE_S, metavar="S", help=f"keep trying for S seconds ({PATIENCE_S:g})"
    )
    parser.set_defaults(act=act)
    return parser


def run(asked: argparse.Namespace) -> int:
    """Do what was asked; the exit code. What went wrong is said on standard error."""
    screen = Screen(json_asked=asked.json)
    try:
        return _called(asked, screen)
    except BrokenPipeError:  # whoever read has enough; what is flushed at exit must not fail again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except (Unknown, ValueError, OSError) as error:
        screen.complain(plain(error))
        return REFUSED
    except ServiceError as error:
        screen.complain(*refusal(error))
        return AWAY if error.status in UNABLE else REFUSED
    except KeyboardInterrupt:
        screen.complain("")
        return INTERRUPTED


def _called(asked: argparse.Namespace, screen: Screen) -> int:
    url, token = address(asked.url, os.environ, RUN_ENV)
    act: Act = asked.act
    try:
        with Client(url, token, patience=Patience(total_s=asked.patience)) as darkroom:
            return act(Call(darkroom, asked, screen))
    except Unreachable as error:
        screen.complain(f"The service at {plain(url)} cannot be reached: {plain(error)}")
        return AWAY


def address(url: str | None, environ: Mapping[str, str], facts: Path) -> tuple[str, str]:
    """Where the service is, and the token for it. A token of `make run` is for its own address alone.

    Raises Unknown, and OSError for an API_TOKEN_FILE that cannot be read.
    """
    local = run_facts(facts)
    url = url or environ.get("SERVICE_URL") or local.get("SERVICE_URL", "")
    if not url:
        raise Unknown("Where is the service? Say --url or SERVICE_URL, or start one here by `make run`.")
    token = environ.get("API_TOKEN") or _file(environ.get("API_TOKEN_FILE"))
    if not token and url.rstrip("/") == local.get("SERVICE_URL"):
        token = local.get("API_TOKEN", "")
    if not token:
        raise Unknown(f"Who asks? Set API_TOKEN or API_TOKEN_FILE to a token of {plain(url)}.")
    return url, token


def refusal(error: ServiceError) -> list[str]:
    """Why the service said no, in lines; every mistake with its field."""
    shown = [_mistake(each) for each in error.errors[:ERRORS_SHOWN]]
    more = len(error.errors) - len(shown) + len(error.more_lines)
    request = [f"  (request {plain(error.request_id)})"] if error.status >= 500 and error.request_id else []
    return [f"{plain(error.detail)} ({plain(error.code)})", *shown, *([f"  and {more} more"] if more else []), *request]


def _mistake(told: Mapping[str, Any]) -> str:
    line = f"line {plain(told['line'])} " if told.get("line") else ""
    return f"  {line}{plain(told.get('pointer') or 'the whole')}: {plain(told.get('detail', ''))}"


def _file(path: str | None) -> str:
    return Path(path).read_text().strip() if path else ""
