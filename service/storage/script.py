"""The script that does every guarded write: one file a noun, joined into one, because Redis runs scripts whole."""

import hashlib
from importlib import resources
from typing import Final

from service.storage import record

# In this order: a local function of Lua is known only below its definition.
PARTS: Final = (
    "head",
    "slots",
    "callbacks",
    "suspects",
    "spools",
    "notices",
    "jobs",
    "batches",
    "due",
    "rebuild",
    "series",
    "inspect",
)

_NAMES: Final = ",".join(f"'{name}'" for name in record.NAMES)


def _part(name: str) -> str:
    return resources.files(__package__).joinpath("lua", f"{name}.lua").read_text("utf-8")


SCRIPT: Final = "\n".join([f"local NAMES = {{{_NAMES}}}", *map(_part, PARTS), "return verbs[verb]()"])
SHA: Final = hashlib.sha1(SCRIPT.encode(), usedforsecurity=False).hexdigest()
