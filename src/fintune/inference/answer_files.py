"""Where the answers to a file go: JSON lines, CSV, Excel or Parquet. A run that was stopped goes on.

Answers are first kept as JSON lines in a journal beside the output, whose name ends in `.part`. Its first
line says what was asked: the same question asked again goes on after the last whole line.
"""

from __future__ import annotations

import csv
import json
import re
import sys
import tempfile
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, Literal

from fintune.data.raw.readers.row_files import RowFile, open_rows
from fintune.data.storage import Location, locate, refuse_full, write_parquet
from fintune.errors import DataError
from fintune.files import atomic_file, json_line
from fintune.tasks import Task
from fintune.text.encoding import HALF

Line = dict[str, Any]
"""An answer as JSON has it: `id`, `task`, and then `error`, or `prediction` and perhaps `probabilities`."""
Kind = Literal["lines", "csv", "xlsx", "parquet"]

EXCEL_ROWS = 2**20 - 1
"""Below the header, at most: Excel's own limit, as the next one."""
EXCEL_CHARACTERS = 32_767
PARQUET_LINES = 1_024
_NUMBER = re.compile(r"[+-]?[\d.,]+ ?%?")


@dataclass(frozen=True)
class Output:
    """A file, or a folder of Parquet files, that answers are written to."""

    place: Location
    kind: Kind

    @classmethod
    def at(cls, path: str | Path, source: str | Path) -> Output:
        """The output at a path: Parquet for a folder or a path that ends in `/`, else by the file's ending.

        Raises:
            DataError: it would cost another file (the input `source`, or what a folder holds), is in no
                folder, or ends in what is not written.
        """
        asked, place = locate(source), locate(path)
        inside = (
            f"{place.path.rstrip('/')}/".startswith(f"{asked.path.rstrip('/')}/") and asked.fs == place.fs
        )
        same = asked.local and place.local and place.local.exists() and place.local.samefile(asked.local)
        if same or inside:
            raise DataError(f"output_file is {place.shown}, the input itself: name another.")
        if str(path).endswith("/") or place.is_folder():
            refuse_full(place, "output_file")
            return cls(place, "parquet")
        if place.local and not place.local.parent.is_dir():
            raise DataError(f"output_file is {place.shown}, which is in no folder: make its folder first.")
        if place.suffix in (".parquet", ".xls", ".ods"):
            instead = (
                "a folder, such as answers/" if place.suffix == ".parquet" else "a file that ends in .xlsx"
            )
            raise DataError(
                f"output_file is {place.shown}, a kind of file that is not written: name {instead}."
            )
        if place.suffix == ".xlsx":
            return cls(place, "xlsx")
        return cls(place, "csv" if place.suffix in (".csv", ".tsv") else "lines")

    @contextmanager
    def journal(self, asked: Mapping[str, Any]) -> Iterator[Journal]:
        """The journal of this output's answers: beside it, or for a remote one on this disk for the time.

        Args:
            asked: what must be the same for a run to go on where another stopped.
        """
        if self.place.local:
            path = Path(f"{self.place.path.rstrip('/')}.part")
            yield Journal.open(path, asked)
            path.unlink()
            return
        with tempfile.TemporaryDirectory(prefix="fintune-") as folder:
            yield Journal.open(Path(folder) / "answers.part", asked)

    def write(self, lines: Iterable[Line], task: Task, parts: Sequence[RowFile]) -> None:
        """Write answers, in the order of the rows of `parts`; a file appears whole or not at all."""
        if self.kind == "parquet":
            tables = (table(batch, task) for batch in _batches(lines, PARQUET_LINES))
            write_parquet(self.place, schema(task), tables)
        elif self.place.local:
            self._fill(self.place.local, lines, task, parts)
        else:
            with tempfile.TemporaryDirectory(prefix="fintune-") as folder:
                path = Path(folder) / self.place.name
                self._fill(path, lines, task, parts)
                self.place.put(path)

    def _fill(self, path: Path, lines: Iterable[Line], task: Task, parts: Sequence[RowFile]) -> None:
        with atomic_file(path) as stream:
            if self.kind == "lines":
                stream.writelines(json_line(line).encode() for line in lines)
                return
            names = list(dict.fromkeys(name for part in parts for name in open_rows(part)[0]))
            sheet = Sheet(task, names)
            raw = chain.from_iterable(open_rows(part)[1] for part in parts)
            rows = (sheet.row(row, line) for (_, row), line in zip(raw, lines, strict=True))
            if self.kind == "xlsx":
                _write_excel(stream, sheet, rows)
            else:
                write_csv(stream, sheet, rows, "\t" if path.suffix == ".tsv" else ",")


@dataclass
class Journal:
    """Answers on disk as they come, one JSON object a line, below a line that says what was asked."""

    path: Path
    done: int
    """Answers that an earlier run left."""

    @classmethod
    def open(cls, path: Path, asked: Mapping[str, Any]) -> Journal:
        """The journal at a path: with what it holds where the same was asked, else a new one."""
        head = json.dumps(asked, sort_keys=True, default=str).encode() + b"\n"
        done = 0
        if path.is_file():
            with path.open("r+b") as stream:
                if stream.readline() == head:
                    end = stream.tell()
                    for line in stream:
                        if not line.endswith(b"\n"):
                            break  # cut where the run was stopped
                        done, end = done + 1, end + len(line)
                    stream.truncate(end)
                    print(f"Going on after the {done:,} rows that {path} holds.", file=sys.stderr)
                    return cls(path, done)
            print(f"{path} holds answers to another question: starting anew.", file=sys.stderr)
        path.write_bytes(head)
        return cls(path, done)

    def add(self, lines: Iterable[list[Line]]) -> None:
        """Keep chunks of answers as they come."""
        with self.path.open("ab") as stream:
            for chunk in lines:
                stream.writelines(json_line(line).encode() for line in chunk)
                stream.flush()

    def __iter__(self) -> Iterator[Line]:
        with self.path.open("rb") as stream:
            stream.readline()
            for line in stream:
                yield json.loads(line)


