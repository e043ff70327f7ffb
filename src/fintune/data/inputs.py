"""What `fintune predict` reads: a CSV, TSV, JSONL or Parquet file, or a folder of them, at any path.

A path in; records out, one after the other, so that memory does not grow with the input. A row that cannot
be read is named by file and line in its place.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import IO

from fintune.data.quality import Dropped
from fintune.data.readers.own_file import Row, _columns, _text, csv_rows
from fintune.data.storage import Location, locate, parquet_batches, parquet_dataset
from fintune.errors import DataError
from fintune.tasks.base import Record, Task

CHUNK = 64
"""Rows answered together."""
_LOOK_AHEAD = 100
"""Lines of a JSONL file whose keys are its columns."""


@dataclass(frozen=True)
class Part:
    """One file of an input."""

    file: Location
    name: str
    """What its rows are named by: the file's path below the input's folder."""
    root: Location | None = None
    """The input's folder, if it is one."""


def input_parts(path: str | Path) -> list[Part]:
    """The files of an input, in order: the file itself, or those of a folder that fintune reads.

    Raises:
        DataError: there is none.
    """
    place = locate(path)
    if place.is_file():
        return [Part(place, place.name)]
    if not place.is_folder():
        raise DataError(f"--input_file is {place.shown}, but there is no such file or folder.")
    start = len(place.path.rstrip("/")) + 1
    parts = [Part(file, file.path[start:], place) for file in place.files() if file.suffix in _KINDS]
    if not parts:
        raise DataError(f"{place.shown} holds no file that ends in .parquet, .jsonl, .csv or .tsv.")
    return parts


def read_part(part: Part, task: Task) -> Iterator[Record | Dropped]:
    """The rows of a file to predict, in order: `text`, for qa `question`, and `id` if there is one.

    Raises:
        DataError: the file is empty, damaged or of an unknown kind, or lacks a column.
    """
    file = part.file
    if file.suffix not in _KINDS:
        raise DataError(f"{file.shown} is of an unknown kind: it must end in .csv, .tsv, .jsonl or .parquet.")
    try:
        names, rows = _KINDS[file.suffix](part)
        required = ("text", "question") if task.type == "qa" else ("text",)
        column_of = _columns(file.shown, names, task, {}, required, "Rename a column, such as  ")
        for number, row in rows:
            where = f"{part.name}:{number}"
            if isinstance(row, str):
                yield Dropped("malformed rows", where, row)
                continue
            fields = {field: _text(row.get(column_of[field])) for field in required}
            record = Record(fields["text"], question=fields.get("question"), id=_text(row.get("id")) or where)
            problem = task.input_problem(record)
            yield Dropped("malformed rows", where, problem) if problem else record
    except UnicodeDecodeError:
        raise DataError(f"{file.shown} is not UTF-8 text: save it as UTF-8.") from None


def chunks(part: Part, task: Task) -> Iterator[list[Record | Dropped]]:
    """The rows of a file, `CHUNK` at a time."""
    rows = read_part(part, task)
    while chunk := list(islice(rows, CHUNK)):
        yield chunk


def _lines(file: Location) -> IO[str]:
    return io.TextIOWrapper(file.open(), encoding="utf-8-sig", newline="")


def _csv(part: Part) -> tuple[list[str], Iterator[Row]]:
    stream = _lines(part.file)
    header = stream.readline()
    rows = csv_rows(chain([header], stream), max(",;\t", key=header.count))
    _, names = next(rows, (0, []))
    if not names:
        raise DataError(f"{part.file.shown} is empty.")
    names = [name.strip() for name in names]

    def cells() -> Iterator[Row]:
        with stream:
            for number, row in rows:
                if len(row) == len(names):
                    yield number, dict(zip(names, row, strict=True))
                else:
                    yield number, f"it has {len(row)} cells, but the header has {len(names)}"

    return names, cells()


def _jsonl(part: Part) -> tuple[list[str], Iterator[Row]]:
    def objects() -> Iterator[Row]:
        with _lines(part.file) as stream:
            for number, line in enumerate(stream, start=1):
                if not line.strip():
                    continue
                try:
                    value = json.loads(line)
                except json.JSONDecodeError as error:
                    yield number, f"it is not valid JSON ({error})"
                    continue
                yield number, value if isinstance(value, dict) else "it is not a JSON object"

    rows = objects()
    first = list(islice(rows, _LOOK_AHEAD))
    names = dict.fromkeys(name for _, row in first if isinstance(row, dict) for name in row)
    if not names:
        why = next((f": line {number}: {row}" for number, row in first), "")
        raise DataError(f"{part.file.shown} holds no JSON object, one a line{why}.")
    return list(names), chain(first, rows)


def _parquet(part: Part) -> tuple[list[str], Iterator[Row]]:
    names = parquet_dataset(part.file, part.root).schema.names
    wanted = [name for name in ("id", "text", "question") if name in names]

    def rows() -> Iterator[Row]:
        batches = parquet_batches(part.file, wanted, root=part.root)
        yield from enumerate(chain.from_iterable(batch.to_pylist() for batch in batches), start=1)

    return names, rows()


_KINDS = {".csv": _csv, ".tsv": _csv, ".jsonl": _jsonl, ".ndjson": _jsonl, ".parquet": _parquet}
