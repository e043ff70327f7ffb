"""HTML and inline XBRL → blocks: visible text, titles, tables and pages.

A filing has no heading elements, only bold lines; its hidden facts (`ix:header`), scripts and styles are
dropped. Nothing is fetched, and only HTML's own entities are known.
"""

from __future__ import annotations

import re
from typing import Any

from fintune.data.documents import grids
from fintune.data.documents.passages import Block, is_item, title_level
from fintune.errors import DataError

_DROPPED = frozenset(
    "script style noscript template head iframe object svg canvas select button ix:header ix:hidden".split()
)
_BLOCKS = frozenset(
    "address article aside blockquote body caption center dd details div dl dt fieldset figcaption figure "
    "footer form h1 h2 h3 h4 h5 h6 header hr li main nav ol p pre section summary table tbody td tfoot th "
    "thead tr ul".split()
)
_HIDDEN = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden", re.IGNORECASE)
_BOLD = re.compile(r"font-weight\s*:\s*(bold|[6-9]00|normal|[1-5]00)", re.IGNORECASE)
_BREAK = re.compile(r"(?:page-)?break-(before|after)\s*:\s*(?:always|page)", re.IGNORECASE)
_HEADING = re.compile(r"h[1-6]")
_CONTENTS = 5
"""With this many rows that name items of the filing, a table is its table of contents."""
_WIDEST = 100
"""The most columns or rows that a cell may span."""


def html_blocks(content: str, name: str) -> list[Block]:
    """The blocks of a page's source.

    Raises:
        DataError: it is nested too deeply to be read.
    """
    from lxml import etree

    parser = etree.HTMLParser(
        encoding="utf-8", huge_tree=True, no_network=True, remove_comments=True, remove_pis=True
    )
    source = content.encode("utf-8", "replace")
    root = etree.fromstring(source, parser) if content.strip() else None
    if any(error.type_name == "ERR_RESOURCE_LIMIT" for error in parser.error_log):
        raise DataError(f"{name} cannot be read: its elements are nested too deeply for a report.")
    if root is None:
        return []
    _prune(root)
    return _Walk(root).blocks


def _prune(root: Any) -> None:
    """Empty invisible elements, but keep the text after them."""
    hidden = [
        element
        for element in root.iter()
        if _tag(element) in _DROPPED
        or "hidden" in element.attrib
        or _HIDDEN.search(element.get("style") or "")
    ]
    for element in hidden:  # not while walking: changing the tree ends the walk
        element.clear(keep_tail=True)


def _tag(element: Any) -> str:
    return element.tag.lower() if isinstance(element.tag, str) else ""


class _Walk:
    """One pass over the tree, in order: text is collected into a line until a block begins or ends."""

    def __init__(self, root: Any) -> None:
        from lxml import etree

        self.blocks: list[Block] = []
        self.page = 1
        self._text: list[str] = []
        self._bold = self._letters = 0
        self._weights = [False]
        walk = etree.iterwalk(root, events=("start", "end"))
        for event, element in walk:
            if event == "start":
                if _tag(element) == "table" and next(element.iterdescendants("table"), None) is None:
                    self._close()
                    self._table(element)
                    walk.skip_subtree()
                else:
                    self._start(element)
            else:
                self._end(element)
        self._close()

    def _start(self, element: Any) -> None:
        tag, style = _tag(element), element.get("style") or ""
        if tag in _BLOCKS or tag == "br":
            self._close() if tag in _BLOCKS else self._text.append(" ")
        if (found := _BREAK.search(style)) and found[1] == "before":
            self._turn()
        self._weights.append(_is_bold(tag, style, self._weights[-1]))
        self._add(element.text)

    def _end(self, element: Any) -> None:
        tag = _tag(element)
        if tag in _BLOCKS:
            self._close()
        if (found := _BREAK.search(element.get("style") or "")) and found[1] == "after":
            self._turn()
        if not (tag == "table" and next(element.iterdescendants("table"), None) is None):
            self._weights.pop()
        self._add(element.tail)

    def _add(self, text: str | None) -> None:
        if text:
            self._text.append(text)
            letters = sum(map(str.isalnum, text))
            self._letters += letters
            self._bold += letters if self._weights[-1] else 0

    def _close(self) -> None:
        if text := " ".join("".join(self._text).split()):
            marked = self._letters > 0 and self._bold >= 0.9 * self._letters
            self.blocks.append(Block(text, self.page, title_level(text, marked)))
        self._text, self._bold, self._letters = [], 0, 0

    def _turn(self) -> None:
        self._close()
        self.page += 1

    def _table(self, table: Any) -> None:
        rows = _rows(table)
        if sum(any(is_item(cell.text) for cell in row) for row in rows) >= _CONTENTS:
            return  # the table of contents
        named = bool(rows) and next(table.iterdescendants("th"), None) is not None
        if found := grids.parts(rows, named):
            captions, lines = found
            self.blocks.append(Block("\n".join(lines), self.page, captions=tuple(captions)))
            return
        bold = any(_is_bold(_tag(e), e.get("style") or "", False) for e in table.iter())
        for row in rows:
            line = " ".join(filter(None, (cell.text for cell in row)))
            self.blocks.append(Block(line, self.page, title_level(line, bold and is_item(line))))


def _is_bold(tag: str, style: str, inherited: bool) -> bool:
    if found := _BOLD.search(style):
        return found[1].lower() in ("bold", "600", "700", "800", "900")
    return inherited or tag in ("b", "strong", "th") or bool(_HEADING.fullmatch(tag))


def _rows(table: Any) -> list[list[grids.Cell]]:
    """The cells of a table's rows; a cell that spans rows is repeated in each of them."""
    rows: list[list[grids.Cell]] = []
    spanning: list[tuple[int, grids.Cell]] = []  # remaining rows, and the cell
    for element in table.iterdescendants("tr"):
        above = sorted((cell for _, cell in spanning), key=lambda cell: cell.start)
        row, waiting, place = list(above), list(reversed(above)), 0
        spans: list[tuple[int, grids.Cell]] = []
        for td in element.iterchildren("td", "th"):
            while waiting and waiting[-1].start <= place:
                place = max(place, int(waiting.pop().end))
            width, height = _span(td, "colspan"), _span(td, "rowspan")
            cell = grids.Cell(place, place + width, _text(td))
            row.append(cell)
            place += width
            if height > 1 and len(spanning) + len(spans) < _WIDEST:
                spans.append((height, cell))
        spanning = [(left - 1, cell) for left, cell in [*spanning, *spans] if left > 1]
        rows.append(sorted(row, key=lambda cell: cell.start))
    return [row for row in rows if any(cell.text for cell in row)]


def _span(cell: Any, name: str) -> int:
    value = cell.get(name) or "1"
    return min(int(value), _WIDEST) if value.isascii() and value.isdigit() and int(value[:9]) else 1


def _text(element: Any) -> str:
    """A cell's text on one line."""
    parts = [element.text or ""]
    for inner in element.iterdescendants():
        space = " " if _tag(inner) in _BLOCKS or _tag(inner) == "br" else ""
        parts += [space, inner.text or ""]
        parts += [inner.tail or ""] if not space else [" ", inner.tail or ""]
    return " ".join("".join(parts).split())
