"""`python -m deploy.rehearsal --port 9100 --moderated 0.02 …`: see `--help` for every knob."""

import argparse
import asyncio
import json
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from deploy.rehearsal.app import build
from deploy.rehearsal.control import KNOBS, Control, read_knob
from deploy.rehearsal.journal import Journal, JournalError
from deploy.rehearsal.knobs import BadKnobError
from deploy.rehearsal.server import Server, address, bound
from service.clock import SystemClock


def main(arguments: list[str]) -> int:
    flags = _parser().parse_args(arguments)
    control = Control(**{name: getattr(flags, name) for name in KNOBS})
    try:
        sock = bound(flags.host, flags.port)
    except OSError as taken:
        print(f"cannot listen on {flags.host}:{flags.port}: {taken.strerror}", file=sys.stderr)
        return 1
    try:  # after the port is ours: a second process must not write over what the first one keeps
        journal = Journal(flags.journal, _now()) if flags.journal else None
    except (JournalError, OSError) as wrong:
        sock.close()
        print(f"no journal: {wrong}", file=sys.stderr)
        return 1
    closing = asyncio.Event()
    base_url = (flags.public_url or address(sock)).rstrip("/")
    app = build(control, base_url, _now, closing, journal=journal)
    server = Server(app, closing, lambda: print(f"rehearsal provider on {address(sock)}", flush=True))
    with suppress(KeyboardInterrupt):
        server.run(sockets=[sock])
    return 0


def _now() -> float:
    return SystemClock().now_ms() / 1000


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m deploy.rehearsal", description="A faithful fake of the Flux API.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=9100, help="0 for any free one; %(default)s")
    parser.add_argument("--public-url", help="where clients reach it, for image URLs; the bound address")
    parser.add_argument("--journal", type=Path, help="a file that keeps the tasks beyond the process; none")
    for name, knob in KNOBS.items():
        mark = f" (or {knob.metadata['mark']} in a prompt)" if knob.metadata["mark"] else ""
        about = f"{knob.metadata['about']}{mark}; {knob.default}"
        parser.add_argument(
            f"--{name.replace('_', '-')}", default=knob.default, type=_flag(name), help=about, metavar="X"
        )
    return parser


def _flag(name: str) -> Callable[[str], object]:
    def read(text: str) -> object:
        try:
            return read_knob(name, _plain(text))
        except BadKnobError as wrong:
            raise argparse.ArgumentTypeError(wrong.why) from wrong

    return read


def _plain(text: str) -> object:
    """A flag's text as the JSON value it looks like, else as a string."""
    try:
        return json.loads(text)
    except ValueError:
        return text


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
