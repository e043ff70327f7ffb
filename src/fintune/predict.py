"""`fintune predict`: a text to the console, or a file to JSON lines, streaming."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import chain, islice
from pathlib import Path
from typing import Any

from fintune.data.quality import Dropped
from fintune.errors import DataError
from fintune.inference.engine import Engine
from fintune.tasks import Prediction, Record

CHUNK = 64
"""Rows answered together; answers are written after each chunk."""


def as_dict(task: str, prediction: Prediction) -> dict[str, Any]:
    """A prediction as JSON has it: numbers rounded to 4 decimals, probabilities to 6."""
    answer: dict[str, Any] = {"task": task, "prediction": prediction.value}
    if isinstance(prediction.value, float):
        answer["prediction"] = round(prediction.value, 4)
    if prediction.probabilities:
        answer["probabilities"] = {k: round(p, 6) for k, p in prediction.probabilities.items()}
    if prediction.interval:
        answer["interval"] = [round(bound, 4) for bound in prediction.interval]
    if prediction.token_probability is not None:
        answer["token_probability"] = round(prediction.token_probability, 6)
    return answer


def show(engine: Engine, task: str, text: str, question: str | None, truncate: bool) -> None:
    """Print one answer as a line of JSON."""
    record = Record(text=text, question=question)
    print(json.dumps(as_dict(task, engine.predict(task, [record], truncate=truncate)[0]), ensure_ascii=False))


def predict_file(
    engine: Engine, task: str, input_file: str | Path, output_file: str | Path | None, truncate: bool
) -> int:
    """Answer every row of a CSV, JSONL or Parquet file, in order; return the number of answers.

    A row that cannot be answered has a line with `error` in its place.

    Raises:
        DataError: the input cannot be read or has no `text` column (or `question`, for qa), or the output
            is the input, or its folder is not there.
    """
    from fintune.data.readers.own_file import read_inputs

    rows = read_inputs(Path(input_file), engine.tasks[task])
    first = list(islice(rows, CHUNK))  # an input that cannot be read must not cost an earlier output
    if output_file:
        output_file = Path(output_file)
        if output_file.exists() and output_file.samefile(input_file):
            raise DataError(f"output_file is {output_file}, the input itself: name another file.")
        if output_file.is_dir() or not output_file.parent.is_dir():
            raise DataError(f"output_file is {output_file}, which is a folder or in no folder: name a file.")
    count = 0
    output = open(output_file, "w", encoding="utf-8") if output_file else nullcontext(sys.stdout)  # noqa: SIM115
    with output as stream:
        chunk = first
        while chunk:
            for row, answer in zip(chunk, _answers(engine, task, chunk, truncate), strict=True):
                where = row.where if isinstance(row, Dropped) else row.id
                line = {"task": task, "error": answer} if isinstance(answer, str) else as_dict(task, answer)
                stream.write(json.dumps({"id": where, **line}, ensure_ascii=False) + "\n")
                count += not isinstance(answer, str)
            stream.flush()
            chunk = list(islice(rows, CHUNK))
    return count


def _answers(
    engine: Engine, task: str, rows: list[Record | Dropped], truncate: bool
) -> Iterator[Prediction | str]:
    """A prediction for each row, or why there is none."""
    records = [row for row in rows if isinstance(row, Record)]
    answers: list[Prediction | str]
    try:
        answers = list(engine.predict(task, records, truncate=truncate))
    except DataError:  # of one row; the others have answers
        answers = list(chain.from_iterable(_one(engine, task, record, truncate) for record in records))
    found = iter(answers)
    return (row.why if isinstance(row, Dropped) else next(found) for row in rows)


def _one(engine: Engine, task: str, record: Record, truncate: bool) -> list[Prediction] | list[str]:
    try:
        return engine.predict(task, [record], truncate=truncate)
    except DataError as error:
        return [str(error)]
