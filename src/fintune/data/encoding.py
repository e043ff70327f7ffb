"""Text damaged by a wrong encoding («â‚¬» for «€»): found, and repaired where the user asks for it.

Off by default (`data.repair_encoding`), so that the published test sets stay as others use them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any, Literal

from fintune.tasks.base import Record

Problem = Literal["repairable", "lost"]
_LOST = "\ufffd"


def repair(text: str) -> str:
    """The text with UTF-8 that was read as another encoding put right (Speer's `ftfy`); else unchanged."""
    if text.isascii():
        return text
    from ftfy import fix_encoding

    return fix_encoding(text)


def problem(text: str) -> Problem | None:
    """`repairable` if `repair` would change the text, `lost` if U+FFFD stands for a character."""
    if text.isascii():
        return None
    if repair(text) != text:
        return "repairable"
    return "lost" if _LOST in text else None


def repaired(read: Callable[[], Iterable[Any]]) -> Iterator[Any]:
    """What a source's `read` yields, with the text, question and target of its records repaired."""
    for item in read():
        if not isinstance(item, Record):
            yield item
            continue
        target = repair(item.target) if isinstance(item.target, str) else item.target
        question = None if item.question is None else repair(item.question)
        yield replace(item, text=repair(item.text), question=question, target=target)
