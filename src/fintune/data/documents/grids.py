"""Build a table's columns from positioned cells, as HTML's `colspan` and a PDF's coordinates give them.

Reports put one figure into several cells: its currency, the number, its bracket or percent sign. They are
joined.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from fintune.data.documents.tables import is_value, table_parts

MOST_COLUMNS = 100
"""A row with more cells is not part of a report's table."""
_BEFORE = re.compile(r"(?:US|C|A|HK)?[$€£¥]\s*\(?|\(")
_AFTER = re.compile(r"[)%]+|\)\s*%")


@dataclass(frozen=True)
class Cell:
    """A text that spans the table from `start` to `end`."""

    start: float
    end: float
    text: str


Row = Sequence[Cell]


def grid(rows: Sequence[Row]) -> list[list[str]]:
    """The rows with a text (or "") for each column of the table."""
    joined = [_joined(row) for row in rows]
    columns = _columns(joined)
    return [_placed(row, columns) for row in joined]


def parts(rows: Sequence[Row], named: bool = False) -> tuple[list[str], list[str]] | None:
    """A table's captions and lines (`table_parts`); None for a layout that only looks like a table.

    Args:
        named: the first row is known to have the column names.
    """
    if max(map(len, rows), default=0) > MOST_COLUMNS:
        return None
    table = grid(rows)
    values = sum(is_value(cell) for row in table for cell in row[1:])
    data = len(table) > 1 and len(table[0]) > 1 and (values > 1 or named)
    return table_parts(table) if data else None


def _joined(row: Row) -> list[Cell]:
    """A row without empty cells, with signs joined to their numbers."""
    found: list[Cell] = []
    sign: Cell | None = None
    for cell in row:
        text = " ".join(cell.text.split())
        if not text:
            continue
        if sign:
            cell, text, sign = replace(cell, start=sign.start), sign.text + text, None
        if _BEFORE.fullmatch(text):
            sign = replace(cell, text=text)
        elif found and _AFTER.fullmatch(text):
            found[-1] = Cell(found[-1].start, cell.end, found[-1].text + text)
        else:
            found.append(replace(cell, text=text))
    return [*found, sign] if sign else found


def _columns(rows: Sequence[Row]) -> list[tuple[float, float]]:
    """The columns: cells above each other, narrow ones first, so that no cell merges two columns."""
    columns: list[tuple[float, float]] = []
    for cell in sorted((c for row in rows for c in row), key=lambda c: c.end - c.start):
        over = [i for i, (start, end) in enumerate(columns) if cell.start < end and start < cell.end]
        if not over and len(columns) < MOST_COLUMNS:
            columns.append((cell.start, cell.end))
        elif len(over) == 1:
            start, end = columns[over[0]]
            columns[over[0]] = (min(start, cell.start), max(end, cell.end))
    return sorted(columns)


def _placed(row: Row, columns: Sequence[tuple[float, float]]) -> list[str]:
    """One text per column. A name above several columns is repeated in each; a name above all columns, or in
    the first, is not."""
    texts = [""] * len(columns)
    for cell in row:
        over = [i for i, (start, end) in enumerate(columns) if cell.start < end and start < cell.end]
        if len(over) > 1 and (over[0] == 0 or len(over) == len(columns) - 1):
            over = over[:1]
        for i in over:
            texts[i] = f"{texts[i]} {cell.text}".strip()
    return texts
