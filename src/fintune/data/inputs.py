"""What `fintune predict` reads: a file of rows, or a folder of them, at any path, chunk after chunk.

Memory does not grow with the input. A row that cannot be read is named by file and line in its place.
"""

from __future__ import annotations

from collections.abc import Iterator

from fintune.data.raw.readers.own_file import read_inputs
from fintune.data.raw.readers.row_files import RowFile
from fintune.data.records import Dropped
from fintune.tasks.base import Record, Task

CHUNK = 64
"""Rows of a chunk, at least."""
CHARACTERS = 2**24
"""Characters of the texts of a chunk of more than `CHUNK` rows, at most: they stand in memory together."""


def chunks(file: RowFile, task: Task, size: int = CHUNK) -> Iterator[list[Record | Dropped]]:
    """The rows of a file, in order.

    Args:
        size: rows of a chunk: `CHUNK` where it is less; fewer where their texts are long.

    Raises:
        DataError: the file is empty, damaged or of an unknown kind, or lacks a column.
    """
    chunk: list[Record | Dropped] = []
    characters = 0
    for row in read_inputs(file, task):
        chunk.append(row)
        characters += len(row.text) if isinstance(row, Record) else 0
        if len(chunk) >= (CHUNK if characters > CHARACTERS else max(size, CHUNK)):
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk
