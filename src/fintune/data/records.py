"""What readers yield: records, and dropped rows with a reason; and when two texts count as the same."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import Literal

from fintune.tasks.base import Record

Split = Literal["train", "validation", "test", "more"]

COLUMNS = tuple(field.name for field in fields(Record) if field.name != "split")
"""A record's fields as the columns of a split's file: all of them, so that none is lost."""


@dataclass(frozen=True)
class Dropped:
    """A row that a reader could not turn into a record, or left out by its dataset's rule."""

    reason: str
    """A short phrase under which rows are counted, such as "malformed rows"."""
    where: str
    """File and line, or another way to find the row."""
    why: str = ""
    count: int = 1


Read = Callable[[], Iterable[Record | Dropped]]
"""Yields a part's records; must be picklable, as a `functools.partial` of a function is."""


def text_key(text: str) -> str:
    """A key that is equal for texts that differ only in case and spacing."""
    return " ".join(text.casefold().split())


def digest(key: str) -> int:
    """A 64-bit hash of a key. With 10 million texts the chance of any collision is about 1 in 400,000.

    Raises:
        UnicodeEncodeError: the text holds a lone surrogate.
    """
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")
