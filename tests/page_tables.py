"""Tables of the pages of documentation, for tests that hold a page to its word."""

import re
from pathlib import Path

_DOCS = Path(__file__).parents[1] / "docs"

DESIGN = _DOCS / "explain" / "design.md"
DURABILITY = _DOCS / "explain" / "durability.md"
FROM_ORBAX = _DOCS / "from-orbax.md"

_RULE = re.compile(r"^\|(?: *:?-+:? *\|)+$")
_CELL = re.compile(r"(?<!\\)\|")


def table(page: Path, heading: str) -> list[tuple[str, ...]]:
    """The rows of the one table below a heading, without those of its head.

    Raises:
        ValueError: There is no such heading, not one table below it, or rows of
            different lengths.
    """
    text = page.read_text()
    _, found, below = text.partition(f"\n## {heading}\n")
    if not found:
        raise ValueError(f"{page.name} has no heading {heading!r}")
    section = below.partition("\n## ")[0].splitlines()
    rules = [number for number, line in enumerate(section) if _RULE.match(line)]
    if len(rules) != 1:
        raise ValueError(f"{len(rules)} tables below {heading!r} of {page.name}")
    rows = [line for line in section if line.startswith("|")]
    first = rules[0] - 1
    if section[first : first + len(rows)] != rows:
        # A blank line ends a table, and the rest is shown as text.
        raise ValueError(f"the table below {heading!r} of {page.name} is split")
    cells = [_cells(row) for row in rows]
    if len({len(each) for each in cells}) != 1:
        raise ValueError(f"rows of different lengths below {heading!r} of {page.name}")
    return cells[2:]


def _cells(row: str) -> tuple[str, ...]:
    return tuple(cell.strip() for cell in _CELL.split(row)[1:-1])
