"""A file of rows in, a CSV of answers out, a few rows at a time, so that others are answered in between.

Knows nothing of Gradio.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from time import monotonic
from typing import Any

from fintune.data.raw.readers.own_file import read_inputs
from fintune.data.raw.readers.row_files import RowFile, row_files
from fintune.data.records import Dropped
from fintune.errors import DataError
from fintune.inference.answers import answers
from fintune.inference.engine import Engine
from fintune.tasks.base import Record, Task

CHUNK = 16
"""Rows answered together."""
MAX_ROWS = 10_000
"""Of one file: larger ones are for `fintune predict`."""
SHOWN = 20
_FORMULA = re.compile(r"^[=+@\t\r-]")


@dataclass
class Progress:
    """How far a batch is, and what its first rows and its errors look like."""

    total: int
    done: int = 0
    errors: list[dict[str, Any]] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    """The first `SHOWN` answers."""
    notes: tuple[str, ...] = ()
    """How the file is read, where that is not plain."""
    started: float = field(default_factory=monotonic)

    @property
    def seconds_left(self) -> float | None:
        return (self.total - self.done) * (monotonic() - self.started) / self.done if self.done else None


def columns(task: Task) -> list[str]:
    """The columns of a task's answers."""
    inputs = sorted(task.inputs, key=lambda name: name != "text")
    return ["id", *inputs, *(name for name in task.answer_columns() if name != "probabilities"), "error"]


def run(engine: Engine, task: Task, source: str | Path, target: Path) -> Iterator[Progress]:
    """Answer the rows of `source` into `target`, which is whole when the last progress is there.

    Raises:
        DataError: the file is empty, damaged, of an unknown kind, too long, or lacks a column.
    """
    file = row_files(source, "the file")[0]
    progress = Progress(count(file, task), notes=file.notes)
    yield progress
    rows = read_inputs(file, task)
    with target.open("w", encoding="utf-8-sig", newline="") as stream:  # the mark tells Excel the encoding
        writer = csv.DictWriter(stream, columns(task), restval="", extrasaction="ignore")
        writer.writeheader()
        while chunk := list(islice(rows, CHUNK)):
            for row, line in zip(chunk, answers(engine, task.name, chunk, truncate=True), strict=True):
                answer = flat(task, row, line)
                writer.writerow({key: safe(value) for key, value in answer.items()})
                if len(progress.rows) < SHOWN:
                    progress.rows.append(answer)
                if "error" in line:
                    progress.errors.append(answer)
            progress.done += len(chunk)
            yield progress


def count(file: RowFile, task: Task) -> int:
    """The rows of a file.

    Raises:
        DataError: it has none, or more than `MAX_ROWS`.
    """
    total = sum(1 for _ in islice(read_inputs(file, task), MAX_ROWS + 1))
    if total > MAX_ROWS:
        raise DataError(
            f"The file has more than {MAX_ROWS:,} rows: use  "
            f"fintune predict --task {task.name} --input_file FILE."
        )
    if total == 0:
        raise DataError(f"{file.name} has no rows below its header.")
    return total


def flat(task: Task, row: Record | Dropped, line: dict[str, Any]) -> dict[str, Any]:
    """An answer's line (see `fintune.inference.answers.Line`) with its input, as a row of `columns(task)`."""
    found = {"id": line["id"], "error": line.get("error"), **task.answer_cells(line)}
    if isinstance(row, Record):
        found |= {"text": row.text, "question": row.question}
    return found


def safe(value: Any) -> Any:
    """A cell that a spreadsheet shows and does not compute: a text that looks like a formula gets a quote.

    See OWASP, «CSV injection»; numbers, and a summary's dashes as bullets, stay readable.
    """
    if not isinstance(value, str):
        return value
    value = re.sub(r"(?m)^- ", "• ", value)
    return f"'{value}" if _FORMULA.match(value) and not re.fullmatch(r"[+-]?[\d.,]+ ?%?", value) else value
