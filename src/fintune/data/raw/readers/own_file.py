"""Read a user's own file of rows (`row_files.KINDS`): any column names in, records out.

Rows are streamed: memory does not grow with the file.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from fintune.data.raw.readers import times
from fintune.data.raw.readers.cells import plain
from fintune.data.raw.readers.instructions import each_answer, fields_of, shape_of
from fintune.data.raw.readers.json_rows import cell
from fintune.data.raw.readers.named_documents import document_text
from fintune.data.raw.readers.row_files import Cut, RowFile, open_rows
from fintune.data.records import Dropped
from fintune.errors import DataError
from fintune.tasks.base import Record, Task

FIELDS = ("text", "document", "target", "question", "group", "split", "time")
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
"""Field → usual names of its column, likeliest first."""


def read_own_file(
    file: RowFile,
    task: Task,
    columns: Mapping[str, str],
    key: str,
    split: str | None,
    cut: Cut | None = None,
    time_format: str = "",
) -> Iterator[Record | Dropped]:
    """The records of a file.

    Args:
        columns: field → column, where the names differ: a name, a path of names in an object
            (`payload.headline`), or a path with `[]` that locates the rows (`data.items[].headline`).
        key: the recipe key of `columns`, for error messages.
        split: the split of every row; None takes it from the file's `split` column, if any.
        cut: one of `row_files.cuts(file)`, to read only that piece.
        time_format: as in `times.moment`.

    Raises:
        DataError: the file is empty or damaged, or lacks a column.
    """
    required = ("target", *_inputs(task, columns))
    fix = f"Map it in the recipe, such as  {key}: {{FIELD: COLUMN}}"
    for number, fields in _fields(file, task, columns, required, fix, cut=cut):
        where = f"{file.name}:{number}"
        if isinstance(fields, str):
            yield Dropped("malformed rows", where, fields)
        else:
            yield record_of(fields, task, where, split, time_format)


def time_form(files: Iterable[RowFile], columns: Mapping[str, str], key: str) -> tuple[str, str]:
    """`times.form_of` for the times of some files together."""
    column = columns.get("time", "time")

    def values() -> Iterator[tuple[str, Any]]:
        for file in files:
            names, rows = open_rows(file, columns.values())
            if has_column(names, column):
                for number, row in rows:
                    value = cell(row, column) if isinstance(row, dict) else None
                    if value not in (None, ""):
                        yield f"{file.name}:{number}", value

    return times.form_of(values(), key)


def read_inputs(
    file: RowFile,
    task: Task,
    columns: Mapping[str, str] | None = None,
    trained: Mapping[str, str] | None = None,
) -> Iterator[Record | Dropped]:
    """The rows of a file to predict, in order: `text`, for qa `question`, and `id` if there is one.

    An instruction task also takes conversations, up to their last user turn.

    Args:
        columns: field → column, where the names differ.
        trained: the same for the task's training file; applies to other fields if this file has the column.

    Raises:
        DataError: the file is empty, damaged or of an unknown kind, or lacks a column.
    """
    names = open_rows(file)[0] if trained else []
    usual = (trained or {}).items()
    asked_for = (*task.inputs, "document")
    known = {field: name for field, name in usual if field in asked_for and has_column(names, name)}
    mapped = {**known, **(columns or {})}
    if "text" in (columns or {}):
        mapped.pop("document", None)
    fix = "Say which it is, such as  --columns FIELD=COLUMN"
    rows = _fields(file, task, mapped, _inputs(task, mapped), fix, answered=False)
    for number, fields in rows:
        where = f"{file.name}:{number}"
        if isinstance(fields, str):
            yield Dropped("malformed rows", where, fields)
            continue
        asked = fields.get("question") if task.takes_turns or "question" in task.inputs else None
        try:
            record = Record(
                plain(fields.get("text"), "text"),
                question=plain(asked, "question") or None,
                id=plain(fields.get("id"), "id") or where,
                system=plain(fields.get("system"), "system message"),
                turns=fields.get("turns") or "",
            )
        except ValueError as error:
            yield Dropped("malformed rows", where, str(error))
            continue
        problem = task.input_problem(record)
        yield Dropped("malformed rows", where, problem) if problem else record


def _inputs(task: Task, columns: Mapping[str, str]) -> tuple[str, ...]:
    """The fields that a task needs in a row: a mapped document replaces the text."""
    return tuple("document" if name == "text" and "document" in columns else name for name in task.inputs)


def record_of(
    fields: Mapping[str, Any], task: Task, where: str, split: str | None, time_format: str = ""
) -> Record | Dropped:
    """A record of `text`, `target` and, where there are any, `question`, `group`, `split` and `time`."""
    raw = fields.get("target")
    try:
        if isinstance(raw, str):
            raw = raw if task.labels else raw.strip()  # a label's spaces are counted where it is read
        elif not (task.numeric or isinstance(raw, list | tuple | dict)):
            raw = plain(raw, "target")
        named = "" if split else plain(fields.get("split"), "split")
        split = split or _SPLITS.get(named.casefold())
        if named and split is None:
            raise ValueError(f"the split {named!r} is not train, validation or test")
        return Record(
            text=plain(fields.get("text"), "text"),
            target=task.read_target(raw),
            question=plain(fields.get("question"), "question") or None,
            group=plain(fields.get("group"), "group") or fields.get("conversation", ""),
            split=split,  # type: ignore[arg-type]
            time=_time(fields.get("time"), time_format),
            id=where,
            source=where.rpartition(":")[0],
            system=plain(fields.get("system"), "system message"),
            turns=fields.get("turns") or "",
        )
    except ValueError as error:
        return Dropped("malformed rows", where, str(error))


def _time(value: Any, form: str) -> str:
    if value is None or value != value or value == "":  # NaN and pandas' NaT count as empty
        return ""
    try:
        return times.moment(value, form)
    except ValueError as error:
        told = (
            f"{form!r} of time_format" if form else "a date such as 2015-07-31 or 2015-07-31T20:00:00+00:00"
        )
        raise ValueError(f"the time {str(value)!r} is not {told} ({error})") from None


def _fields(
    file: RowFile,
    task: Task,
    columns: Mapping[str, str],
    required: tuple[str, ...],
    fix: str,
    answered: bool = True,
    cut: Cut | None = None,
) -> Iterator[tuple[int | str, Mapping[str, Any] | str]]:
    """Each row's number, and its values by field, or why there are none."""
    column_of = {field: columns.get(field, field) for field in FIELDS}
    shape = None
    if task.takes_turns and not {"text", "target"} & set(columns):
        names, rows = open_rows(file, _wanted(columns.values()), cut)
        shape = shape_of(names, answered)
        fix = f"Provide messages, conversations, or instruction and output; or else: {fix}"
    if shape is None:
        wanted = {column_of.get(field, field) for field in (*required, *columns)}
        names, rows = open_rows(file, _wanted(wanted), cut)
    _check_columns(file.shown, names, task, columns, () if shape else required, fix)
    for number, row in rows:
        if isinstance(row, str):
            yield number, row
            continue
        fields = {field: cell(row, column) for field, column in column_of.items()}
        if "document" in columns:
            try:
                fields["text"] = document_text(file, plain(fields["document"], "document"))
            except ValueError as error:
                yield number, str(error)
                continue
        fields["id"] = row.get("id")
        if task.takes_turns:
            fields["system"] = row.get("system")
        if shape is None:
            yield number, fields
            continue
        rows_made = list(each_answer(row, shape)) if answered and task.every_answer else [row]
        for place, part in enumerate(rows_made, start=1):
            made = fields_of(part, shape, answered)
            own = f"{number}.{place}" if len(rows_made) > 1 else number
            together = {"conversation": f"{file.name}:{number}"} if len(rows_made) > 1 else {}
            yield own, made if isinstance(made, str) else {**fields, **made, **together}


