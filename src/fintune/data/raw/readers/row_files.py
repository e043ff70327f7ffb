"""CSV, TSV, JSONL, JSON and Parquet files at any path as numbered rows by column, read as they come.

Knows nothing of what the columns mean.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fintune.data.documents.reading import ENDINGS as DOCUMENTS
from fintune.data.raw.readers.streams import json_items, lines
from fintune.data.storage import Location, locate, parquet_dataset
from fintune.errors import DataError

Row = tuple[int, dict[str, Any] | str]
"""A line (or row) number from 1, with the row's values by column, or why there are none."""

Cut = tuple[int, int, int]
"""A piece of a file: where it begins and ends (bytes, or Parquet row groups), and the rows before it."""

CUT_BYTES = 32 * 2**20
"""Of a piece, about."""
PEEKED = 1_000
"""Objects whose keys are taken for a file's columns, where they hold what is wanted."""
BATCH = 4_096
"""Rows of a Parquet file that are in memory at once."""


KINDS = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")


@dataclass(frozen=True)
class RowFile:
    """One file of rows."""

    place: Location
    name: str
    """What its rows are named by: its own name, or its path below the folder that was given."""
    root: Location | None = None
    """The folder that was given, whose parts' names (`year=2024/`) are columns; None for a file."""


def row_files(path: str | Path, key: str) -> list[RowFile]:
    """The files at a path, in order: the file itself, or those below a folder that are of a known kind.

    Args:
        key: the setting or flag that gives the path, for error messages.

    Raises:
        DataError: there is none.
    """
    place = locate(path)
    if place.is_file():
        return [RowFile(place, place.name)]
    if not place.is_folder():
        since = "" if "://" in str(path) else f", looked for from {Path.cwd()}"
        raise DataError(f"There is no file or folder {place.shown} (named by {key}{since}).")
    start = len(place.path.rstrip("/")) + 1
    found = [RowFile(file, file.path[start:], place) for file in place.files() if file.suffix in KINDS]
    if not found:
        raise DataError(
            f"{key} is the folder {place.shown}, which holds no file that ends in {', '.join(KINDS)}."
        )
    return found


def cuts(file: RowFile) -> list[tuple[Cut | None, int]]:
    """The pieces that a large file can be read in, in order, each with its bytes: of JSONL and Parquet.

    Other files, and what cannot be read, are one piece: None.
    """
    size = file.place.size()
    try:
        if size >= 2 * CUT_BYTES and file.place.suffix in (".jsonl", ".ndjson"):
            return _cuts_of_lines(file.place, size)
        if size >= 2 * CUT_BYTES and file.place.suffix == ".parquet":
            return _cuts_of_groups(file.place)
    except (OSError, ValueError):  # whoever reads it next says why
        pass
    return [(None, size)]


def _cuts_of_lines(place: Location, size: int) -> list[tuple[Cut | None, int]]:
    found: list[tuple[Cut | None, int]] = []
    with place.open() as stream:
        begin = rows = 0
        while begin < size:
            stream.seek(min(begin + CUT_BYTES, size))
            stream.readline()
            end = stream.tell()
            found.append(((begin, end, rows), end - begin))
            stream.seek(begin)
            while stream.tell() < end:
                rows += stream.read(min(2**20, end - stream.tell())).count(b"\n")
            begin = end
    return found


def _cuts_of_groups(place: Location) -> list[tuple[Cut | None, int]]:
    import pyarrow.parquet as pq

    found: list[tuple[Cut | None, int]] = []
    with place.open() as stream, pq.ParquetFile(stream) as file:
        begin = size = rows = done = 0
        for group in range(file.metadata.num_row_groups):
            size += file.metadata.row_group(group).total_byte_size
            rows += file.metadata.row_group(group).num_rows
            if size >= CUT_BYTES or group + 1 == file.metadata.num_row_groups:
                found.append(((begin, group + 1, done), size))
                begin, done, size = group + 1, rows, 0
    return found


