"""A document for the rest of fintune: passages in order, each with its section and page.

Readers yield blocks; `passages` removes running titles and cuts the rest into passages of a given size.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from fintune.text.sentences import sentences

WORDS = 60
"""Approximate words per passage: the size with the best recall (docs/data.md)."""
_REPEATED = 3
"""A first or last line on this many pages counts as a running title."""
_PAGE_NUMBER = re.compile(r"(?:page\s+)?([A-Z]{0,2}-?\d{1,4}|[ivxl]{1,6})(?:\s+of\s+\d+)?", re.IGNORECASE)
_ITEM = re.compile(r"(?:part\s+[iv]+\b|item\s*\d{1,2}(?:\.\d\d|[a-c])?\b)[.:\s–—-]*", re.IGNORECASE)
_LONGEST_TITLE = 200


@dataclass(frozen=True)
class Block:
    """A paragraph, a table's lines, or a title."""

    text: str
    page: int = 1
    """Counted from 1."""
    level: int = 0
    """1 for an item of a filing or a chapter, 2 for a title below it, 0 for no title."""
    label: str = ""
    """The page number printed on the page, if the file has no pages of its own."""
    captions: tuple[str, ...] | None = None
    """For a table, whose text is its rows: captions above all columns, such as their unit."""


@dataclass(frozen=True)
class Passage:
    """A piece of a document with its location."""

    text: str
    section: str = ""
    """Its titles, outermost first: `Item 7. … › Revenue`."""
    page: str = ""
    """The page it begins on; "" in a file without pages."""
    document: str = ""
    """Its file's name."""

    @property
    def words(self) -> int:
        return len(self.text.split())

    @property
    def place(self) -> str:
        """Its location, for people."""
        return ", ".join(filter(None, [self.document, self.section, self.page and f"page {self.page}"]))


@dataclass(frozen=True)
class Document:
    """A file's passages in order."""

    name: str
    passages: tuple[Passage, ...]
    left_out: str = ""
    """A sentence on parts of the file that are not text and were not read; "" if there are none."""

    @property
    def words(self) -> int:
        return sum(passage.words for passage in self.passages)


def title_level(text: str, marked: bool) -> int:
    """The level of a line as a title.

    Args:
        marked: it is bold, a heading element, or otherwise set apart.
    """
    if not marked or not text or len(text) > _LONGEST_TITLE or text.startswith("("):
        return 0
    if _ITEM.match(text):
        return 1
    letters = sum(map(str.isalpha, text))
    sentence = text.endswith((".", ":", ";", ",")) and len(text.split()) > 6
    return 2 if letters >= 3 and letters * 2 > len(text) and not sentence else 0


def is_item(text: str) -> bool:
    """Whether a line names an item or part of a filing."""
    return len(text) <= _LONGEST_TITLE and bool(_ITEM.match(text))


def passages(blocks: Iterable[Block], name: str, paged: bool, words: int = WORDS) -> tuple[Passage, ...]:
    """Cut blocks into passages of about `words` words. None spans two items of a filing or ends in a title.

    Args:
        paged: whether the pages are the file's own (a PDF's); otherwise the printed numbers are cited.
    """
    found: list[Passage] = []
    titles: list[str] = []
    open_: list[_Piece] = []

    def close(new_item: bool = False) -> None:
        waiting: list[_Piece] = []
        while not new_item and open_ and open_[-1].title:
            waiting.insert(0, open_.pop())
        if open_:
            first = next((piece for piece in open_ if not piece.title), open_[0])
            text = "\n".join(piece.text for piece in open_)
            found.append(Passage(text, first.section, open_[0].page, name))
        open_[:] = waiting

    for block in _without_running_titles(list(blocks), paged):
        page = str(block.page) if paged else block.label
        if block.level:
            if block.level == 1 or _count(open_) > words // 2:
                close(new_item=block.level == 1)
            titles[:] = [*[*titles, ""][: block.level - 1], block.text]
        section = " › ".join(filter(None, titles))
        for text in _texts(block, words):
            if _count(open_) + len(text.split()) > words * 1.25:
                close()
            open_.append(_Piece(text, section, page, block.level > 0))
    close(new_item=True)
    return tuple(found)


class _Piece(NamedTuple):
    text: str
    section: str
    page: str
    title: bool


def _count(pieces: Sequence[_Piece]) -> int:
    return sum(len(piece.text.split()) for piece in pieces)


def _texts(block: Block, words: int) -> Iterator[str]:
    """A block's text in pieces of about `words` words. A table's pieces are rows, each with the captions and
    the last title above it."""
    table = block.captions is not None
    captions, join = list(block.captions or ()), "\n" if table else " "
    if len(block.text.split()) <= words * 1.25:
        yield "\n".join([*captions, block.text])
        return
    piece, count, title = list(captions), 0, ""
    for line in _lines(block.text.split("\n"), words) if table else sentences(block.text, 6 * words):
        if count and count + len(line.split()) > words:
            yield join.join(piece)
            piece, count = [*captions, *([title] if title and title != line else [])], 0
        title = title if not table or " | " in line or ": " in line else line
        piece.append(line)
        count += len(line.split())
    yield join.join(piece)


def _lines(rows: Iterable[str], words: int) -> Iterator[str]:
    """A table's rows; a row that contains a whole paragraph is cut too."""
    for row in rows:
        yield from [row] if len(row) < 12 * words else sentences(row, 6 * words)


def _without_running_titles(blocks: list[Block], paged: bool) -> list[Block]:
    """Remove lines repeated at the edges of many pages; page numbers are kept separately."""
    pages: dict[int, list[Block]] = {}
    for block in blocks:
        pages.setdefault(block.page, []).append(block)
    edges = Counter(key for page in pages.values() for key in {_edge(b) for b in [*page[:4], *page[-2:]]})
    kept: list[Block] = []
    for number, page in pages.items():
        label = str(number) if paged else ""
        while page and len(pages) > 1 and (found := _PAGE_NUMBER.fullmatch(page[-1].text)):
            label = label if paged else found[1]
            page = page[:-1]
        while page and edges[_edge(page[0])] >= _REPEATED and len(page[0].text) < _LONGEST_TITLE:
            page = page[1:]
        while page and edges[_edge(page[-1])] >= _REPEATED and len(page[-1].text) < _LONGEST_TITLE:
            page = page[:-1]
        kept += [replace(block, label=label) for block in page]
    return kept


def _edge(block: Block) -> str:
    """A key that is the same for a running title on every page: figures, such as page numbers, are equal."""
    return re.sub(r"\d+", "0", block.text)
