"""Draws the lifecycle as a Mermaid diagram, from the table itself. `python -m service.domain.diagram` prints it."""

import sys
from collections import defaultdict

from service.domain.lifecycle import TABLE


def diagram() -> str:
    """One arrow for each pair of states, labelled with the events that lead along it."""
    arrows = defaultdict(list)
    for (state, event), row in TABLE.items():
        if row.to is not state:
            arrows[state, row.to].append(event.name)
    lines = [f"    {state} --> {to}: {', '.join(names)}" for (state, to), names in arrows.items()]
    return "\n".join(["stateDiagram-v2", "    [*] --> queued", *lines])


if __name__ == "__main__":
    sys.stdout.write(diagram() + "\n")
