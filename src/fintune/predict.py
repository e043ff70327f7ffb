"""`fintune predict`: a text to the console, or a file to JSON lines, streaming."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

from fintune.inference.engine import Engine
from fintune.tasks import Prediction, Record

CHUNK = 64
"""Records answered together; answers are written after each chunk."""


def as_dict(task: str, prediction: Prediction) -> dict[str, Any]:
    """A prediction as JSON has it; probabilities rounded to 6 decimals."""
    answer: dict[str, Any] = {"task": task, "prediction": prediction.value}
    if isinstance(prediction.value, float):
        answer["prediction"] = round(prediction.value, 4)
    if prediction.probabilities:
        answer["probabilities"] = {k: round(p, 6) for k, p in prediction.probabilities.items()}
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
        DataError: the file cannot be read or has no `text` column (or `question`, for qa).
    """
    from fintune.data.readers.own_file import read_inputs

    count = 0
    rows = read_inputs(Path(input_file), engine.tasks[task])
    output = open(output_file, "w", encoding="utf-8") if output_file else nullcontext(sys.stdout)  # noqa: SIM115
    with output as stream:
        while chunk := list(islice(rows, CHUNK)):
            records = [row for row in chunk if isinstance(row, Record)]
            answers = iter(engine.predict(task, records, truncate=truncate))
            for row in chunk:
                if isinstance(row, Record):
                    line = {"id": row.id, **as_dict(task, next(answers))}
                else:
                    line = {"id": row.where, "task": task, "error": row.why}
                stream.write(json.dumps(line, ensure_ascii=False) + "\n")
            stream.flush()
            count += len(records)
    return count
