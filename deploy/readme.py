"""Rewrites the generated parts of README.md: `python -m deploy.readme`. A test holds the file to what this would write.

A part stands between `<!-- name -->` and `<!-- /name -->`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from service.domain.diagram import diagram
from service.settings import rows

README: Final = Path(__file__).parents[1] / "README.md"


def parts() -> Mapping[str, str]:
    return {"lifecycle": f"```mermaid\n{diagram()}\n```", "settings": table()}


def table() -> str:
    """Every setting, in the order of `.env.example`."""
    lines = ["| setting | default | meaning |", "|---|---|---|"]
    for row in rows():
        unit = f" [{row.unit}]" if row.unit else ""
        secret = f" (or `{row.name}_FILE`)" if row.secret else ""
        default = f"`{row.default}`" if row.default else ""
        meaning = f"{row.doc}{unit}".replace("|", "\\|")
        lines.append(f"| `{row.name}`{secret} | {default} | {meaning} |")
    return "\n".join(lines)


def rewritten(text: str) -> str:
    for name, part in parts().items():
        head, begin, rest = text.partition(f"<!-- {name} -->\n")
        _, end, tail = rest.partition(f"<!-- /{name} -->")
        text = f"{head}{begin}{part}\n{end}{tail}"
    return text


if __name__ == "__main__":
    README.write_text(rewritten(README.read_text("utf-8")), "utf-8")
