"""Writes answers to JSON lines, CSV, Excel or Parquet; a stopped run can continue.

Answers first go as JSON lines into a journal beside the output, whose name ends in `.part`. Its first line
records what was asked: a run that asks the same continues after the journal's last whole line.
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
"""An answer as JSON: `id`, `task`, and then `error`, or `prediction` and perhaps `probabilities`."""
Kind = Literal["lines", "csv", "xlsx", "parquet"]

EXCEL_ROWS = 2**20 - 1
"""The most rows below the header: Excel's own limit, like the next one."""
EXCEL_CHARACTERS = 32_767
PARQUET_LINES = 1_024
_NUMBER = re.compile(r"[+-]?[\d.,]+ ?%?")


@dataclass(frozen=True)
class Output:
    """A file, or a folder of Parquet files, to which answers are written."""

    place: Location
    kind: Kind

    @classmethod
    def at(cls, path: str | Path, source: str | Path) -> Output:
        """The output at a path: Parquet for a folder or a path ending in `/`, else by the file's ending.

        Raises:
            DataError: it would overwrite another file (the input `source`, or the contents of a folder), its
                folder does not exist, or its ending is not supported.
        """
        asked, place = locate(source), locate(path)
        inside = (
            f"{place.path.rstrip('/')}/".startswith(f"{asked.path.rstrip('/')}/") and asked.fs == place.fs
        )
        same = asked.local and place.local and place.local.exists() and place.local.samefile(asked.local)
        if same or inside:
            raise DataError(f"output_file is {place.shown}, the input itself: name another file.")
        if str(path).endswith("/") or place.is_folder():
            refuse_full(place, "output_file")
            return cls(place, "parquet")
        if place.local and not place.local.parent.is_dir():
            raise DataError(f"output_file is {place.shown}, whose folder does not exist: create it first.")
        if place.suffix in (".parquet", ".xls", ".ods"):
            instead = (
                "a folder, such as answers/" if place.suffix == ".parquet" else "a file that ends in .xlsx"
            )
            raise DataError(
                f"output_file is {place.shown}, and this format cannot be written: name {instead}."
            )
        if place.suffix == ".xlsx":
            return cls(place, "xlsx")
        return cls(place, "csv" if place.suffix in (".csv", ".tsv") else "lines")

    @contextmanager
    def journal(self, asked: Mapping[str, Any]) -> Iterator[Journal]:
        """The journal of this output's answers: beside the output, or on this disk if the output is remote.

        Args:
            asked: what must match for a run to continue a stopped one.
        """
        if self.place.local:
            path = Path(f"{self.place.path.rstrip('/')}.part")
            yield Journal.open(path, asked)
            path.unlink()
            return
        with tempfile.TemporaryDirectory(prefix="fintune-") as folder:
            yield Journal.open(Path(folder) / "answers.part", asked)

    def write(self, lines: Iterable[Line], task: Task, parts: Sequence[RowFile]) -> None:
        """Write answers in the order of the rows of `parts`; a file appears whole or not at all."""
        if self.kind == "parquet":
            stream = iter(lines)
            batches = iter(lambda: list(islice(stream, PARQUET_LINES)), [])  # until one is empty
            tables = (table(batch, task) for batch in batches)
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
    """Answers on disk as they come: a line on what was asked, then one JSON object per line."""

    path: Path
    done: int
    """Number of answers left by an earlier run."""

    @classmethod
    def open(cls, path: Path, asked: Mapping[str, Any]) -> Journal:
        """The journal at a path: the existing one if it was asked the same, else a new one."""
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
                    print(f"Continuing after the {done:,} rows that {path} holds.", file=sys.stderr)
                    return cls(path, done)
            print(f"{path} holds answers to another question: starting again.", file=sys.stderr)
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
    """Answers as people read them: the input's own columns, the answer's columns, then `error`."""

    def __init__(self, task: Task, names: Sequence[str]) -> None:
        """
        Args:
            names: the input's columns; one named like an answer column gets the prefix `input_`.
        """
        self.task = task
        own = [*(name for name in task.answer_columns() if name != "probabilities"), "error"]
        self.inputs = {name: f"input_{name}" if name in own else name for name in names}
        self.columns = [*map(_cell, self.inputs.values()), *own]

    def row(self, raw: Mapping[str, Any] | str, line: Line) -> dict[str, Any]:
        """The cells of one row; a row that could not be read (`raw` says why) has only the answer's."""
        given = {} if isinstance(raw, str) else raw
        cells = {_cell(shown): _cell(given.get(name)) for name, shown in self.inputs.items()}
        return {**cells, **self.task.answer_cells(line), "error": line.get("error")}


def _cell(value: Any) -> Any:
    """A cell of the input: lists and objects as JSON, broken characters as «�»."""
    if isinstance(value, list | dict):
        value = json.dumps(value, ensure_ascii=False, default=str)
    return HALF.sub("�", value) if isinstance(value, str) else value


def safe(value: Any) -> Any:
    """A cell that a spreadsheet shows but never computes: text that looks like a formula gets a quote.

    Numbers, and a summary's dashes as bullets, stay as they are.
    """
    if not isinstance(value, str):
        return value
    value = re.sub(r"(?m)^- ", "• ", value)
    return f"'{value}" if _like_formula(value) else value


def _like_formula(text: str) -> bool:
    """Whether a spreadsheet may read a text as a formula. See OWASP, «CSV injection».

    Invisible characters at the start are skipped, and full-width signs count as signs.
    """
    first = next((i for i, sign in enumerate(text) if unicodedata.category(sign)[0] not in "CZ"), len(text))
    seen = text[first:]
    begins = unicodedata.normalize("NFKC", seen[:1])[:1] in tuple("=+-@") or text[:1] in tuple("\t\r\n")
    return begins and not _NUMBER.fullmatch(seen.rstrip())


def write_csv(
    stream: BinaryIO, sheet: Sheet, rows: Iterable[Mapping[str, Any]], delimiter: str = ","
) -> None:
    """Write a sheet as CSV that spreadsheets open: UTF-8 with a byte order mark, no formulas."""
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
        DataError: there are more rows than Excel allows.
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
        made.data_type = "s"  # a text is never a formula, even after someone edits it
        made.quotePrefix = _like_formula(shown)
        return made

    page.append([cell(name) for name in sheet.columns])
    for count, row in enumerate(rows, start=1):
        if count > EXCEL_ROWS:
            raise DataError(f"Excel allows {EXCEL_ROWS:,} rows, and there are more: name a .csv file.")
        page.append([cell(row.get(name)) for name in sheet.columns])
    book.save(stream)
    if cut:
        print(
            f"{cut:,} cells of more than {EXCEL_CHARACTERS:,} characters, Excel's limit, were truncated.",
            file=sys.stderr,
        )


def schema(task: Task) -> Any:
    """The Parquet columns of a task's answers: `id`, `task`, the type's columns, `error`."""
    import pyarrow as pa

    types = {"text": pa.string(), "number": pa.float64()}
    own = {name: types[kind] for name, kind in task.answer_columns().items()}
    return pa.schema({"id": pa.string(), "task": pa.string(), **own, "error": pa.string()})


def table(lines: Sequence[Line], task: Task) -> Any:
    """Lines as a table of `schema(task)`."""
    import pyarrow as pa

    rows = [{"error": None, **line, **task.answer_cells(line)} for line in lines]
    return pa.Table.from_pylist(rows, schema(task))
