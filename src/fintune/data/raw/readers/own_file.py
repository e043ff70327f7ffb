"""A user's own CSV, TSV, JSONL, JSON or Parquet file: rows with any column names in, records out.

Rows are read as they come: memory does not grow with the file.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, date, datetime
from typing import Any

from fintune.data.raw.readers.instructions import fields_of, shape_of
from fintune.data.raw.readers.row_files import Cut, RowFile, open_rows
from fintune.data.records import Dropped
from fintune.errors import DataError
from fintune.tasks.base import Record, Task

FIELDS = ("text", "target", "question", "group", "split", "time")
_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    "test": "test",
}
_USUAL_NAMES = {
    "text": ("sentence", "headline", "context", "document", "article", "body", "content", "news", "input"),
    "target": ("label", "sentiment", "answer", "summary", "score", "output", "class", "value"),
    "question": ("query", "q"),
    "time": ("date", "datetime", "timestamp", "published", "created_at"),
}
"""Field → the names its column has elsewhere, the likeliest first."""


def read_own_file(
    file: RowFile,
    task: Task,
    columns: Mapping[str, str],
    key: str,
    split: str | None,
    cut: Cut | None = None,
) -> Iterator[Record | Dropped]:
    """The records of a file.

    Args:
        columns: field → column, where the names differ.
        key: where in the recipe `columns` stands, for error messages.
        split: the split of every row; None takes it from the file's `split` column, if it has one.
        cut: one of `row_files.cuts(file)`, to read that piece alone.

    Raises:
        DataError: the file is empty or of an unknown kind, or lacks a column.
    """
    required = ("text", "target", *(name for name in task.inputs if name != "text"))
    fix = f"Map it in the recipe, such as  {key}: {{FIELD: COLUMN}}"
    for number, fields in _fields(file, task, columns, required, fix, cut=cut):
        where = f"{file.name}:{number}"
        if isinstance(fields, str):
            yield Dropped("malformed rows", where, fields)
        else:
            yield record_of(fields, task, where, split)


def read_inputs(
    file: RowFile,
    task: Task,
    columns: Mapping[str, str] | None = None,
    trained: Mapping[str, str] | None = None,
) -> Iterator[Record | Dropped]:
    """The rows of a file to predict, in order: `text`, for qa `question`, and `id` if there is one.

    An instruction task takes conversations too, up to their last user turn.

    Args:
        columns: field → column, where the names differ.
        trained: the same of the task's training file: for the other fields, where this file has the column.

    Raises:
        DataError: the file is empty, damaged or of an unknown kind, or lacks a column.
    """
    required = tuple(task.inputs)
    names = open_rows(file)[0] if trained else []
    known = {field: name for field, name in (trained or {}).items() if field in required and name in names}
    mapped = {**known, **(columns or {})}
    rows = _fields(
        file, task, mapped, required, "Say which it is, such as  --columns FIELD=COLUMN", answered=False
    )
    for number, fields in rows:
        where = f"{file.name}:{number}"
        if isinstance(fields, str):
            yield Dropped("malformed rows", where, fields)
            continue
        asked = fields.get("question") if task.takes_turns or "question" in task.inputs else None
        record = Record(
            _text(fields.get("text")),
            question=_text(asked) or None,
            id=_text(fields.get("id")) or where,
            system=_text(fields.get("system")),
        )
        problem = task.input_problem(record)
        yield Dropped("malformed rows", where, problem) if problem else record


def record_of(fields: Mapping[str, Any], task: Task, where: str, split: str | None) -> Record | Dropped:
    """A record of `text`, `target` and, where there are any, `question`, `group`, `split` and `time`."""
    raw = fields.get("target")
    try:
        target = task.read_target(raw if task.numeric or isinstance(raw, list) else _text(raw))
    except ValueError as error:
        return Dropped("malformed rows", where, str(error))
    if split is None and (named := _text(fields.get("split"))):
        split = _SPLITS.get(named.casefold())
        if split is None:
            return Dropped("malformed rows", where, f"the split {named!r} is not train, validation or test")
    try:
        time = _time(fields.get("time"))
    except ValueError:
        why = f"the time {fields['time']!r} is not a date such as 2015-07-31 or 2015-07-31T20:00:00+00:00"
        return Dropped("malformed rows", where, why)
    return Record(
        text=_text(fields.get("text")),
        target=target,
        question=_text(fields.get("question")) or None,
        group=_text(fields.get("group")),
        split=split,  # type: ignore[arg-type]
        time=time,
        id=where,
        source=where.rpartition(":")[0],
        system=_text(fields.get("system")),
    )


def _text(value: Any) -> str:
    """A cell as text: nothing is empty, and the whole number 1.0 of a float column is «1»."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def _time(value: Any) -> str:
    """A cell as a date, or as date and time in UTC; what names no zone is taken for UTC.

    Raises:
        ValueError: it is neither.
    """
    if not isinstance(value, date):  # a datetime is a date too
        text = _text(value)
        if not text:
            return ""
        value = date.fromisoformat(text) if len(text) <= 10 else datetime.fromisoformat(text)
    if not isinstance(value, datetime):
        return str(value.isoformat())
    return value.replace(tzinfo=value.tzinfo or UTC).astimezone(UTC).isoformat(timespec="seconds")


