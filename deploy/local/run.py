"""`make run`: the whole system on this machine, until Ctrl-C or SIGTERM.

Exit codes: 0 stopped as asked, 1 did not start or is running already, 2 a setting is wrong.
"""

import argparse
import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, NoReturn

from service.settings import BadSettings

from . import banner
from .child import StartError
from .environment import ROOT, chosen
from .files import write
from .lock import Occupied
from .stack import Stack

DEFAULT_PORT: Final = "8000"
PORTS: Final = 65_536
SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m deploy.local.run", description="The whole system on this machine.")
    parser.add_argument("--folder", type=Path, default=ROOT / ".local", help="where data, secrets and logs stay")
    folder: Path = parser.parse_args(argv).folder
    for name in SIGNALS:
        signal.signal(name, _end)
    try:
        return run(folder)
    except BadSettings as error:
        _complain(error)
        return 2
    except (Occupied, StartError) as error:
        _complain(error)
        return 1
    except KeyboardInterrupt:
        return 0


def run(folder: Path) -> int:
    user = chosen(os.environ, ROOT / ".env")
    journal = ["--journal", str(folder.resolve() / "rehearsal.journal")]
    stack = Stack(folder, user=user, rehearsal=journal, port=_port(user), say=_say)
    facts = stack.folder / "run.env"
    facts.unlink(missing_ok=True)  # whoever waits for it must not read that of a run before
    _say("starting …")
    with suppress(KeyboardInterrupt):
        stack.start()
        write(facts, banner.facts(stack))
        _say(banner.welcome(stack))
        threading.Event().wait()
    _say("stopping …")
    stack.stop()
    _say(f"stopped; the data stay in {stack.folder}")
    return 0


def _port(user: Mapping[str, str]) -> int:
    """The port asked for, if it can be had; else 0. The console's address says which it became."""
    wanted = user.get("PORT", DEFAULT_PORT)
    return int(wanted) if wanted.isdecimal() and int(wanted) < PORTS else 0


def _end(*_: object) -> NoReturn:
    """Once: a second Ctrl-C must not cut the stop short, which is bounded anyway."""
    for name in SIGNALS:
        signal.signal(name, signal.SIG_IGN)
    raise KeyboardInterrupt


def _say(text: str) -> None:
    print(text, flush=True)


def _complain(error: Exception) -> None:
    print(error, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