def open_rows(
    file: RowFile, wanted: Collection[str] = (), cut: Cut | None = None
) -> tuple[list[str], Iterator[Row]]:
    """The column names and the rows of a file, by its suffix.

    Args:
        wanted: columns to look for. Objects need not have the same keys: all are read for their names
            where the first ones lack a column that is wanted.
        cut: one of `cuts(file)`, to have the rows of that piece alone; names are the whole file's.

    Raises:
        DataError: the file is empty, of an unknown kind, damaged or not UTF-8, here or while rows are read.
    """
    place = file.place
    kind = place.suffix
    if kind in DOCUMENTS:  # to `predict`, one row
        return ["file"], iter([(1, {"file": file.name})])
    if kind not in KINDS:
        raise DataError(
            f"{place.shown} is of an unknown kind: it must end in .csv, .tsv, .jsonl or .parquet, or in "
            ".json for a list of objects."
        )
    try:
        if place.size() == 0:
            raise DataError(f"{place.shown} is empty.")
        if kind == ".parquet":
            names, rows = _parquet(file, cut)
        elif kind in (".csv", ".tsv"):
            names, rows = _csv(place)
        else:
            names, rows = _objects(place, _json if kind == ".json" else _jsonl, wanted)
            rows = _jsonl(place, cut) if cut else rows
    except OSError as error:
        raise DataError(f"{place.shown} cannot be read: {error}") from None
    return names, _guarded(place, rows)


def _guarded(place: Location, rows: Iterator[Row]) -> Iterator[Row]:
    try:
        yield from rows
    except OSError as error:
        raise DataError(f"{place.shown} cannot be read: {error}") from None


def csv_rows(content: Iterable[str], delimiter: str = ",") -> Iterator[tuple[int, list[str]]]:
    """The rows of a CSV text, given by lines, that are not blank; with the line each begins on."""
    csv.field_size_limit(2**31 - 1)  # a transcript is longer than the default allows
    reader = csv.reader(content, delimiter=delimiter)
    begin = 1
    for row in reader:
        if row:
            yield begin, row
        begin = reader.line_num + 1


def _csv(path: Location) -> tuple[list[str], Iterator[Row]]:
    header = next(lines(path), "")
    rows = csv_rows(lines(path), max(",;\t", key=header.count))
    _, names = next(rows, (0, []))
    if not names:
        raise DataError(f"{path.shown} is empty.")
    names = [name.strip() for name in names]

    def cells() -> Iterator[Row]:
        for number, row in rows:
            if len(row) == len(names):
                yield number, dict(zip(names, row, strict=True))
            else:
                yield number, f"it has {len(row)} cells, but the header has {len(names)}"

    return names, cells()


def _objects(
    path: Location, read: Callable[[Location], Iterator[Row]], wanted: Collection[str]
) -> tuple[list[str], Iterator[Row]]:
    names: dict[str, None] = {}
    bad = ""
    for count, (number, row) in enumerate(read(path), start=1):
        if isinstance(row, dict):
            names.update(dict.fromkeys(row))
        else:
            bad = bad or f": line {number}: {row}"
        if count >= PEEKED and names and all(name in names for name in wanted):
            break
    if not names:
        raise DataError(f"{path.shown} holds no JSON object, one a line{bad}.")
    return list(names), read(path)


def _jsonl(path: Location, cut: Cut | None = None) -> Iterator[Row]:
    begin, end, before = cut or (0, None, 0)
    for number, line in enumerate(lines(path, begin=begin, end=end), start=before + 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            yield number, f"it is not valid JSON ({error})"
            continue
        yield number, value if isinstance(value, dict) else "it is not a JSON object"


def _json(path: Location) -> Iterator[Row]:
    with path.open() as stream:
        for number, value in enumerate(json_items(stream, path.shown, "write a list of objects"), start=1):
            yield number, value if isinstance(value, dict) else "it is not a JSON object"


def _parquet(file: RowFile, cut: Cut | None = None) -> tuple[list[str], Iterator[Row]]:
    import pyarrow as pa
    import pyarrow.dataset as pads

    def damaged(error: Exception) -> DataError:
        return DataError(f"{file.place.shown} is not a Parquet file, or it is damaged: {error}")

    try:
        source = parquet_dataset(file.place, file.root)
        if cut:
            (fragment,) = source.get_fragments()
            piece = fragment.subset(row_group_ids=list(range(cut[0], cut[1])))
            source = pads.FileSystemDataset([piece], source.schema, source.format, source.filesystem)
    except (pa.ArrowInvalid, DataError) as error:
        raise damaged(error) from None

    def rows() -> Iterator[Row]:
        number = cut[2] if cut else 0
        try:
            for batch in source.to_batches(batch_size=BATCH, fragment_readahead=1, batch_readahead=1):
                for number, row in enumerate(batch.to_pylist(), start=number + 1):  # noqa: B020
                    yield number, row
        except (pa.ArrowInvalid, pa.ArrowException) as error:
            raise damaged(error) from None

    return source.schema.names, rows()
