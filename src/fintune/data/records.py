"""What readers yield: records, and rows that were dropped, counted and named; and when two texts are one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import Literal

from fintune.tasks.base import Record

Split = Literal["train", "validation", "test", "more"]

COLUMNS = tuple(field.name for field in fields(Record) if field.name != "split")
"""A record's fields as the columns of a split's file: all of them, so that none is lost on the way."""


@dataclass(frozen=True)
class Dropped:
    """A row a reader could not turn into a record, or left out by its dataset's rule."""

    reason: str
    """A short phrase that rows are counted under, such as "malformed rows"."""
    where: str
    """File and line, or another name the row can be found by."""
    why: str = ""
    count: int = 1


Read = Callable[[], Iterable[Record | Dropped]]
"""Yields a part's records; must be picklable, as a `functools.partial` of a function is."""


def text_key(text: str) -> str:
    """Two texts with the same key are the same text: case and spacing do not tell them apart."""
    return " ".join(text.casefold().split())


def digest(key: str) -> int:
    """64 bits that stand for a key. With 10 million texts the chance of any collision is about 1 in 400,000.

    Raises:
        UnicodeEncodeError: the text holds half a character (a lone surrogate).
    """
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")
