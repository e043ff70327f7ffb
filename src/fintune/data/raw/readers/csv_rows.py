"""Rows of CSV and TSV text: detects the delimiter, and handles unbalanced quotation marks.

Python's reader takes all text after an unclosed quotation mark for one cell. Here such a line is read alone,
with its marks as text, if it then has as many cells as the header; otherwise it is refused.
"""

from __future__ import annotations

import csv
import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from fintune.errors import DataError

DELIMITERS = ",\t;|"
HEAD = 50
"""Lines from which the delimiter is detected."""
LONGEST = 20_000
"""The most lines in one cell: beyond them its quotation mark counts as unclosed."""
_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")
LEARNT_ROWS = 2_000
"""Rows whose values show what a column holds."""


@dataclass
class Quotes:
    """Findings on quotation marks in a file."""

    literal: list[int] = field(default_factory=list)
    """Lines whose quotation marks were read as text."""
    several: int = 0
    """The number of rows that span several lines."""
    longest: tuple[int, int] = (1, 0)
    """The number of lines of the longest row, and where it begins."""


def layout(head: Sequence[str], suffix: str) -> tuple[str, int]:
    """The delimiter, and how many lines precede the header (Excel's `sep=;`).

    The delimiter is the one with which most rows have as many cells as the header, at least two.
    """
    if head and (told := re.fullmatch(r"\ufeff?\"?sep=(.)\"?", head[0].rstrip("\r\n"), re.IGNORECASE)):
        return told[1], 1
    usual = "\t" if suffix == ".tsv" else ","
    best, score = usual, (0.0, 0)
    for delimiter in sorted(DELIMITERS, key=lambda each: each != usual):
        widths = [len(row) for row in csv.reader(head, delimiter=delimiter) if row]
        if widths and widths[0] > 1:
            found = (widths.count(widths[0]) / len(widths), widths[0])
            if found > score:
                best, score = delimiter, found
    return best, 0


def read(
    content: Iterable[str],
    delimiter: str = ",",
    name: str = "The file",
    skip: int = 0,
    quotes: Quotes | None = None,
) -> Iterator[tuple[int, list[str]]]:
    """The non-blank rows, header first, each with its first line's number.

    Args:
        name: the file's name in errors.
        skip: lines before the header.
        quotes: receives the findings on quotation marks.

    Raises:
        DataError: a quotation mark is not closed at the end of its cell; names the mark's line.
    """
    csv.field_size_limit(2**31 - 1)  # transcripts exceed the default
    quotes = quotes or Quotes()
    source = _Lines(islice(content, skip, None))
    reader = csv.reader(source, delimiter=delimiter, strict=True)
    columns: _Columns | None = None
    number = 1 + skip
    while True:
        source.held.clear()
        try:
            row = next(reader, None)
        except csv.Error:
            row, whole = [], False
        else:
            if row is None:
                return
            whole = len(source.held) == 1 or not (columns and columns.swallowed(source.held, row, delimiter))
        if not whole:
            if columns is None or not columns.are_rows(source.held, delimiter):
                raise _unbalanced(name, number, source.held, delimiter)
            row = _literal(source.held[0], delimiter)
            source.back()
            quotes.literal.append(number)
        if row:
            if columns is None:
                columns = _Columns(len(row), [_literal(line, delimiter) for line in source.ahead(HEAD)])
            else:
                columns.learn(row)
            quotes.several += len(source.held) > 1
            if len(source.held) > quotes.longest[0]:
                quotes.longest = (len(source.held), number)
            yield number, row
        number += len(source.held)


class _Lines:
    """Lines, holding those of the current row so that they can be pushed back."""

    def __init__(self, content: Iterable[str]) -> None:
        self._content = iter(content)
        self._again: deque[str] = deque()
        self.held: list[str] = []

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        if len(self.held) >= LONGEST:
            raise StopIteration
        line = self._again.popleft() if self._again else next(self._content)
        self.held.append(line)
        return line

    def ahead(self, count: int) -> list[str]:
        """The next lines, without consuming them."""
        self._again.extend(islice(self._content, count))
        return list(self._again)

    def back(self) -> None:
        """Push back all held lines except the first."""
        self._again.extendleft(reversed(self.held[1:]))
        del self.held[1:]


