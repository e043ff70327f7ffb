"""Read the input of `fintune predict`, a file of rows or a folder of them at any path, in chunks.

Memory does not grow with the input. A row that cannot be read is reported in its place, by file and line.
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
"""The fewest rows of a chunk."""
CHARACTERS = 2**24
"""The most characters of texts in a chunk of more than `CHUNK` rows: they are in memory together."""


def read_all(
    files: Sequence[RowFile],
    task: Task,
    columns: Mapping[str, str] | None = None,
    trained: Mapping[str, str] | None = None,
) -> Iterator[Record | Dropped]:
    """The rows of all files, in order; arguments and errors as in `own_file.read_inputs`."""
    return chain.from_iterable(read_inputs(file, task, columns, trained) for file in files)


def chunks(rows: Iterable[Record | Dropped], size: int = CHUNK) -> Iterator[list[Record | Dropped]]:
    """Group rows into chunks, in order.

    Args:
        size: rows per chunk; beyond `CHUNK` rows, long texts make it smaller.
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
    """The documents that `predict --input_file` names: a file with a document's ending, or a folder's; [] if
    there are none, or if the folder holds files of rows, which take precedence.

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
            f"({', '.join(ENDINGS)}) are ignored.",
            file=sys.stderr,
        )
        return []
    start = len(place.path.rstrip("/")) + 1
    return (
        [RowFile(file, file.path[start:]) for file in document_files(place, "--input_file")] if found else []
    )
