"""`fintune predict`: one text answered on the console, or files into JSON lines or Parquet."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterable
from contextlib import nullcontext
from itertools import chain
from pathlib import Path
from typing import Any

from fintune.data.inputs import chunks
from fintune.data.raw.readers.row_files import row_files
from fintune.data.records import Dropped
from fintune.data.storage import Location, locate, refuse_full, write_parquet
from fintune.errors import DataError
from fintune.inference.engine import Engine
from fintune.tasks import Prediction, Record, Task

Line = dict[str, Any]
"""An answer as JSON has it: `id`, `task`, and then `error`, or `prediction` and perhaps `probabilities`."""


def as_dict(task: str, prediction: Prediction) -> Line:
    """A prediction as JSON has it: numbers rounded to 4 decimals, probabilities to 6."""
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
    record = Record(text=text, question=question)
    print(json.dumps(as_dict(task, engine.predict(task, [record], truncate=truncate)[0]), ensure_ascii=False))


def predict_file(
    engine: Engine, task: str, input_file: str | Path, output_file: str | Path | None, truncate: bool
) -> int:
    """Answer every row of a file or folder at any path, in order; return the number of answers.

    A row that cannot be answered has a line with `error` in its place.

    Raises:
        DataError: the input cannot be read or has no `text` column (or `question`, for qa), or the output
            is the input, or a folder that is not empty, or in no folder.
    """
    chosen = engine.tasks[task]
    parts = row_files(input_file, "--input_file")
    check_output(input_file, output_file)
    size = engine.rows_at_once(task)
    rows = chain.from_iterable(chunks(part, chosen, size) for part in parts)
    return write_answers((answers(engine, task, chunk, truncate) for chunk in rows), chosen, output_file)


def answers(engine: Engine, task: str, rows: list[Record | Dropped], truncate: bool) -> list[Line]:
    """A line for each row: its prediction, or why there is none."""
    records = [row for row in rows if isinstance(row, Record)]
    replies = iter(engine.replies(task, records, truncate=truncate))
    lines = []
    for row in rows:
        answer = row.why if isinstance(row, Dropped) else next(replies).answer
        line = {"task": task, "error": answer} if isinstance(answer, str) else as_dict(task, answer)
        name = row.where if isinstance(row, Dropped) else row.id
        lines.append({"id": name.encode("utf-8", "replace").decode(), **line})
    return lines


# Where answers go -----------------------------------------------------------------------------------


def check_output(input_file: str | Path, output_file: str | Path | None) -> None:
    """Raise a DataError for an output that would cost another file, or cannot be written, before any work."""
    if output_file is None:
        return
    source, output = locate(input_file), locate(output_file)
    inside = (
        f"{output.path.rstrip('/')}/".startswith(f"{source.path.rstrip('/')}/") and source.fs == output.fs
    )
    same = source.local and output.local and output.local.exists() and output.local.samefile(source.local)
    if same or inside:
        raise DataError(f"output_file is {output.shown}, the input itself: name another.")
    if _is_folder(output_file, output):
        refuse_full(output, "output_file")
    elif output.local and not output.local.parent.is_dir():
        raise DataError(f"output_file is {output.shown}, which is in no folder: make its folder first.")


def write_answers(lines: Iterable[list[Line]], task: Task, output_file: str | Path | None) -> int:
    """Write chunks of lines as they come; return the number of answers that are no errors.

    A path that ends in `/`, or is a folder, becomes partitioned Parquet; another becomes JSON lines; None is
    standard output. Nothing is opened before the first chunk is there, so that an input which cannot be read
    does not cost an earlier output.
    """
    from tqdm.auto import tqdm

    total = 0

    def counted(chunk: list[Line]) -> list[Line]:
        nonlocal total
        total += sum("error" not in line for line in chunk)
        bar.update(len(chunk))
        return chunk

    # None: only on a terminal, and not among answers that are shown there.
    with tqdm(desc=f"predict {task.name}", unit="row", disable=None if output_file else True) as bar:
        stream = iter(lines)
        given = map(counted, chain([next(stream, [])], stream))
        output = locate(output_file) if output_file else None
        if output is None:
            _write_lines(given, None)
        elif _is_folder(str(output_file), output):
            write_parquet(output, schema(task), (table(chunk, task) for chunk in given))
        elif output.local:
            _write_lines(given, output.local)
        else:  # a remote file appears when it is whole
            with tempfile.TemporaryDirectory() as folder:
                _write_lines(given, Path(folder) / "answers.jsonl")
                output.put(Path(folder) / "answers.jsonl")
    return total


def _is_folder(path: str | Path, place: Location) -> bool:
    return str(path).endswith("/") or place.is_folder()


def _write_lines(lines: Iterable[list[Line]], path: Path | None) -> None:
    """Write each chunk when it is there; None is standard output."""
    output = open(path, "w", encoding="utf-8") if path else nullcontext(sys.stdout)  # noqa: SIM115
    with output as stream:
        for chunk in lines:
            stream.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in chunk)
            stream.flush()


def schema(task: Task) -> Any:
    """The Parquet columns of a task's answers: `id`, `task`, those of its type, `error`."""
    import pyarrow as pa

    types = {"text": pa.string(), "number": pa.float64()}
    own = {name: types[kind] for name, kind in task.answer_columns().items()}
    return pa.schema({"id": pa.string(), "task": pa.string(), **own, "error": pa.string()})


def table(lines: list[Line], task: Task) -> Any:
    """Lines as a table of `schema(task)`."""
    import pyarrow as pa

    rows = [{"error": None, **line, **task.answer_cells(line)} for line in lines]
    return pa.Table.from_pylist(rows, schema(task))
