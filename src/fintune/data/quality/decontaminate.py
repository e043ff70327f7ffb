"""Remove rows that duplicate or nearly duplicate a test text from a user's own training file.

Otherwise the file is unchanged: the same columns, order and bytes (for tables and JSON lines; Parquet by
column; a JSON list item by item; a workbook cell by cell). Rows stream through, except a workbook's; memory
holds only the test sets.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import compress, islice, pairwise, repeat
from pathlib import Path
from typing import Any, BinaryIO

from fintune.config import Recipe, TaskDataConfig
from fintune.data.prepare.dataset import PreparedDataset, load_prepared
from fintune.data.quality.held_out import HeldOut, public_and_prepared
from fintune.data.raw.readers.encodings import UTF8
from fintune.data.raw.readers.instructions import fields_of, shape_of
from fintune.data.raw.readers.json_rows import LINES, LIST, cell, utf8
from fintune.data.raw.readers.own_file import has_column, usual_column
from fintune.data.raw.readers.row_files import BOOKS, ENDINGS, RowFile, kind_of, open_rows, row_files
from fintune.data.raw.readers.streams import PACKED, json_items
from fintune.data.storage import locate
from fintune.errors import ConfigError, DataError
from fintune.files import atomic_file
from fintune.text.near_duplicates import THRESHOLD

Marks = list[tuple[int, bool]]
"""(line number, or row number for Parquet, from 1; whether rows from there on stay), at each change."""


@dataclass
class Removal:
    """What was removed from a file, and what it was compared with."""

    rows: int = 0
    removed: list[dict[str, Any]] = field(default_factory=list)
    """For each removed row: its number (from 1, without blank lines and header), test set, test id,
    similarity."""
    by_set: Counter[str] = field(default_factory=Counter)
    test_sets: dict[str, int] = field(default_factory=dict)
    """Test set → its number of records."""
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
    """Write `path` without the rows that duplicate a test text, and list these in `<output>.removed.jsonl`.

    Args:
        task: use the text column that the recipe maps for this task.
        threshold: similarity from which a text is a near duplicate.

    Raises:
        DataError: the file is missing, empty or of an unknown kind, or `output` is of another kind or the
            same file, or there is no test set to compare with.
    """
    path, output = Path(path), Path(output)
    settings = _settings(recipe, task)
    wanted = settings.columns.get("text")
    _check_kinds(path, output)
    file = row_files(path, "FILE", settings.encoding, settings.sheet, settings.columns.values())[0]
    if file.inside not in (LINES, LIST) or file.paths:
        raise DataError(f"{path} has its rows inside a document: write a list, or one object per line.")
    for note in file.notes:
        say(note)
    names, rows = open_rows(file, [wanted] if wanted else ())
    columns = _chosen(names, wanted, path)
    held_out = public_and_prepared(recipe.data, _prepared(recipe, say), threshold, ignore=(str(path),))
    if not held_out.records:
        raise DataError(
            "There is no test set to compare with: run  fintune data download,  or name the public datasets' "
            "folder with --data_dir, or run  fintune data prepare."
        )
    sizes = ", ".join(f"{name} ({count:,})" for name, count in held_out.records.items())
    say(f"Compared with the test sets of: {sizes}.")
    removal = Removal(test_sets=dict(held_out.records))
    marks: Marks = [(1, True)]  # a header stays
    for number, row in rows:
        stays = _clean(row, columns, shape_of(names), held_out, removal)
        if stays != marks[-1][1]:
            marks.append((int(number), stays))
    with atomic_file(output) as stream:
        _copier(file)(file, stream, _stays(marks))
    with atomic_file(output.with_name(f"{output.name}.removed.jsonl")) as stream:
        for removed in removal.removed:
            stream.write(json.dumps(removed, ensure_ascii=False).encode() + b"\n")
    _tell(removal, output, say)
    return removal


def _clean(
    row: dict[str, Any] | str, columns: list[str], shape: str | None, held_out: HeldOut, removal: Removal
) -> bool:
    """Whether a row duplicates no test text; if it does, record the most similar one."""
    texts: list[str] = []
    if isinstance(row, dict):
        texts = _texts([cell(row, name) for name in columns])
        made = fields_of(row, shape) if shape else ""
        if not isinstance(made, str):  # in the test set's form: an instruction with its input, a conversation
            texts += ["\n".join(filter(None, (made["text"], made.get("question"))))]
    removal.rows += 1
    removal.unread += not texts
    found = [pair for text in texts for pair in held_out.find(text).items()]
    if not found:
        return True
    name, match = max(found, key=lambda pair: pair[1].rank)
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


def _check_kinds(path: Path, output: Path) -> None:
    if path.is_dir():
        raise DataError(f"{path} is a folder: name one file.")
    kinds = [kind_of(locate(name)) for name in (path, output)]
    if not kinds[0][0]:
        raise DataError(f"{path} is of an unknown kind: it must end in {', '.join(ENDINGS)}.")
    if kinds[0] != kinds[1]:
        ending = "".join(kinds[0])
        raise DataError(f"--output_file is {output}, but {path} is a {ending} file: use the same kind.")
    if output.exists() and path.exists() and output.samefile(path):
        raise DataError(f"--output_file is the file itself ({path}): name another.")


def _settings(recipe: Recipe, task: str | None) -> TaskDataConfig:
    """The recipe's settings for a task's files; without a task, none, so the usual column names apply."""
    known = [*recipe.multi_task.task_weights, *(custom.name for custom in recipe.custom_task)]
    if task is not None and task not in known:
        raise ConfigError(f"--task is {task!r}, but the recipe's tasks are: {', '.join(known)}.")
    return recipe.data.tasks.get(task or "", TaskDataConfig())


def _prepared(recipe: Recipe, say: Callable[[str], None]) -> PreparedDataset | None:
    folder = Path(recipe.data.prepared_dir)
    if not (folder / "manifest.json").is_file():
        say(f"There is no prepared data in {folder}: only the public test sets are compared.")
        return None
    return load_prepared(folder)


def _tell(removal: Removal, output: Path, say: Callable[[str], None]) -> None:
    for name, count in removal.by_set.most_common():
        say(f"{count:>7,} {name}")
    if removal.unread:
        say(f"{removal.unread:,} rows have no text to compare; they stay.")
    kept = removal.rows - len(removal.removed)
    say(f"{len(removal.removed):,} of {removal.rows:,} rows removed; {kept:,} kept in {output}.")
    say(f"The removed rows are listed in {output}.removed.jsonl.")


# Texts of a row -----------------------------------------------------------------------------------


def _chosen(names: list[str], wanted: str | None, path: Path) -> list[str]:
    """The columns to compare: the mapped one, else one with a usual name, else all."""
    if wanted is not None and not has_column(names, wanted):
        raise DataError(f"{path} has no column '{wanted}'; its columns are: {', '.join(names)}.")
    usual = None if shape_of(names) else usual_column("text", names)
    column = wanted or usual
    return [column] if column else names


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


# Copying the rows that stay -------------------------------------------------------------------------


def _stays(marks: Marks) -> Iterator[bool]:
    """Whether line (or row) 1, 2, 3, … stays; endless."""
    for (begin, stays), (end, _) in pairwise(marks):
        yield from repeat(stays, end - begin)
    yield from repeat(marks[-1][1])


def _copier(file: RowFile) -> Callable[[RowFile, BinaryIO, Iterator[bool]], None]:
    if file.kind == ".parquet":
        return _copy_parquet
    if file.kind in BOOKS:
        return _copy_book
    return _copy_items if file.inside == LIST else _copy_lines


def _copy_lines(file: RowFile, output: BinaryIO, stays: Iterator[bool]) -> None:
    encoding = "utf-8" if file.encoding == UTF8 else file.encoding  # keeps a byte order mark
    with (
        io.TextIOWrapper(file.open(), encoding, newline="") as lines,  # keeps line ends
        _packed(file, output) as target,
        io.TextIOWrapper(target, encoding, newline="") as kept,
    ):
        kept.writelines(line for line, stay in zip(lines, stays, strict=False) if stay)


def _copy_items(file: RowFile, output: BinaryIO, stays: Iterator[bool]) -> None:
    with utf8(file, file.encoding) as stream, _packed(file, output) as target:
        items = json_items(stream, file.shown, "write a list of objects")
        before = b"[\n"
        for item in compress(items, stays):
            target.write(before + json.dumps(item, ensure_ascii=False).encode())
            before = b",\n"
        target.write(b"\n]\n" if before[:1] == b"," else b"[]\n")


def _copy_book(file: RowFile, output: BinaryIO, stays: Iterator[bool]) -> None:
    import openpyxl

    with file.open() as stream:
        book = openpyxl.load_workbook(stream)
    sheet = book[file.sheet]
    gone = [row for row, stay in zip(range(1, sheet.max_row + 1), stays, strict=False) if not stay]
    for row in reversed(gone):
        sheet.delete_rows(row)
    book.save(output)


def _packed(file: RowFile, output: BinaryIO) -> Any:
    """A stream that compresses like the file, and leaves `output` open."""
    import pyarrow as pa

    plain = open(output.fileno(), "wb", closefd=False)  # noqa: SIM115
    return pa.CompressedOutputStream(pa.PythonFile(plain, "w"), PACKED[file.packed]) if file.packed else plain


def _copy_parquet(file: RowFile, output: BinaryIO, stays: Iterator[bool]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with (
        file.open() as stream,
        pq.ParquetFile(stream) as source,
        pq.ParquetWriter(output, source.schema_arrow, compression="zstd") as writer,
    ):
        for batch in source.iter_batches(batch_size=64):
            writer.write_batch(batch.filter(pa.array(islice(stays, batch.num_rows), pa.bool_())))
