"""What a document is to everything else: passages in order, each with its section and page.

Readers yield blocks; `passages` leaves out what a page only repeats, and cuts the rest to a size.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from fintune.text.sentences import sentences

WORDS = 60
"""Words of a passage, about: the size whose recall is best (docs/data.md)."""
_REPEATED = 3
"""Pages on which a first or last line stands before it counts as a running title."""
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
    """1 an item of a filing or a chapter, 2 a title below it, 0 no title."""
    label: str = ""
    """The number that is printed on the page, where the file's pages have no other."""
    captions: tuple[str, ...] | None = None
    """Of a table, whose text is its rows: what stands above all columns, such as their unit."""


@dataclass(frozen=True)
class Passage:
    """A piece of a document, and where it stands."""

    text: str
    section: str = ""
    """Its titles, from the outermost: `Item 7. … › Revenue`."""
    page: str = ""
    """The page it begins on; "" in a file without pages."""
    document: str = ""
    """The name of its file."""

    @property
    def words(self) -> int:
        return len(self.text.split())

    @property
    def place(self) -> str:
        """Where it stands, for people."""
        return ", ".join(filter(None, [self.document, self.section, self.page and f"page {self.page}"]))


@dataclass(frozen=True)
class Document:
    """A file's passages in order."""

    name: str
    passages: tuple[Passage, ...]
    left_out: str = ""
    """What of the file is no text and was not read, as a sentence; "" where there is nothing."""

    @property
    def words(self) -> int:
        return sum(passage.words for passage in self.passages)


def title_level(text: str, marked: bool) -> int:
    """The level of a line as a title.

    Args:
        marked: it is bold, a heading's element, or otherwise set apart.
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
    """Blocks as passages of about `words` words. None goes through two items of a filing, or ends in a title.

    Args:
        paged: whether the pages are the file's own (a PDF's); else the printed numbers are cited.
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
    """A block's text in pieces of about `words` words. A table's are rows, each with the table's captions and
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
    """A table's rows; one that holds a whole paragraph is cut, too."""
    for row in rows:
        yield from [row] if len(row) < 12 * words else sentences(row, 6 * words)


def _without_running_titles(blocks: list[Block], paged: bool) -> list[Block]:
    """The blocks without the lines that stand at the edge of page after page; page numbers are kept apart."""
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
    """What a running title is on every page: figures, which count pages, are one."""
    return re.sub(r"\d+", "0", block.text)
