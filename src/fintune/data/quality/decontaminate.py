"""A user's own training file without what repeats a test set, exactly or nearly.

The cleaned file is the file as it was, without those rows: the same columns, order and bytes (CSV, TSV and
JSONL row by row; Parquet by column). Rows stream through; memory holds the test sets only.
"""

from __future__ import annotations

import contextlib
import csv
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from fintune.config import Recipe
from fintune.data.prepare.dataset import PreparedDataset, load_prepared
from fintune.data.quality.held_out import Found, HeldOut, public_and_prepared
from fintune.errors import ConfigError, DataError
from fintune.files import atomic_file
from fintune.text.near_duplicates import THRESHOLD

TEXT_COLUMNS = ("text", "sentence", "headline", "context", "document", "article", "body", "content", "news")
"""Names a text column usually has, the likeliest first; a file without one is compared by all its texts."""
_KINDS = {".csv": "csv", ".tsv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}

Clean = Callable[[list[str]], bool]
"""Takes a row's texts, in the order of the file; True if the row may stay."""


@dataclass
class Removal:
    """What was removed from a file, and what it was compared with."""

    rows: int = 0
    removed: list[dict[str, Any]] = field(default_factory=list)
    """For each row: its number (from 1, blank lines and the header aside), test set, test id, similarity."""
    by_set: Counter[str] = field(default_factory=Counter)
    test_sets: dict[str, int] = field(default_factory=dict)
    """Test set → records in it."""
    unread: int = 0
    """Rows that could not be read, and stay."""


def decontaminate(
    path: str | Path,
    output: str | Path,
    recipe: Recipe,
    *,
    task: str | None = None,
    threshold: float = THRESHOLD,
    say: Callable[[str], None] = print,
) -> Removal:
    """Write `path` without the rows that repeat a test text, and `<output>.removed.jsonl` which names them.

    Args:
        task: take the text column that the recipe maps for this task.
        threshold: similarity from which a text is a near duplicate.

    Raises:
        DataError: the file is missing, empty or of an unknown kind, or `output` is of another kind or the
            same file, or there is no test set to compare with.
    """
    path, output = Path(path), Path(output)
    kind, column = _kind(path, output), _column(recipe, task)
    held_out = public_and_prepared(recipe.data, _prepared(recipe, say), threshold, ignore=(str(path),))
    if not held_out.records:
        raise DataError(
            "There is no test set to compare with: run  fintune data download,  or name the public datasets' "
            "folder with --data_dir, or run  fintune data prepare."
        )
    sizes = ", ".join(f"{name} ({count:,})" for name, count in held_out.records.items())
    say(f"Compared with the test sets of: {sizes}.")
    removal = Removal(test_sets=dict(held_out.records))

    def clean(texts: list[str]) -> bool:
        removal.rows += 1
        removal.unread += not texts
        found = _worst(held_out, texts)
        if found is None:
            return True
        name, match = found
        how = "exact" if match.exact else "near"
        removal.by_set[f"{name}, {how}"] += 1
        removal.removed.append(
            {
                "row": removal.rows,
                "test_set": name,
                "test_id": match.id,
                "how": how,
                "similarity": round(match.similarity, 4),
            }
        )
        return False

    with atomic_file(output) as stream:
        try:
            {"csv": _csv, "jsonl": _jsonl, "parquet": _parquet}[kind](path, stream, column, clean)
        except UnicodeDecodeError as error:
            raise DataError(f"{path} is not UTF-8 text (byte {error.start}): save it as UTF-8.") from None
    with atomic_file(output.with_name(f"{output.name}.removed.jsonl")) as stream:
        for row in removal.removed:
            stream.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
    _tell(removal, output, say)
    return removal


def _kind(path: Path, output: Path) -> str:
    if not path.is_file():
        raise DataError(f"There is no file {path}.")
    for name in (path, output):
        if name.suffix.lower() not in _KINDS:
            raise DataError(f"{name} is of an unknown kind: it must end in .csv, .tsv, .jsonl or .parquet.")
    kind = _KINDS[path.suffix.lower()]
    if _KINDS[output.suffix.lower()] != kind:
        raise DataError(f"--output_file is {output}, but {path} is a {path.suffix} file: use the same kind.")
    if output.exists() and output.samefile(path):
        raise DataError(f"--output_file is the file itself ({path}): name another.")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty.")
    return kind


def _column(recipe: Recipe, task: str | None) -> str | None:
    """The column that the recipe maps to a task's text; None leaves it to the usual names."""
    known = [*recipe.multi_task.task_weights, *(custom.name for custom in recipe.custom_task)]
    if task is None:
        return None
    if task not in known:
        raise ConfigError(f"--task is {task!r}, but the recipe's tasks are: {', '.join(known)}.")
    return recipe.data.tasks[task].columns.get("text") if task in recipe.data.tasks else None


def _prepared(recipe: Recipe, say: Callable[[str], None]) -> PreparedDataset | None:
    folder = Path(recipe.data.prepared_dir)
    if not (folder / "manifest.json").is_file():
        say(f"There is no prepared data in {folder}: only the public test sets are compared.")
        return None
    return load_prepared(folder)


def _worst(held_out: HeldOut, texts: list[str]) -> tuple[str, Found] | None:
    """The most similar test text of all sets; an exact one ends the search."""
    worst: tuple[str, Found] | None = None
    for text in texts:
        for name, found in held_out.find(text).items():
            if found.exact:
                return name, found
            if worst is None or found.similarity > worst[1].similarity:
                worst = name, found
    return worst


def _tell(removal: Removal, output: Path, say: Callable[[str], None]) -> None:
    for name, count in removal.by_set.most_common():
        say(f"{count:>7,} {name}")
    if removal.unread:
        say(f"{removal.unread:,} rows hold no text that could be compared; they stay.")
    kept = removal.rows - len(removal.removed)
    say(f"{len(removal.removed):,} of {removal.rows:,} rows removed; {kept:,} kept in {output}.")
    say(f"The removed rows are named in {output}.removed.jsonl.")


# A row's texts ------------------------------------------------------------------------------------


def _chosen(names: list[str], column: str | None, path: Path) -> list[str]:
    """The columns that are compared: the one mapped, else one of a usual name, else all."""
    if column is not None:
        if column not in names:
            raise DataError(f"{path} has no column '{column}'; its columns are: {', '.join(names)}.")
        return [column]
    by_name = {name.casefold(): name for name in reversed(names)}
    usual = next((by_name[name] for name in TEXT_COLUMNS if name in by_name), None)
    return names if usual is None else [usual]


def _texts(values: list[Any]) -> list[str]:
    """The texts in cells: strings, those inside lists and objects (chat messages), and their paragraphs."""
    texts: dict[str, None] = {}
    for value in values:
        if isinstance(value, str) and value.strip():
            texts[value] = None
            paragraphs = value.split("\n\n")
            if len(paragraphs) > 1:  # an instruction, then the text
                texts.update(dict.fromkeys(part for part in paragraphs if len(part.split()) > 4))
        elif isinstance(value, list):
            texts.update(dict.fromkeys(_texts(value)))
        elif isinstance(value, dict):
            texts.update(dict.fromkeys(_texts(list(value.values()))))
    return list(texts)


# The kinds of files -------------------------------------------------------------------------------


def _jsonl(path: Path, output: BinaryIO, column: str | None, clean: Clean) -> None:
    with path.open("rb") as lines:
        for line in lines:
            if not line.strip() or clean(_texts_of_line(line, column, path)):
                output.write(line)


def _texts_of_line(line: bytes, column: str | None, path: Path) -> list[str]:
    try:
        value = json.loads(line.decode("utf-8-sig"))
    except json.JSONDecodeError:
        return []
    if not isinstance(value, dict):
        return _texts([value])
    if column is not None and column not in value:
        return []
    return _texts([value[name] for name in _chosen(list(value), column, path)])


def _csv(path: Path, output: BinaryIO, column: str | None, clean: Clean) -> None:
    csv.field_size_limit(2**31 - 1)  # a transcript is longer than the default allows
    with path.open("rb") as source:
        taken: list[bytes] = []

        def lines() -> Iterator[str]:
            for line in source:
                taken.append(line)
                yield line.decode("utf-8-sig" if source.tell() == len(line) else "utf-8")

        def raw() -> bytes:
            row = b"".join(taken)
            taken.clear()
            return row

        header = source.readline().decode("utf-8-sig")
        delimiter = max(",;\t", key=header.count)
        source.seek(0)
        rows = csv.reader(lines(), delimiter=delimiter)
        names = [name.strip() for name in next(rows, [])]
        places = [names.index(name) for name in _chosen(names, column, path)]
        output.write(raw())
        for row in rows:
            line = raw()
            if not row or clean(_texts([row[i] for i in places if i < len(row)])):
                output.write(line)


def _parquet(path: Path, output: BinaryIO, column: str | None, clean: Clean) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        source = pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise DataError(f"{path} is not a Parquet file, or it is damaged: {error}") from None
    with source, contextlib.ExitStack() as stack:
        schema = source.schema_arrow
        chosen = _chosen(schema.names, column, path)
        writer = stack.enter_context(pq.ParquetWriter(output, schema, compression="zstd"))
        for batch in source.iter_batches(batch_size=4096):
            rows = batch.select(chosen).to_pylist()
            keep = pa.array([clean(_texts(list(row.values()))) for row in rows], pa.bool_())
            writer.write_batch(batch.filter(keep))
