"""Stream files of rows at any path (CSV, TSV, JSON, Parquet, Excel) as numbered rows by column.

Every file is inspected before it is read: compression, encoding, layout, and whether it is complete. Knows
nothing of what the columns mean.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import IO, Any

from fintune.data.documents.reading import ENDINGS as DOCUMENTS
from fintune.data.raw.readers import csv_rows, encodings, excel, json_rows, parquet_rows
from fintune.data.raw.readers.streams import PACKED, lines, unpacked
from fintune.data.storage import Location, locate, parquet_dataset
from fintune.errors import DataError

Row = tuple[int | str, dict[str, Any] | str]
"""A line (or row) number from 1 (`7.2` is the second row of line 7), with the row's values by column,
or why there are none."""

Cut = tuple[int, int, int]
"""A piece of a file: where it begins and ends (bytes, or Parquet row groups), and the rows before it."""

CUT_BYTES = 32 * 2**20
"""Approximate bytes of a piece."""
PEEKED = 1_000
"""Objects whose keys count as a file's columns, if they include the wanted ones."""

TABLES = (".csv", ".tsv")
OBJECTS = (".jsonl", ".ndjson", ".json")
BOOKS = (".xlsx", ".xlsm")
KINDS = (*TABLES, *OBJECTS, ".parquet", *BOOKS)
ENDINGS = (*KINDS, *(kind + ending for kind in (*TABLES, *OBJECTS) for ending in PACKED))
"""File name endings of files of rows."""
_MAGIC = {b"PK\x03\x04": ".xlsx", b"PAR1": ".parquet", b"\x1f\x8b": ".gz", b"\x28\xb5\x2f\xfd": ".zst"}
"""First bytes → the ending that a file should have."""
_FIXES = {
    **dict.fromkeys((".xls", ".xlsb", ".ods", ".numbers"), "save the workbook as .xlsx"),
    **dict.fromkeys(
        (".zip", ".tar", ".tgz", ".7z", ".rar", ".bz2", ".xz"), "unpack it, or pack it as .gz or .zst"
    ),
    ".parq": "rename it to end in .parquet",
}


@dataclass(frozen=True)
class RowFile:
    """One file of rows, and what the inspection found."""

    place: Location
    name: str
    """Its name in row ids: its own, or its path below the given folder."""
    root: Location | None = None
    """The given folder, below which path parts (`year=2024/`) are columns; None for a file."""
    kind: str = ""
    """One of `KINDS`."""
    packed: str = ""
    """Its compression: one of `PACKED`, or ""."""
    encoding: str = encodings.UTF8
    delimiter: str = ","
    skip: int = 0
    """Lines before a table's header."""
    inside: str = json_rows.LINES
    """The place of a JSON file's rows (`json_rows.place_of`)."""
    sheet: str = ""
    paths: tuple[str, ...] = ()
    """JSON columns whose paths locate the rows (`data.items[].headline`)."""
    notes: tuple[str, ...] = ()
    """Sentences on how it is read, for the user."""

    @property
    def shown(self) -> str:
        return self.place.shown

    def open(self) -> IO[bytes]:
        """Its unpacked bytes."""
        return unpacked(self.place, self.packed)

    def noted(self, what: str, **found: Any) -> RowFile:
        """The file with further findings, and a note on them."""
        return replace(self, notes=(*self.notes, f"{self.name} {what}."), **found)


def existing(path: str | Path, key: str) -> Location:
    """The file or folder at a path, which the setting or flag `key` names.

    Raises:
        DataError: there is none.
    """
    place = locate(path)
    if not place.is_file() and not place.is_folder():
        since = "" if "://" in str(path) else f", looked for from {Path.cwd()}"
        raise DataError(f"There is no file or folder {place.shown} (named by {key}{since}).")
    return place


def row_files(
    path: str | Path,
    key: str,
    encoding: str | None = None,
    sheet: str | None = None,
    columns: Iterable[str] = (),
) -> list[RowFile]:
    """The files at a path, in order: the file itself, or those of a known kind below a folder.

    Args:
        key: the setting or flag that gives the path, for error messages.
        encoding: the text's encoding; None detects it.
        sheet: the sheet of a workbook; None is the first.
        columns: the columns that will be requested; for JSON, paths among them locate the rows.

    Raises:
        DataError: there is none, or one is empty, of an unknown kind, damaged, or not in this encoding.
    """
    place = existing(path, key)
    paths = tuple(column for column in columns if "[]" in column)
    if place.is_file():
        return [_looked(RowFile(place, place.name, paths=paths), encoding, sheet)]
    start = len(place.path.rstrip("/")) + 1
    found = [file for file in place.files() if kind_of(file)[0]]
    if not found:
        told = f"{key} is the folder {place.shown}, which holds no file that ends in {', '.join(ENDINGS)}"
        if documents := sum(file.suffix in DOCUMENTS for file in place.files()):
            told += (
                f"; its {documents:,} documents need a table in that folder, with one row per document and "
                "its target: name that table, and its column as columns: {document: COLUMN}"
            )
        raise DataError(f"{told}.")
    return [_looked(RowFile(each, each.path[start:], place, paths=paths), encoding, sheet) for each in found]


