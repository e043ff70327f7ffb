"""What `fintune predict` reads: a file of rows, or a folder of them, at any path, chunk after chunk.

Memory does not grow with the input. A row that cannot be read is named by file and line in its place.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain

from fintune.data.raw.readers.own_file import read_inputs
from fintune.data.raw.readers.row_files import RowFile
from fintune.data.records import Dropped
from fintune.tasks.base import Record, Task

CHUNK = 64
"""Rows of a chunk, at least."""
CHARACTERS = 2**24
"""Characters of the texts of a chunk of more than `CHUNK` rows, at most: they stand in memory together."""


def read_all(
    files: Sequence[RowFile],
    task: Task,
    columns: Mapping[str, str] | None = None,
    trained: Mapping[str, str] | None = None,
) -> Iterator[Record | Dropped]:
    """The rows of all files, in order; arguments and errors as of `own_file.read_inputs`."""
    return chain.from_iterable(read_inputs(file, task, columns, trained) for file in files)


def check_inputs(
    files: Sequence[RowFile],
    task: Task,
    columns: Mapping[str, str] | None = None,
    trained: Mapping[str, str] | None = None,
) -> None:
    """Raise a DataError for a file that is empty, damaged at its head or of an unknown kind, or lacks a
    column."""
    for file in files:
        next(read_inputs(file, task, columns, trained), None)


def chunks(rows: Iterable[Record | Dropped], size: int = CHUNK) -> Iterator[list[Record | Dropped]]:
    """Rows in order, some at a time.

    Args:
        size: rows of a chunk: `CHUNK` where it is less; fewer where their texts are long.
    """
    chunk: list[Record | Dropped] = []
    characters = 0
    for row in rows:
        chunk.append(row)
        characters += len(row.text) if isinstance(row, Record) else 0
        if len(chunk) >= (CHUNK if characters > CHARACTERS else max(size, CHUNK)):
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk
