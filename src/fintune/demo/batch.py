"""A file of rows in, a CSV of answers out, a few rows at a time, so that others are answered in between.

Knows nothing of Gradio.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from time import monotonic
from typing import Any

from fintune.data.raw.readers.own_file import read_inputs
from fintune.data.raw.readers.row_files import RowFile, open_rows, row_files
from fintune.errors import DataError
from fintune.files import atomic_file
from fintune.inference.answer_files import Sheet, write_csv
from fintune.inference.answers import answers
from fintune.inference.engine import Engine
from fintune.tasks.base import Task

CHUNK = 16
"""Rows answered together."""
MAX_ROWS = 10_000
"""Of one file: larger ones are for `fintune predict`."""
SHOWN = 20


@dataclass
class Progress:
    """How far a batch is, and what its first rows and its errors look like."""

    total: int
    columns: list[str]
    """Of the answers: the input's own, then the answer's, then `error`."""
    done: int = 0
    errors: list[tuple[str, str]] = field(default_factory=list)
    """Row and why it has no answer."""
    rows: list[dict[str, Any]] = field(default_factory=list)
    """The first `SHOWN` answers."""
    notes: tuple[str, ...] = ()
    """How the file is read, where that is not plain."""
    started: float = field(default_factory=monotonic)

    @property
    def seconds_left(self) -> float | None:
        return (self.total - self.done) * (monotonic() - self.started) / self.done if self.done else None


def run(
    engine: Engine, task: Task, source: str | Path, target: Path, columns: Mapping[str, str] | None = None
) -> Iterator[Progress]:
    """Answer the rows of `source` into `target`, which is there when the last progress is.

    Args:
        columns: field (`text`, `question`) → column; others as in training.

    Raises:
        DataError: the file is empty, damaged, of an unknown kind, too long, or lacks a column.
    """
    mapped = (columns, engine.columns(task.name))
    file = row_files(source, "the file", columns=(columns or mapped[1]).values())[0]
    next(read_inputs(file, task, *mapped), None)  # a column that is not there is said before rows are counted
    sheet = Sheet(task, open_rows(file)[0])
    progress = Progress(count(file, task), sheet.columns, notes=file.notes)
    yield progress
    rows, raw = read_inputs(file, task, *mapped), open_rows(file)[1]
    made: list[dict[str, Any]] = []
    while chunk := list(islice(rows, CHUNK)):
        lines = answers(engine, task.name, chunk, truncate=True)
        made += (sheet.row(row, line) for line, (_, row) in zip(lines, islice(raw, CHUNK), strict=True))
        progress.errors += ((line["id"], line["error"]) for line in lines if "error" in line)
        progress.rows = made[:SHOWN]
        progress.done = len(made)
        if progress.done == progress.total:
            with atomic_file(target) as stream:
                write_csv(stream, sheet, made)
        yield progress


def count(file: RowFile, task: Task) -> int:
    """The rows of a file.

    Raises:
        DataError: it has none, or more than `MAX_ROWS`.
    """
    total = sum(1 for _ in islice(open_rows(file)[1], MAX_ROWS + 1))
    if total > MAX_ROWS:
        raise DataError(
            f"The file has more than {MAX_ROWS:,} rows, the most that the page answers: split it, or run  "
            f"fintune predict --task {task.name} --input_file FILE"
        )
    if total == 0:
        raise DataError(f"{file.name} has no rows below its header.")
    return total
