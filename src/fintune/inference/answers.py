"""Implements `fintune predict`: answers one text on the console, or the rows of files in order."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from fintune.data.inputs import chunks, read_all
from fintune.data.raw.readers.row_files import RowFile, open_rows, row_files
from fintune.data.records import Dropped
from fintune.files import json_line
from fintune.inference.answer_files import Journal, Line, Output
from fintune.inference.engine import Engine
from fintune.tasks import Prediction, Record, Task
from fintune.text.encoding import HALF

Checked = tuple[list[RowFile], Output | None]
"""The input files, and where their answers go; None is standard output."""


def as_dict(task: str, prediction: Prediction) -> Line:
    """A prediction as JSON: numbers rounded to 4 decimals, probabilities to 6."""
    answer: Line = {"task": task, "prediction": prediction.value}
    if isinstance(prediction.value, float):
        answer["prediction"] = round(prediction.value, 4)
    if prediction.probabilities:
        answer["probabilities"] = {k: round(p, 6) for k, p in prediction.probabilities.items()}
    if prediction.interval:
        answer["interval"] = [round(bound, 4) for bound in prediction.interval]
    if prediction.set_probability is not None:
        answer["set_probability"] = round(prediction.set_probability, 6)
    if prediction.token_probability is not None:
        answer["token_probability"] = round(prediction.token_probability, 6)
    return answer


def show(engine: Engine, task: str, text: str, question: str | None, truncate: bool) -> None:
    """Print one answer as a line of JSON."""
    print(json.dumps(as_dict(task, engine.answer(task, text, question, truncate)), ensure_ascii=False))


def predict_file(
    engine: Engine,
    task: str,
    input_file: str | Path,
    output_file: str | Path | None,
    truncate: bool,
    columns: Mapping[str, str] | None = None,
    reading: Mapping[str, str | None] | None = None,
    checked: Checked | None = None,
) -> int:
    """Answer every row of a file or folder at any path, in order; return the number of answers.

    A row that cannot be answered gets a line with `error` in its place. A stopped run continues.

    Args:
        columns: field (`text`, `question`) → column if the names differ; other fields as in training.
        reading: `encoding` and `sheet`, as in `row_files`.
        checked: the result of `check_files`, if the caller has it already: the check reads whole files.

    Raises:
        DataError: the input cannot be read or lacks a column, or the output would overwrite another file.
    """
    chosen = engine.tasks[task]
    trained = engine.columns(task)
    parts, output = checked or check_files(chosen, input_file, output_file, columns, trained, reading)
    rows = read_all(parts, chosen, columns, trained)
    size = engine.rows_at_once(task)

    def ask(done: int) -> Iterable[list[Line]]:
        return (answers(engine, task, chunk, truncate) for chunk in chunks(islice(rows, done, None), size))

    asked = {"model": [str(engine.adapter), engine.base_name, engine.backend_name], "truncate": truncate}
    return write_answers(ask, chosen, parts, output, {**asked, "columns": columns, "reading": reading})


def check_files(
    task: Task,
    input_file: str | Path,
    output_file: str | Path | None,
    columns: Mapping[str, str] | None,
    trained: Mapping[str, str],
    reading: Mapping[str, str | None] | None = None,
) -> Checked:
    """The input files, and where their answers go; None is standard output. Needs no model.

    Args:
        trained: field → column in the task's training file.

    Raises:
        DataError: see `predict_file`.
    """
    output = Output.at(output_file, input_file) if output_file else None
    parts = row_files(input_file, "--input_file", columns=(columns or trained).values(), **reading or {})
    for part in parts:
        next(read_all([part], task, columns, trained), None)  # refuses a damaged file, or a missing column
    return parts, output


def answers(engine: Engine, task: str, rows: list[Record | Dropped], truncate: bool) -> list[Line]:
    """A line for each row: its prediction, or why it has none."""
    records = [row for row in rows if isinstance(row, Record)]
    replies = iter(engine.replies(task, records, truncate=truncate))
    lines = []
    for row in rows:
        answer = row.why if isinstance(row, Dropped) else next(replies).answer
        if isinstance(answer, str):
            line = {"task": task, "error": HALF.sub("�", answer)}
        else:
            line = as_dict(task, answer)
        name = row.where if isinstance(row, Dropped) else row.id
        lines.append({"id": HALF.sub("�", name), **line})
    return lines


def write_answers(
    ask: Callable[[int], Iterable[list[Line]]],
    task: Task,
    parts: Sequence[RowFile],
    output: Output | None,
    asked: Mapping[str, Any],
) -> int:
    """Write chunks of answers as they come; return the number of answers without errors.

    Args:
        ask: maps the number of rows that an earlier run answered to chunks of answers to the rest, in order.
        output: None is standard output.
        asked: see `Output.journal`; the state of the files is added.
    """
    if output is None:
        total = 0
        for chunk in ask(0):
            sys.stdout.writelines(map(json_line, chunk))
            sys.stdout.flush()
            total += sum("error" not in line for line in chunk)
        return total
    state = [(part.name, part.place.size(), part.place.modified()) for part in parts]
    with output.journal({"task": task.to_dict(), "files": state, **asked}) as journal:
        journal.add(_with_bar(ask(journal.done), task, parts, journal))
        output.write(journal, task, parts)
        return sum("error" not in line for line in journal)


def _with_bar(
    chunks: Iterable[list[Line]], task: Task, parts: Sequence[RowFile], journal: Journal
) -> Iterator[list[Line]]:
    """The same chunks, with a bar that knows the number of rows; only on a terminal."""
    seen = sys.stderr.isatty()
    total = sum(1 for part in parts for _ in open_rows(part)[1]) if seen else None
    with tqdm(
        desc=f"predict {task.name}", unit="row", total=total, initial=journal.done, disable=not seen
    ) as bar:
        for chunk in chunks:
            yield chunk
            bar.update(len(chunk))
