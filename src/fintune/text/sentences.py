"""Split a text into sentences, lazily, so that a text of any length can be read in one pass.

Also splits a text of bullet points into its lines.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

_ABBREVIATION = re.compile(r"(?:\b(?:Inc|Corp|Co|Ltd|No|Mr|Mrs|Ms|Dr|St|vs|approx|[A-Z])|\.[A-Za-z])\.$")
_BOUNDARY = re.compile(r"(?:(?<=[.!?])|(?<=[.!?][\"')\]]))\s+(?=[\"'(\[]?[A-Z0-9$€£])|\n+")
_LONGEST_ABBREVIATION = 8
_BULLET = re.compile(r"[-•*](\s+|$)")
"""Includes the space after it, so that the minus of «-5 %» is not a bullet."""


def sentences(text: str | Iterable[str], longest: int | None = None) -> Iterator[str]:
    """Split English text at line ends and at . ! ? before a capital or a figure (not after "Inc.", "J.").

    Args:
        text: a text, or its parts in order, such as an open file's lines; no sentence spans two parts.
        longest: cut sentences to pieces of at most this many characters; None cuts nothing.
    """
    for part in [text] if isinstance(text, str) else text:
        start = 0
        for boundary in _BOUNDARY.finditer(part):
            end = boundary.start()
            tail = part[max(start, end - _LONGEST_ABBREVIATION) : end]
            if "\n" not in boundary.group() and _ABBREVIATION.search(tail):
                continue
            yield from _pieces(part, start, end, longest)
            start = boundary.end()
        yield from _pieces(part, start, len(part), longest)


def _pieces(text: str, start: int, end: int, longest: int | None) -> Iterator[str]:
    """The text from `start` to `end`, stripped, in pieces of at most `longest` characters; skips blanks."""
    while start < end:
        stop = end
        if longest is not None and end - start > longest:
            stop = start + longest
            space = text.rfind(" ", start + longest // 2, stop)
            stop = space if space > start else stop
        if piece := text[start:stop].strip():
            yield piece
        start = stop


def without_bullet(line: str) -> str:
    """A line without outer spaces and its dash, dot or star; "" if nothing else is left."""
    line = line.strip()
    mark = _BULLET.match(line)
    return line[mark.end() :] if mark else line


def bullet_lines(text: str) -> list[str]:
    """The lines of a text without their bullets; blank lines and empty bullets are left out."""
    return [line for line in map(without_bullet, text.splitlines()) if line]