class Sheet:
    """Answers as a person reads them: the input's own columns, then the answer's, then `error`."""

    def __init__(self, task: Task, names: Sequence[str]) -> None:
        """
        Args:
            names: the input's columns; one that is called as a column of answers gets `input_` before it.
        """
        self.task = task
        own = [*(name for name in task.answer_columns() if name != "probabilities"), "error"]
        self.inputs = {name: f"input_{name}" if name in own else name for name in names}
        self.columns = [*map(_cell, self.inputs.values()), *own]

    def row(self, raw: Mapping[str, Any] | str, line: Line) -> dict[str, Any]:
        """The cells of one row; of a row that could not be read (`raw` says why) the answer's alone."""
        given = {} if isinstance(raw, str) else raw
        cells = {_cell(shown): _cell(given.get(name)) for name, shown in self.inputs.items()}
        return {**cells, **self.task.answer_cells(line), "error": line.get("error")}


def _cell(value: Any) -> Any:
    """A cell of the input: lists and objects as JSON, half a character as «�»."""
    if isinstance(value, list | dict):
        value = json.dumps(value, ensure_ascii=False, default=str)
    return HALF.sub("�", value) if isinstance(value, str) else value


def safe(value: Any) -> Any:
    """A cell that a spreadsheet shows and does not compute: a text that looks like a formula gets a quote.

    Numbers, and a summary's dashes as bullets, stay readable.
    """
    if not isinstance(value, str):
        return value
    value = re.sub(r"(?m)^- ", "• ", value)
    return f"'{value}" if _like_formula(value) else value


def _like_formula(text: str) -> bool:
    """Whether a spreadsheet may take a text for a formula. See OWASP, «CSV injection».

    What stands before its first sign and is not seen counts for nothing, and full-width signs are signs.
    """
    first = next((i for i, sign in enumerate(text) if unicodedata.category(sign)[0] not in "CZ"), len(text))
    seen = text[first:]
    begins = unicodedata.normalize("NFKC", seen[:1])[:1] in tuple("=+-@") or text[:1] in tuple("\t\r\n")
    return begins and not _NUMBER.fullmatch(seen.rstrip())


def write_csv(
    stream: BinaryIO, sheet: Sheet, rows: Iterable[Mapping[str, Any]], delimiter: str = ","
) -> None:
    """Write a sheet as CSV that spreadsheets open: UTF-8 with its mark, no formulas."""
    import io

    text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="", write_through=True)
    try:
        writer = csv.writer(text, delimiter=delimiter)
        writer.writerow(map(safe, sheet.columns))
        writer.writerows([safe(row.get(name)) for name in sheet.columns] for row in rows)
    finally:
        text.detach()


def _write_excel(stream: BinaryIO, sheet: Sheet, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a sheet as an Excel workbook.

    Raises:
        DataError: there are more rows than Excel takes.
    """
    import openpyxl
    from openpyxl.cell import WriteOnlyCell
    from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE

    book = openpyxl.Workbook(write_only=True)
    page = book.create_sheet("answers")
    page.freeze_panes = "A2"
    cut = 0

    def cell(value: Any) -> Any:
        nonlocal cut
        if not isinstance(value, str):
            return value
        shown = ILLEGAL_CHARACTERS_RE.sub("�", value)
        if len(shown) > EXCEL_CHARACTERS:
            cut += 1
            shown = shown[: EXCEL_CHARACTERS - 1] + "…"
        made = WriteOnlyCell(page, shown)
        made.data_type = "s"  # a text is never a formula, and none when somebody edits it
        made.quotePrefix = _like_formula(shown)
        return made

    page.append([cell(name) for name in sheet.columns])
    for count, row in enumerate(rows, start=1):
        if count > EXCEL_ROWS:
            raise DataError(f"Excel takes {EXCEL_ROWS:,} rows, and there are more: name a .csv file instead.")
        page.append([cell(row.get(name)) for name in sheet.columns])
    book.save(stream)
    if cut:
        print(
            f"{cut:,} cells of more than {EXCEL_CHARACTERS:,} characters, Excel's limit, were cut.",
            file=sys.stderr,
        )


def schema(task: Task) -> Any:
    """The Parquet columns of a task's answers: `id`, `task`, those of its type, `error`."""
    import pyarrow as pa

    types = {"text": pa.string(), "number": pa.float64()}
    own = {name: types[kind] for name, kind in task.answer_columns().items()}
    return pa.schema({"id": pa.string(), "task": pa.string(), **own, "error": pa.string()})


def table(lines: Sequence[Line], task: Task) -> Any:
    """Lines as a table of `schema(task)`."""
    import pyarrow as pa

    rows = [{"error": None, **line, **task.answer_cells(line)} for line in lines]
    return pa.Table.from_pylist(rows, schema(task))


def _batches(lines: Iterable[Line], size: int) -> Iterator[list[Line]]:
    stream = iter(lines)
    while batch := list(islice(stream, size)):
        yield batch
