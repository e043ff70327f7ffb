"""What `fintune predict` reads: a file of rows, or a folder of them, at any path, chunk after chunk.

Memory does not grow with the input. A row that cannot be read is named by file and line in its place.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from fintune.data.raw.readers.own_file import read_inputs
from fintune.data.raw.readers.row_files import RowFile
from fintune.data.records import Dropped
from fintune.tasks.base import Record, Task

CHUNK = 64
"""Rows answered together."""


def chunks(file: RowFile, task: Task) -> Iterator[list[Record | Dropped]]:
    """The rows of a file, `CHUNK` at a time.

    Raises:
        DataError: the file is empty, damaged or of an unknown kind, or lacks a column.
    """
    rows = read_inputs(file, task)
    while chunk := list(islice(rows, CHUNK)):
        yield chunk
