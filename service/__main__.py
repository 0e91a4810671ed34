"""`python -m service`: the HTTP process. `python -m service COMMAND …`: one of COMMANDS, each with `--help`.

A command imports no more than it needs: those that speak HTTP load neither Redis nor the server. Unknown: exit 2.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from typing import Final

SERVER: Final = "service.server"
COMMANDS: Final[Mapping[str, str]] = {
    "jobs": "service.commands.jobs",
    "batches": "service.commands.batches",
    "why": "service.commands.why",
    "rebuild": "service.commands.rebuild",
    "fsck": "service.commands.fsck",
}


def main(argv: Sequence[str]) -> int:
    if not argv:
        return int(import_module(SERVER).serve())
    if argv[0] in COMMANDS:
        return int(import_module(COMMANDS[argv[0]]).main(argv[1:]))
    asked = argv[0] in {"-h", "--help", "help"}
    print("\n".join(usage()), file=sys.stdout if asked else sys.stderr)
    return 0 if asked else 2


def usage() -> Iterator[str]:
    yield "python -m service            the HTTP process"
    for name, module in COMMANDS.items():
        yield f"python -m service {name:<10} {import_module(module).ABOUT}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