def kind_of(place: Location) -> tuple[str, str]:
    """A file's kind and compression, by its name; ("", "") if unknown."""
    name = place.name.lower()
    ending = max((each for each in ENDINGS if name.endswith(each)), key=len, default="")
    packed = next((each for each in PACKED if ending.endswith(each)), "")
    return ending.removesuffix(packed), packed


# Inspecting -----------------------------------------------------------------------------------------


def _looked(file: RowFile, encoding: str | None, sheet: str | None) -> RowFile:
    place = file.place
    kind, packed = kind_of(place)
    if not kind:
        fix = _FIXES.get(place.suffix, f"its name must end in {', '.join(ENDINGS)}")
        raise DataError(f"{place.shown} is of an unknown kind: {fix}.")
    file = replace(file, kind=kind, packed=packed)
    if packed:
        file = file.noted(f"is unpacked ({PACKED[packed]}) as it is read")
    try:
        if place.size() == 0:
            raise DataError(f"{place.shown} is empty.")
        if kind == ".parquet":
            return _looked_at_parquet(file)
        if kind in BOOKS:
            return _looked_at_book(file, sheet)
        file = _looked_at_text(file, encoding)
        return _looked_at_table(file) if kind in TABLES else _looked_at_objects(file)
    except OSError as error:
        raise DataError(f"{place.shown} cannot be read: {error}") from None


def _looked_at_parquet(file: RowFile) -> RowFile:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with file.open() as stream:
        try:
            _refuse_twice(file, pq.read_schema(stream).names)
        except pa.ArrowException as error:
            raise _damaged_parquet(file, error) from None
    return file


def _damaged_parquet(file: RowFile, error: Exception) -> DataError:
    return DataError(f"{file.shown} is not a Parquet file, or it is damaged: {error}")


def _refuse_twice(file: RowFile, names: list[str]) -> None:
    twice = [name for name, count in Counter(names).items() if name and count > 1]
    if twice:
        places = ", ".join(str(place) for place, name in enumerate(names, start=1) if name == twice[0])
        raise DataError(f"{file.shown} names the column '{twice[0]}' twice (columns {places}): rename one.")


def _looked_at_book(file: RowFile, wanted: str | None) -> RowFile:
    sheet, names = excel.sheet_of(file.place, wanted)
    file = replace(file, sheet=sheet)
    if len(names) > 1 and wanted is None:
        file = file.noted(f"has the sheets {', '.join(names)}: {sheet} is read")
    return file


def _looked_at_text(file: RowFile, encoding: str | None) -> RowFile:
    with file.open() as stream:
        head = stream.read(2**12)
    if not head:
        raise DataError(f"{file.shown} is empty.")
    meant = next((ending for magic, ending in _MAGIC.items() if head.startswith(magic)), "")
    if meant:
        raise DataError(f"{file.shown} is not text: by its first bytes, its name should end in {meant}.")
    if marked := encodings.marked(head):
        return file if marked == encodings.UTF8 else file.noted(f"is {marked} text", encoding=marked)
    if encoding:
        try:
            "".encode(encoding)
        except LookupError:
            raise DataError(f"The encoding {encoding!r} is unknown: try utf-8, utf-16, cp1252, …") from None
        return replace(file, encoding=encodings.UTF8 if encoding in ("utf-8", "utf8") else encoding)
    with file.open() as stream:
        found, example = encodings.guessed(stream)
    if example:
        what = f"is not UTF-8 text: it is read as {found} («{example}»); if that is wrong, save it as UTF-8, "
        what += "or set its `encoding`"
        file = file.noted(what, encoding=found)
    return file


def _looked_at_table(file: RowFile) -> RowFile:
    """Detect the delimiter, and read all rows once, to refuse a damaged file here."""
    head = list(islice(lines(file, encoding=file.encoding), csv_rows.HEAD))
    delimiter, skip = csv_rows.layout(head, file.kind)
    file = replace(file, delimiter=delimiter, skip=skip)
    if delimiter != ("\t" if file.kind == ".tsv" else ","):
        shown = {"\t": "tabs"}.get(delimiter, f"«{delimiter}»")
        file = file.noted(f"has {shown} between its cells")
    quotes = csv_rows.Quotes()
    rows = _table(file, quotes)
    _refuse_twice(file, _names(file, next(rows, (0, []))[1]))
    for _ in rows:
        pass
    if quotes.literal:
        shown = ", ".join(map(str, quotes.literal[:5])) + (", …" if len(quotes.literal) > 5 else "")
        what = (
            f"has unbalanced quotation marks: in {len(quotes.literal):,} lines ({shown}) they are "
            "read as text, and each of these lines as a row"
        )
        file = file.noted(what)
    if quotes.several:
        length, begin = quotes.longest
        what = f"has {quotes.several:,} rows of several lines, at most {length:,} (from line {begin} on)"
        file = file.noted(what)
    return file


