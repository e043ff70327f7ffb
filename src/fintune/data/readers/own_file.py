"""A user's own CSV, TSV, JSONL or Parquet file: rows with any column names in, records out."""

from __future__ import annotations

import csv
import difflib
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fintune.data.quality import Dropped
from fintune.errors import DataError
from fintune.tasks.base import Record, Task

FIELDS = ("text", "target", "question", "group", "split")
_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    "test": "test",
}
_USUAL_NAMES = {
    "text": ("sentence", "headline", "context", "document", "article", "body", "content", "news", "input"),
    "target": ("label", "sentiment", "answer", "summary", "score", "output", "class", "value"),
    "question": ("query", "q"),
}

Row = tuple[int, dict[str, Any] | str]
"""A line (or row) number from 1, with the row's values by column, or why there are none."""


def read_own_file(
    path: Path, task: Task, columns: Mapping[str, str], key: str, split: str | None
) -> Iterator[Record | Dropped]:
    """The records of a file.

    Args:
        columns: field → column, where the names differ.
        key: where in the recipe `columns` stands, for error messages.
        split: the split of every row; None takes it from the file's `split` column, if it has one.

    Raises:
        DataError: the file is empty or of an unknown kind, or lacks a column.
    """
    names, rows = _open(path)
    required = ("text", "target", *(("question",) if task.type == "qa" else ()))
    column_of = _columns(path, names, task, columns, required, f"Map it in the recipe, such as  {key}: ")
    for number, row in rows:
        where = f"{path.name}:{number}"
        if isinstance(row, str):
            yield Dropped("malformed rows", where, row)
        else:
            fields = {field: row.get(column) for field, column in column_of.items()}
            yield record_of(fields, task, where, split)


def record_of(fields: Mapping[str, Any], task: Task, where: str, split: str | None) -> Record | Dropped:
    """A record of `text`, `target` and, where there are any, `question`, `group` and `split`."""
    target: Any = fields.get("target")
    if task.type == "regression":
        try:
            target = float(target)
        except (TypeError, ValueError):
            return Dropped("malformed rows", where, f"the target {target!r} is not a number")
    else:
        target = _text(target)
    if split is None and (named := _text(fields.get("split"))):
        split = _SPLITS.get(named.casefold())
        if split is None:
            return Dropped("malformed rows", where, f"the split {named!r} is not train, validation or test")
    return Record(
        text=_text(fields.get("text")),
        target=target,
        question=_text(fields.get("question")) or None,
        group=_text(fields.get("group")),
        split=split,  # type: ignore[arg-type]
        id=where,
        source=where.rpartition(":")[0],
    )


def _text(value: Any) -> str:
    """A cell as text: nothing is empty, and the whole number 1.0 of a float column is «1»."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def _columns(
    path: Path | str,
    names: list[str],
    task: Task,
    columns: Mapping[str, str],
    required: tuple[str, ...],
    fix: str,
) -> dict[str, str]:
    """Field → column for the fields the file has; refuses what is missing."""
    for field in columns:
        if field not in FIELDS:
            raise DataError(
                f"The columns of task {task.name} map the unknown field '{field}'; "
                f"the fields are: {', '.join(FIELDS)}."
            )
    found = {}
    for field in FIELDS:
        column = columns.get(field, field)
        if column in names:
            found[field] = column
        elif field in required or field in columns:
            near = difflib.get_close_matches(column, names, n=1, cutoff=0.7)
            usual = [name for name in names if name.casefold() in _USUAL_NAMES.get(field, ())]
            guess = (near or usual or [names[0]])[0]
            raise DataError(
                f"{path} has no column '{column}' for the {field} of task {task.name}; "
                f"its columns are: {', '.join(names)}. "
                f"{fix}{{{field}: {guess}}}"
            )
    return found


def _open(path: Path) -> tuple[list[str], Iterator[Row]]:
    """The column names and the rows of a file, by its suffix."""
    kinds = {".csv": _csv, ".tsv": _csv, ".jsonl": _jsonl, ".ndjson": _jsonl, ".parquet": _parquet}
    if path.suffix.lower() not in kinds:
        raise DataError(f"{path} is of an unknown kind: it must end in .csv, .tsv, .jsonl or .parquet.")
    try:
        if path.stat().st_size == 0:
            raise DataError(f"{path} is empty.")
        return kinds[path.suffix.lower()](path)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}): save it as UTF-8.") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from None


def _csv(path: Path) -> tuple[list[str], Iterator[Row]]:
    content = path.read_text(encoding="utf-8-sig")
    header = content.partition("\n")[0]
    rows = csv_rows(content, max(",;\t", key=header.count))
    _, names = next(rows, (0, []))
    if not names:
        raise DataError(f"{path} is empty.")
    names = [name.strip() for name in names]

    def cells() -> Iterator[Row]:
        for number, row in rows:
            if len(row) == len(names):
                yield number, dict(zip(names, row, strict=True))
            else:
                yield number, f"it has {len(row)} cells, but the header has {len(names)}"

    return names, cells()


def csv_rows(content: str | Iterable[str], delimiter: str = ",") -> Iterator[tuple[int, list[str]]]:
    """The rows of a CSV text (or its lines) that are not blank, with the line number each begins on."""
    csv.field_size_limit(2**31 - 1)  # a transcript is longer than the default allows
    lines = io.StringIO(content, newline="") if isinstance(content, str) else content
    reader = csv.reader(lines, delimiter=delimiter)
    begin = 1
    for row in reader:
        if row:
            yield begin, row
        begin = reader.line_num + 1


def _jsonl(path: Path) -> tuple[list[str], Iterator[Row]]:
    rows: list[Row] = []
    names: dict[str, None] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            rows.append((number, f"it is not valid JSON ({error})"))
            continue
        if isinstance(value, dict):
            names.update(dict.fromkeys(value))
            rows.append((number, value))
        else:
            rows.append((number, "it is not a JSON object"))
    if not names:
        first = next((f": line {number}: {row}" for number, row in rows), "")
        raise DataError(f"{path} holds no JSON object, one a line{first}.")
    return list(names), iter(rows)


def _parquet(path: Path) -> tuple[list[str], Iterator[Row]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise DataError(f"{path} is not a Parquet file, or it is damaged: {error}") from None
    return table.column_names, iter(list(enumerate(table.to_pylist(), start=1)))