def _fields(
    file: RowFile,
    task: Task,
    columns: Mapping[str, str],
    required: tuple[str, ...],
    fix: str,
    answered: bool = True,
    cut: Cut | None = None,
) -> Iterator[tuple[int, Mapping[str, Any] | str]]:
    """Each row's number, and its values by field, or why there are none."""
    column_of = {field: columns.get(field, field) for field in FIELDS}
    shape = None
    if task.takes_turns and not {"text", "target"} & set(columns):
        names, rows = open_rows(file, columns.values(), cut)
        shape = shape_of(names, answered)
        fix = f"Have messages, conversations, or instruction and output instead; or else: {fix}"
    if shape is None:
        wanted = {column_of.get(field, field) for field in (*required, *columns)}
        names, rows = open_rows(file, wanted, cut)
    _check_columns(file.place.shown, names, task, columns, () if shape else required, fix)
    for number, row in rows:
        if isinstance(row, str):
            yield number, row
            continue
        fields = {field: row.get(column) for field, column in column_of.items()}
        fields["id"] = row.get("id")
        if task.takes_turns:
            fields["system"] = row.get("system")
        made = fields_of(row, shape, answered) if shape else {}
        yield number, made if isinstance(made, str) else {**fields, **made}


def usual_column(field: str, names: Sequence[str]) -> str | None:
    """The column that most likely holds a field, by its name alone; None where none has a usual one."""
    by_name = {name.casefold(): name for name in reversed(names)}
    return next((by_name[name] for name in (field, *_USUAL_NAMES.get(field, ())) if name in by_name), None)


def _check_columns(
    path: str,
    names: list[str],
    task: Task,
    columns: Mapping[str, str],
    required: tuple[str, ...],
    fix: str,
) -> None:
    """Refuse a file that lacks what is required or mapped."""
    for field in columns:
        if field not in FIELDS:
            raise DataError(
                f"The columns of task {task.name} map the unknown field '{field}'; "
                f"the fields are: {', '.join(FIELDS)}."
            )
    for field in FIELDS:
        column = columns.get(field, field)
        if column not in names and (field in required or field in columns):
            near = difflib.get_close_matches(column, names, n=1, cutoff=0.7)
            guess = near[0] if near else usual_column(field, names) or names[0]
            raise DataError(
                f"{path} has no column '{column}' for the {field} of task {task.name}; "
                f"its columns are: {', '.join(names)}. "
                f"{fix.replace('FIELD', field).replace('COLUMN', guess)}"
            )
