"""What `fintune predict` reads: a file of rows, or a folder of them, at any path, chunk after chunk.

Memory does not grow with the input. A row that cannot be read is named by file and line in its place.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path

from fintune.data.documents.reading import ENDINGS, document_files
from fintune.data.raw.readers.own_file import read_inputs
from fintune.data.raw.readers.row_files import RowFile, existing, kind_of
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


def input_documents(path: str | Path) -> list[RowFile]:
    """The documents that `predict --input_file` names: a file of such an ending, or those of a folder; []
    where there are none, or the folder holds files of rows, which are read then.

    Raises:
        DataError: there is nothing at the path.
    """
    place = existing(path, "--input_file")
    if place.is_file():
        return [RowFile(place, place.name)] if place.suffix in ENDINGS else []
    files = place.files()
    found = [file for file in files if file.suffix in ENDINGS]
    if found and any(kind_of(file)[0] for file in files):
        print(
            f"{place.shown} holds files of rows, which are answered; its {len(found):,} documents "
            f"({', '.join(ENDINGS)}) are left out.",
            file=sys.stderr,
        )
        return []
    start = len(place.path.rstrip("/")) + 1
    return (
        [RowFile(file, file.path[start:]) for file in document_files(place, "--input_file")] if found else []
    )
