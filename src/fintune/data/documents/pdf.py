"""PDF → blocks: group positioned text runs into lines, and lines into tables and paragraphs."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from fintune.data.documents import grids, pdf_pages
from fintune.data.documents.passages import Block, is_item, title_level
from fintune.errors import DataError

SECONDS = 60
"""The most seconds to read a PDF."""
_GAP = 1.0
"""In line heights: two runs this far apart are cells of a table, not words of a sentence."""


class Run(NamedTuple):
    left: float
    right: float
    top: float
    bottom: float
    text: str


Line = list[Run]


def pdf_blocks(content: bytes, name: str) -> list[Block]:
    """The blocks of a PDF's pages.

    Raises:
        DataError: it is damaged, has a password or no text, or takes too long.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-I", pdf_pages.__file__], input=content, capture_output=True, timeout=SECONDS
        )
    except subprocess.TimeoutExpired:
        raise DataError(f"{name} took more than {SECONDS} s to read: it is not an ordinary PDF.") from None
    if done.returncode:
        raise DataError(f"{name} cannot be read as a PDF: it is damaged or needs too much memory.")
    found = json.loads(done.stdout)
    if "password" in found.get("error", "").lower():
        raise DataError(f"{name} has a password: save a copy without one, such as with  qpdf --decrypt.")
    if "error" in found:
        raise DataError(f"{name} cannot be read as a PDF ({found['error']}).")
    pages = [[Run(*run) for run in page] for page in found["pages"]]
    if not any(pages):
        raise DataError(
            f"{name} has no text, only pictures of it: run OCR on it first, such as with  ocrmypdf."
        )
    return [block for i, page in enumerate(pages, 1) for block in _page_blocks(page, i)]


def _lines(runs: Sequence[Run]) -> list[Line]:
    """Group runs of the same height into lines, top to bottom, each left to right."""
    lines: list[Line] = []
    for run in sorted(runs, key=lambda run: -(run.top + run.bottom)):
        middle = (run.top + run.bottom) / 2
        if lines and lines[-1][0].bottom <= middle <= lines[-1][0].top:
            lines[-1].append(run)
        else:
            lines.append([run])
    return [sorted(line) for line in lines]


def _cells(line: Line) -> list[grids.Cell]:
    """A line's runs as cells; runs close to each other are joined."""
    cells: list[grids.Cell] = []
    for run in line:
        gap = run.left - cells[-1].end if cells else 0
        if cells and gap < _GAP * max(run.top - run.bottom, 1):
            cells[-1] = grids.Cell(cells[-1].start, run.right, f"{cells[-1].text} {run.text}")
        else:
            cells.append(grids.Cell(run.left, run.right, run.text))
    return cells


def _page_blocks(runs: Sequence[Run], page: int) -> Iterator[Block]:
    """Consecutive lines of several cells that include figures become a table."""
    lines = [(_cells(line), line) for line in _lines(runs)]
    text: list[Line] = []
    i = 0
    while i < len(lines):
        end = i
        while end < len(lines) and (
            len(lines[end][0]) > 1 or (end > i and end + 1 < len(lines) and _within(lines, end))
        ):
            end += 1
        rows = [cells for cells, _ in lines[i:end]]
        if len(rows) > 1 and (found := grids.parts(rows)):
            yield from _paragraphs(text, page)
            text = []
            yield Block("\n".join(found[1]), page, captions=tuple(found[0]))
            i = end
        else:
            text += [line for _, line in lines[i : max(end, i + 1)]]
            i = max(end, i + 1)
    yield from _paragraphs(text, page)


def _within(lines: Sequence[tuple[list[grids.Cell], Line]], i: int) -> bool:
    """Whether a line of one cell is a title within a table: short, between lines of several cells."""
    return len(lines[i - 1][0]) > 1 and len(lines[i + 1][0]) > 1 and len(lines[i][0][0].text.split()) <= 8


def _paragraphs(lines: Sequence[Line], page: int) -> Iterator[Block]:
    """Lines of text as paragraphs, which end at a wide gap, a short line or a change of letter height."""
    if not lines:
        return
    widest = max(line[-1].right for line in lines)
    height = statistics.median(line[0].top - line[0].bottom for line in lines) or 1
    parts: list[str] = []
    last: Line | None = None
    for line in lines:
        words = " ".join(run.text for run in line)
        if last is not None:
            gap = last[0].bottom - line[0].top
            short = last[-1].right < widest - 12 * height
            if gap > 1.2 * height or short or is_item(words):
                yield _block(parts, page)
                parts = []
        parts.append(words)
        last = line
    yield _block(parts, page)


def _block(parts: list[str], page: int) -> Block:
    text = parts[0]
    for part in parts[1:]:  # a word divided at a line's end keeps its hyphen, which may be part of the word
        divided = text[-1:] == "-" and text[-2:-1].isalpha() and part[:1].islower()
        text += part if divided else f" {part}"
    level = title_level(text, len(parts) == 1 and (is_item(text) or text.isupper()))
    return Block(text, page, level)