def _wanted(columns: Iterable[str]) -> set[str]:
    """The names that a file must have for some columns: the first name of a path inside an object."""
    return {column if "[]" in column else column.partition(".")[0] for column in columns}


def has_column(names: Sequence[str], column: str) -> bool:
    """Whether a file has a column, which may be a path inside an object."""
    return column in names or ("[]" not in column and column.partition(".")[0] in names)


def usual_column(field: str, names: Sequence[str]) -> str | None:
    """The column that most likely holds a field, by name; None if none has a usual name."""
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
    """Refuse a file that lacks a required or mapped column."""
    if {"text", "document"} <= set(columns):
        raise DataError(f"The columns of task {task.name} map text and document: keep one of them.")
    for field in columns:
        if field not in FIELDS:
            raise DataError(
                f"The columns of task {task.name} map the unknown field '{field}'; "
                f"the fields are: {', '.join(FIELDS)}."
            )
    for field in FIELDS:
        column = columns.get(field, field)
        if not has_column(names, column) and (field in required or field in columns):
            near = difflib.get_close_matches(column, names, n=1, cutoff=0.7)
            guess = near[0] if near else usual_column(field, names) or names[0]
            columns_are = f"its columns are: {', '.join(names)}."
            fix = fix.replace("FIELD", field).replace("COLUMN", guess)
            raise DataError(
                f"{path} has no column '{column}' for the {field} of task {task.name}; {columns_are} {fix}",
                f"{path} has no column '{column}'; {columns_are} Choose the one with the {field}.",
            )