def _looked_at_objects(file: RowFile) -> RowFile:
    inside, what = json_rows.place_of(file, file.kind, file.encoding, file.paths)
    file = replace(file, inside=inside)
    return file.noted(what) if what else file


# Pieces ---------------------------------------------------------------------------------------------


def cuts(file: RowFile) -> list[tuple[Cut | None, int]]:
    """The pieces that a large file of JSON lines or Parquet can be read in, in order, each with its bytes.

    Other files, and unreadable ones, are one piece: None.
    """
    size = file.place.size()
    whole = file.packed or file.encoding != encodings.UTF8 or file.inside != json_rows.LINES
    try:
        if size >= 2 * CUT_BYTES and file.kind in OBJECTS and not whole:
            return _cuts_of_lines(file.place, size)
        if size >= 2 * CUT_BYTES and file.kind == ".parquet":
            return _cuts_of_groups(file.place)
    except (OSError, ValueError):  # the next reader reports why
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


# Reading --------------------------------------------------------------------------------------------


def open_rows(
    file: RowFile, wanted: Collection[str] = (), cut: Cut | None = None
) -> tuple[list[str], Iterator[Row]]:
    """The column names and the rows of a file.

    Args:
        wanted: columns to look for. JSON objects need not have the same keys: if the first ones lack a
            wanted column, all are read for their names.
        cut: one of `cuts(file)`, for only that piece's rows; names are the whole file's.

    Raises:
        DataError: the file is empty or damaged, or names a column twice, now or while rows are read.
    """
    if file.place.suffix in DOCUMENTS:  # one row, for `predict`
        return ["file"], iter([(1, {"file": file.name})])
    try:
        if file.kind == ".parquet":
            names, rows = _parquet(file, cut)
        elif file.kind in OBJECTS:
            names, rows = _objects(file, wanted, cut)
        else:
            found = excel.sheet_rows(file.place, file.sheet) if file.kind in BOOKS else _table(file)
            names, rows = _rectangle(file, found)
    except OSError as error:
        raise DataError(f"{file.shown} cannot be read: {error}") from None
    _refuse_twice(file, names)
    return names, _guarded(file, rows)


def _guarded(file: RowFile, rows: Iterator[Row]) -> Iterator[Row]:
    try:
        yield from rows
    except OSError as error:
        raise DataError(f"{file.shown} cannot be read: {error}") from None


def _table(file: RowFile, quotes: csv_rows.Quotes | None = None) -> Iterator[tuple[int, list[str]]]:
    content = lines(file, encoding=file.encoding)
    return csv_rows.read(content, file.delimiter, file.shown, file.skip, quotes)


def _names(file: RowFile, header: list[Any]) -> list[str]:
    names = ["" if name is None else str(name).strip() for name in header]
    if not any(names):
        raise DataError(f"{file.shown} is empty.")
    return names


def _rectangle(file: RowFile, found: Iterator[tuple[int, list[Any]]]) -> tuple[list[str], Iterator[Row]]:
    """A table's column names, from its first row, and the rows below it."""
    _, header = next(found, (0, []))
    names = _names(file, header)
    padded = file.kind in BOOKS  # a sheet's rows end with their last filled cell

    def rows() -> Iterator[Row]:
        for number, row in found:
            if padded:
                row += [None] * (len(names) - len(row))
            if len(row) == len(names):
                yield number, dict(zip(names, row, strict=True))
            else:
                yield number, f"it has {len(row)} cells, but the header has {len(names)}"

    return names, rows()


def _objects(file: RowFile, wanted: Collection[str], cut: Cut | None) -> tuple[list[str], Iterator[Row]]:
    whole = json_rows.rows(file, file.inside, file.encoding, file.paths)
    names, bad = json_rows.columns_of(whole, [*wanted, *file.paths], PEEKED)
    if not names:
        what = f"rows at {file.paths[0].rpartition('[]')[0]}[]" if file.paths else "JSON object, one per line"
        raise DataError(f"{file.shown} holds no {what}{bad}.")
    piece = {"begin": cut[0], "end": cut[1], "before": cut[2]} if cut else {}
    return names, json_rows.rows(file, file.inside, file.encoding, file.paths, **piece)


def _parquet(file: RowFile, cut: Cut | None = None) -> tuple[list[str], Iterator[Row]]:
    import pyarrow as pa
    import pyarrow.dataset as pads

    try:
        source = parquet_dataset(file.place, file.root)
    except (pa.ArrowInvalid, DataError) as error:
        raise _damaged_parquet(file, error) from None

    def read() -> Iterator[Row]:
        (fragment,) = source.get_fragments()
        partition = pads.get_partition_keys(fragment.partition_expression)
        groups = list(range(cut[0], cut[1])) if cut else None
        try:
            yield from enumerate(
                parquet_rows.rows(file.place, source.schema.names, partition, groups),
                start=1 + (cut[2] if cut else 0),
            )
        except pa.ArrowException as error:
            raise _damaged_parquet(file, error) from None

    return source.schema.names, read()
