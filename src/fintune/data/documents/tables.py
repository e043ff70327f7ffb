"""A report's table as lines that a small model can read: every cell with its column's header.

    ["", "Year ended", ""], ["(in millions)", "2019", "2018"], ["Sales", "$ 41", ""]
    → "(in millions)", "Year ended", "Sales | 2019: $41"

Knows only cells, no datasets.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

MAX_HEADERS = 4
"""The first rows that may be headers."""
_LONGEST_VALUE = 60
_NUMBER = re.compile(r"[^\w]*(?:US|A|C|HK)?[$€£¥(+\-–]*\s*[\d,.]*\d.*")
_WORD = re.compile(r"[^\W\d_]{3}")
_YEAR = re.compile(r"(?:fiscal |fy ?)?'?(?:19|20)\d\d(?:[/–-]\d\d(?:\d\d)?)?", re.IGNORECASE)


def cell_text(cell: Any) -> str:
    """A cell on one line, without gaps around signs: `$  27` is `$27`, `( 1.5 )` is `(1.5)`."""
    text = " ".join(str(cell).split())
    text = re.sub(r"([$€£¥]) +(?=[\d(.\-–—−])|(?<=\() +", r"\1", text)
    return re.sub(r" +([)%])", r"\1", text)


def table_lines(table: Sequence[Sequence[Any]], headers: int | None = None) -> list[str]:
    """A table as lines: captions (and units), then one line per row; see `table_parts`."""
    captions, lines = table_parts(table, headers)
    return [*captions, *lines]


def table_parts(table: Sequence[Sequence[Any]], headers: int | None = None) -> tuple[list[str], list[str]]:
    """The captions of a table, and the lines of its rows.

    Empty cells are left out. A row with one cell is a section title.

    Args:
        headers: the number of header rows; None detects them.
    """
    rows = [[cell_text(cell) for cell in row] for row in table]
    rows = [row for row in rows if any(row)]
    if headers is None:
        headers = _header_rows(rows)
    captions, names = _names(rows[:headers])
    body = rows[headers:]
    bare = [name for i, name in enumerate(names, 1) if not any("".join(row[i : i + 1]) for row in body)]
    captions += filter(None, bare)  # otherwise the name of an empty column would be lost
    lines = []
    for row in body:
        cells = [
            f"{name}: {cell}" if name else cell
            for cell, name in zip(row[1:], [*names, *[""] * len(row)], strict=False)
            if cell
        ]
        lines.append(" | ".join([*([row[0]] if row[0] else []), *cells]))
    return captions, lines


def is_value(cell: str) -> bool:
    """Whether a cell holds a figure, not a name, a year or a date."""
    return (
        len(cell) < _LONGEST_VALUE
        and bool(_NUMBER.fullmatch(cell))
        and not _YEAR.fullmatch(cell)
        and not _WORD.search(cell)
    )


def _header_rows(rows: list[list[str]]) -> int:
    """How many rows at the top name the columns.

    The first row without a figure does, if it names a column; the following rows do too while they have no
    row title (or units in its place), or contain only years.
    """
    found = named = 0
    for row in rows[:MAX_HEADERS]:
        title, rest = row[0], [cell for cell in row[1:] if cell]
        if any(map(is_value, rest)) or (named and not rest):
            break
        goes_on = not title or title.startswith("(") or all(map(_YEAR.fullmatch, rest))
        if named and not goes_on:
            break
        found += 1
        named += bool(rest)
    return found if named and found < len(rows) else min(1, len(rows) - 1) if named else 0


def _names(headers: list[list[str]]) -> tuple[list[str], list[str]]:
    """The captions above all columns, and each column's name except the first's."""
    captions: list[str] = []
    width = max(map(len, headers), default=1) - 1
    parts: list[list[str]] = [[] for _ in range(width)]
    for number, row in enumerate(headers):
        if row[0]:
            captions.append(row[0])
        cells = [*row[1:], *[""] * (width + 1 - len(row))]
        filled = [cell for cell in cells if cell]
        if len(filled) == 1 and width > 1:
            captions.append(filled[0])
            continue
        if number + 1 < len(headers):
            cells = _spread(cells)
        for column, cell in zip(parts, cells, strict=True):
            if cell and cell not in column:
                column.append(cell)
    return captions, [" ".join(column) for column in parts]


def _spread(cells: list[str]) -> list[str]:
    """Repeat names that span several columns: in groups of equal width, else up to the next name."""
    count = sum(map(bool, cells))
    if count and len(cells) % count == 0:
        width = len(cells) // count
        groups = [cells[i : i + width] for i in range(0, len(cells), width)]
        if all(sum(map(bool, group)) == 1 for group in groups):
            return [max(group) for group in groups for _ in group]
    spread, last = [], ""
    for cell in cells:
        last = cell or last
        spread.append(last)
    return spread
