"""Writes rows and texts given as Python objects to files that the file readers find."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fintune.config import Recipe
from fintune.errors import DataError, hint
from fintune.recipes import recipe_from

if TYPE_CHECKING:
    from fintune.inference.engine import Engine

FILES = {"train": "file", "validation": "validation_file", "test": "test_file"}
"""Split → the setting of `data.tasks.TASK` that holds its file name."""

LATER = "the argument data"


def let_data_come_later(raw: dict[str, Any]) -> None:
    """Set a placeholder file for each task whose `columns` describe the rows that `data` will give."""
    data = raw.get("data")
    tasks = data.get("tasks") if isinstance(data, dict) else None
    for config in tasks.values() if isinstance(tasks, dict) else ():
        if isinstance(config, dict) and not {"file", "dataset"} & set(config):
            config["file"] = LATER


def with_data(recipe: Recipe, data: Any) -> Recipe:
    """The recipe with each task's rows in files that it names. The files are beside the prepared data and
    named by content, so that rows trained on are never evaluated as other data."""
    from fintune.tasks import task_set

    if data is None:
        return recipe
    names = list(task_set(recipe).names())
    if not isinstance(data, Mapping) or (set(data) <= set(FILES) and not set(data) & set(names)):
        if len(names) != 1:
            raise DataError(
                f"data is for one task, but the recipe has {', '.join(names)}: pass {{task: data}}."
            )
        data = {names[0]: data}
    raw = recipe.model_dump(exclude_unset=True)
    tasks = raw.setdefault("data", {}).setdefault("tasks", {})
    folder = Path(f"{recipe.data.prepared_dir.rstrip('/')}.given")
    for name, rows in data.items():
        if name not in names:
            raise DataError(f"data names {name!r}, which is not a task of the recipe{hint(str(name), names)}")
        parts = rows if isinstance(rows, Mapping) else {"train": rows}
        if "train" not in parts or set(parts) - set(FILES):
            keys = ", ".join(map(str, parts))
            raise DataError(
                f"data of {name} is a dict of {keys}: pass rows (a DataFrame, a list of dicts), or a dict of "
                "rows with train and optionally validation and test."
            )
        files = {FILES[split]: written(given, folder / f"{name}-{split}") for split, given in parts.items()}
        reads = not any(isinstance(given, str | os.PathLike) for given in parts.values())
        gone = {"dataset", *FILES.values(), *(("encoding", "sheet") if reads else ())}
        known = tasks.get(name, {})
        tasks[name] = {key: value for key, value in known.items() if key not in gone} | files
    for name in [name for name, config in tasks.items() if config.get("file") == LATER]:
        del tasks[name]["file"]
    return recipe_from(raw, None, "data").read_from(recipe.plugin_folder)


def written(rows: Any, stem: Path) -> str:
    """The path of a file with these rows: the given path, or a new file named by its content."""
    from fintune.files import atomic_write

    if isinstance(rows, str | os.PathLike):
        return os.fspath(rows)
    kinds = {base.__module__.partition(".")[0] for base in type(rows).__mro__}
    if "datasets" in kinds and not hasattr(rows, "__len__"):  # a streaming dataset
        rows = list(rows)
    if isinstance(rows, list | tuple):
        content, ending = _json_lines(rows, stem.name), "jsonl"
    else:
        content, ending = _parquet(rows, kinds, stem.name), "parquet"
    path = stem.with_name(f"{stem.name}-{hashlib.sha256(content).hexdigest()[:12]}.{ending}")
    if not path.is_file():
        atomic_write(path, content)
    return str(path)


def _json_lines(rows: Sequence[Any], name: str) -> bytes:
    def plain(value: Any) -> Any:
        return value.item() if hasattr(value, "item") else str(value)

    lines = []
    for place, row in enumerate(rows, start=1):
        if not isinstance(row, Mapping):
            raise DataError(f"Row {place:,} of {name} is a {type(row).__name__}: rows are dicts.")
        kept = {str(key): None if value != value else value for key, value in row.items()}
        lines.append(json.dumps(kept, ensure_ascii=False, default=plain))
    return "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogatepass")


def _parquet(rows: Any, kinds: set[str], name: str) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if "pandas" in kinds and hasattr(rows, "columns"):
            table = pa.Table.from_pandas(rows, preserve_index=False)
        elif "polars" in kinds and hasattr(rows, "lazy"):
            table = rows.lazy().collect().to_arrow()
        elif "datasets" in kinds:
            table = rows.with_format("arrow")[:]
        else:
            raise DataError(
                f"{name} is a {type(rows).__name__}: rows are a pandas or polars DataFrame, a "
                "datasets.Dataset, a list of dicts, or a path."
            )
    except pa.ArrowException as error:
        raise DataError(f"{name} has a column of values of several kinds ({error}): make them one.") from None
    stream = io.BytesIO()
    pq.write_table(table, stream)
    return stream.getvalue()


def records_of(engine: Engine, task: str, texts: Any, question: str | None) -> tuple[list[Any], Any]:
    """The records for `predict`'s input, with a `Dropped` for each unreadable one; and its index."""
    from fintune.data.inputs import read_all
    from fintune.data.raw.readers.row_files import row_files
    from fintune.data.records import Dropped
    from fintune.tasks import Record

    chosen, index = engine.tasks[task], None
    if isinstance(texts, str | Mapping):
        texts = [texts]
    if "pandas" in {base.__module__.partition(".")[0] for base in type(texts).__mro__}:
        index = texts.index
    if not hasattr(texts, "columns") and hasattr(texts, "to_list"):  # a Series of pandas or polars
        texts = texts.to_list()
    elif not hasattr(texts, "columns") and hasattr(texts, "tolist"):  # an array
        texts = texts.tolist()
    if isinstance(texts, list | tuple) and not any(isinstance(text, Mapping) for text in texts):
        return [
            Record(text=text, question=question)
            if isinstance(text, str)
            else Dropped("malformed rows", str(place), f"it is {text!r}, which is not a text")
            for place, text in enumerate(texts, start=1)
        ], index
    if question is not None:
        raise DataError("question needs texts that are strings: give each row its own question.")
    if hasattr(texts, "__len__") and not len(texts):
        return [], index
    with tempfile.TemporaryDirectory() as folder:
        files = row_files(written(texts, Path(folder) / "texts"), "texts")
        return list(read_all(files, chosen, None, engine.columns(task))), index