class _Columns:
    """What columns hold, to tell a multi-line cell from rows that an unclosed mark has swallowed."""

    def __init__(self, width: int, ahead: Sequence[Sequence[str]]) -> None:
        """
        Args:
            ahead: the cells of the next lines, each parsed alone; they count if most are rows.
        """
        self.width = width
        self._rows = 0
        self._seen: list[set[str]] = [set() for _ in range(width)]
        self._numeric = [True] * width
        if sum(len(cells) == width for cells in ahead) >= 0.8 * len(ahead):
            for cells in ahead:
                self.learn(cells)

    def learn(self, row: Sequence[str]) -> None:
        if self._rows < LEARNT_ROWS and len(row) == self.width:
            self._rows += 1
            for column, cell in enumerate(row):
                if cell and len(cell) <= 40:
                    self._seen[column].add(cell)
                self._numeric[column] &= _NUMBER.fullmatch(cell) is not None

    def are_rows(self, held: Sequence[str], delimiter: str) -> bool:
        """Whether the first of some lines, parsed alone, has as many cells as the header, and most others."""
        widths = [len(_literal(line, delimiter)) for line in islice(held, HEAD) if line.strip()]
        return widths[0] == self.width and widths.count(self.width) >= 0.8 * len(widths)

    def swallowed(self, held: Sequence[str], row: Sequence[str], delimiter: str) -> bool:
        """Whether the lines of one row are rows themselves: one ends, or begins, with values that the columns
        beside the long cell have elsewhere; or there are several, and all have as many cells as the header.

        Prose has spaces after commas, and commas inside numbers; rows do not.
        """
        each = [_literal(line, delimiter) for line in held if line.strip()]
        if self.width < 2 or len(each) < 2:
            return False
        long = min(next(place for place, cell in enumerate(row) if "\n" in cell), self.width - 1)
        after = self.width - 1 - long
        for cells in each[:-1]:
            if after and len(cells) > after and self._known(cells[-after:], long + 1, cells[-after - 1]):
                return True
        for cells in each[1:]:
            begins = long and len(cells) > long and not _continues(cells[long - 1], cells[long])
            if begins and self._known(cells[:long], 0):
                return True
        return len(each) >= 4 and all(
            len(cells) == self.width and not any(map(_continues, cells, cells[1:])) for cells in each
        )

    def _known(self, cells: Sequence[str], column: int, before: str = "") -> bool:
        """Whether cells are values of the columns from `column` on."""
        if _continues(before, cells[0]):
            return False
        return all(
            cell in self._seen[place] or (self._numeric[place] and _NUMBER.fullmatch(cell))
            for place, cell in enumerate(cells, start=column)
        )


def _continues(before: str, cell: str) -> bool:
    """Whether two cells are one text with a comma in it: `rose, and fell`, or `1,250`."""
    return cell[:1] == " " or (before[-1:].isdigit() and re.match(r"\d{3}(?!\d)", cell) is not None)


def _literal(line: str, delimiter: str) -> list[str]:
    """A line's cells with quotation marks as text, except those around a whole cell."""
    try:
        return next(csv.reader([line], delimiter=delimiter, strict=True), [])
    except csv.Error:
        cells = line.rstrip("\r\n").split(delimiter)
        return [cell[1:-1] if re.fullmatch(r'".*"', cell) else cell for cell in cells]


def _unbalanced(name: str, number: int, held: Sequence[str], delimiter: str) -> DataError:
    """The error that names the line of the last opening mark."""
    opened, inside, before = number, False, delimiter
    for place, line in enumerate(held):
        for letter in line:
            if letter == '"' and (inside or before in (delimiter, "\n")):
                inside = not inside
                opened = number + place if inside else opened
            before = letter
    return DataError(
        f'{name}, line {opened}: a quotation mark (") opens a cell here and is not closed at the end of the '
        "cell, so the lines below would become part of it. Close it, or double the marks inside a cell, or "
        "save the file as .xlsx or .jsonl."
    )
