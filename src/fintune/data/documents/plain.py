"""Plain text and Markdown → blocks; and an EDGAR submission into its documents.

A title is a line that Markdown marks, that names an item of a filing, or that is a separate line in capitals.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from fintune.data.documents.passages import Block, is_item, title_level
from fintune.data.documents.tables import table_parts

_MARKED = re.compile(r"(#{1,6})\s+(.+?)\s*#*")
_LONGEST = 300
"""The most characters of a title."""
_PIPES = re.compile(r"\s*\|.*\|\s*")
_RULE = re.compile(r"[\s|:=_*-]+")
_FENCE = re.compile(r"\s*(```|~~~)")
_FIELD = re.compile(r"^<(TYPE|FILENAME|DESCRIPTION)>(.*)$", re.MULTILINE | re.IGNORECASE)


def text_blocks(content: str) -> list[Block]:
    """Paragraphs between empty lines, tables of `|`, and titles; a form feed starts a new page."""
    blocks: list[Block] = []
    for number, page in enumerate(content.split("\f"), 1):
        blocks += _page_blocks(page, number)
    return blocks


def _page_blocks(page: str, number: int) -> Iterator[Block]:
    lines: list[str] = []

    def closed() -> Iterator[Block]:
        if not lines:
            return
        if len(lines) > 1 and all(map(_PIPES.fullmatch, lines)):
            rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip()[1:-1])] for line in lines]
            rule = len(rows) > 1 and all(map(_RULE.fullmatch, filter(None, rows[1])))
            table = [row for row in rows if not all(_RULE.fullmatch(cell or "-") for cell in row)]
            captions, rest = table_parts(table, 1 if rule else None)
            yield Block("\n".join(rest), number, captions=tuple(captions))
        elif len(lines) == 1:
            text = " ".join(lines[0].split())
            alone = is_item(text) or (text.isupper() and len(text) > 3)
            yield Block(text, number, title_level(text, alone))
        else:
            yield Block("\n".join(line.strip() for line in lines), number)
        lines.clear()

    for line in page.splitlines():
        if len(line) < _LONGEST and (found := _MARKED.fullmatch(line.strip())):
            yield from closed()
            yield Block(found[2], number, 1 if len(found[1]) <= 2 else 2)
        elif is_item(line.strip()) and len(line.split()) <= 15:
            yield from closed()
            yield Block(" ".join(line.split()), number, 1)
        elif not line.strip() or (_RULE.fullmatch(line) and "|" not in line) or _FENCE.match(line):
            yield from closed()
        else:
            if lines and bool(_PIPES.fullmatch(line)) != bool(_PIPES.fullmatch(lines[-1])):
                yield from closed()
            lines.append(line)
    yield from closed()


def submission(content: str) -> list[tuple[str, str, str]]:
    """The documents of EDGAR's submission file as (type, file name, text); [] for other text."""
    found = []
    if "<TYPE>" not in content[:100_000]:
        return []
    for part in content.split("<DOCUMENT>\n")[1:]:
        head, _, rest = part.partition("<TEXT>")
        fields = {name.upper(): value.strip() for name, value in _FIELD.findall(head[:2000])}
        body = rest.partition("</DOCUMENT>")[0].rstrip().removesuffix("</TEXT>")
        found.append((fields.get("TYPE", ""), fields.get("FILENAME", ""), body))
    return found
