"""Inspect a user's own files: guess columns, task type, labels, lengths and times.

The guess comes from the files alone and is for a person to check: `fintune init` asks about the rest.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from fintune.data.raw.readers.instructions import shape_of
from fintune.data.raw.readers.own_file import time_form, usual_column
from fintune.data.raw.readers.row_files import RowFile, open_rows, row_files
from fintune.data.records import text_key
from fintune.errors import DataError

ROWS = 50_000
"""Rows of a file to look at."""
VALUES = 2_000
"""The most different values of a column to count."""
MAX_LABELS = 30
"""A column with more different values is not considered labels."""
_SPLITS = (("test", "test_file"), ("val", "validation_file"), ("dev", "validation_file"))
_NUMBER = re.compile(r"\(?[-+−]?\s*[\d.,]*\d\)?\s*(%|bps|bp)?", re.IGNORECASE)
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}|\d{1,2}[./ -]([A-Za-z]{3,9}|\d{1,2})[./ -]\d{2,4}|\d{10}|\d{13}")
_SEPARATED = re.compile(r"\s*[;|,]\s*")


@dataclass
class Column:
    """Statistics on the values of one column; empty cells count only in `empty`."""

    name: str
    empty: int = 0
    filled: int = 0
    words: int = 0
    numbers: int = 0
    dates: int = 0
    lists: int = 0
    objects: int = 0
    longest: int = 0
    """Characters."""
    values: Counter[str] = field(default_factory=Counter)
    """The first `VALUES` different values; for lists, of their items."""

    def add(self, value: Any) -> None:
        if value is None or value != value or value in ("", []):
            self.empty += 1
            return
        self.filled += 1
        if isinstance(value, dict):
            self.objects += 1
            return
        if isinstance(value, list):
            self.lists += 1
            for item in map(str, value):
                self.words += len(item.split())
                self._count(item)
            return
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        text = str(value).strip()
        self.words += len(text.split())
        self.numbers += bool(_NUMBER.fullmatch(text)) and not isinstance(value, bool)
        self.dates += hasattr(value, "isoformat") or bool(_DATE.match(text))
        self.longest = max(self.longest, len(text))
        self._count(text)

    def _count(self, text: str) -> None:
        if text in self.values or len(self.values) < VALUES:
            self.values[text] += 1

    def share(self, of: str) -> float:
        """The share of filled cells that are `numbers`, `dates`, `lists` or `objects`."""
        return float(getattr(self, of)) / self.filled if self.filled else 0.0

    @property
    def mean_words(self) -> float:
        return self.words / self.filled if self.filled else 0.0

    @property
    def few(self) -> bool:
        """Whether its values can be labels: few, and each in several rows."""
        different = len({value.casefold() for value in self.values})
        return 2 <= different <= min(MAX_LABELS, max(2, self.filled // 2)) and not self.share("lists")


@dataclass
class Look:
    """What the files contain, and the guessed role of each column."""

    files: dict[str, str]
    """Recipe key (`file`, `validation_file`, `test_file`) → path."""
    rows: dict[str, int]
    """By the same keys, the number of rows; `ROWS` means this many or more."""
    columns: dict[str, Column]
    """Columns of the training file."""
    malformed: int
    repeated: int
    """Rows whose text occurs in an earlier row of any file."""
    type: str
    fields: dict[str, str]
    """Field (`text`, `target`, `question`, `time`) → column; none for chats."""
    lengths: list[int]
    """Lengths of the training texts in characters, sorted."""
    split_column: str | None = None
    notes: list[str] = field(default_factory=list)
    """Sentences on how the files are read, where that is not obvious."""

    @property
    def labels(self) -> dict[str, int]:
        """The target's values, most frequent first; {} if they are not labels. Values that differ only in
        case are merged, in lower case."""
        target = self.columns.get(self.fields.get("target", ""))
        if target is None or self.type not in ("classification", "multilabel"):
            return {}
        counts: Counter[str] = Counter()
        spellings: dict[str, set[str]] = {}
        for value, count in target.values.items():
            several = self.type == "multilabel" and not target.lists
            for part in filter(None, _SEPARATED.split(value) if several else [value]):
                counts[part.casefold()] += count
                spellings.setdefault(part.casefold(), set()).add(part)
        return {key if len(spellings[key]) > 1 else min(spellings[key]): n for key, n in counts.most_common()}

    def quantile(self, share: float) -> int:
        """The length in characters that this share of the texts does not exceed."""
        return self.lengths[min(len(self.lengths) - 1, int(share * len(self.lengths)))] if self.lengths else 0


def look(
    paths: Sequence[str], fields: dict[str, str], type: str | None = None, time_format: str | None = None
) -> Look:
    """Inspect a training file and optionally files of the other splits, recognized by name.

    Args:
        fields: field → column, as far as the user says.
        type: the task type, if the user says.
        time_format: how times are written, if the user says.

    Raises:
        DataError: a file cannot be read, two files are of one split, or no column can be the text or target.
    """
    files = _by_split(paths)
    opened = {key: row_files(path, "FILE") for key, path in files.items()}
    names, _ = open_rows(opened["file"][0])
    for name in fields.values():
        if name not in names:
            raise DataError(f"{files['file']} has no column '{name}'; its columns are: {', '.join(names)}.")
    columns = {name: Column(name) for name in names}
    rows: dict[str, int] = {}
    malformed = 0
    for row in _rows(opened["file"]):
        rows["file"] = rows.get("file", 0) + 1
        malformed += isinstance(row, str)
        if not isinstance(row, str):
            for name, column in columns.items():
                column.add(row.get(name))
    shape = shape_of(names)
    if not rows or malformed == rows["file"]:
        raise DataError(f"{files['file']} has no row that can be read.")
    found: dict[str, str] = {}
    if type in (None, "instruction") and shape and not fields:
        type = "instruction"
    else:
        found, type = _fields(columns, fields, type, files["file"])
    lengths, repeated = [], 0
    seen: set[str] = set()
    for key, own in opened.items():
        count = 0
        for row in _rows(own):
            count += 1
            if isinstance(row, str) or not found:
                continue
            parts = [str(row.get(found[name]) or "") for name in ("text", "question") if name in found]
            repeated += (text := text_key(" ".join(parts))) in seen
            seen.add(text)
            if key == "file":
                lengths.append(len(parts[0]))
        rows[key] = count
    every = [file for own in opened.values() for file in own]
    notes = [note for file in every for note in file.notes]
    if "time" in found and time_format is None:
        note = time_form(every, {"time": found["time"]}, "--time_format")[1]
        notes += [f"{note}."] if note else []
    split = next((c.name for c in columns.values() if c.name.casefold() == "split" and c.few), None)
    return Look(files, rows, columns, malformed, repeated, type, found, sorted(lengths), split, notes)


def _rows(files: Sequence[RowFile]) -> Iterator[dict[str, Any] | str]:
    for file in files:
        yield from (row for _, row in islice(open_rows(file)[1], ROWS))


def _by_split(paths: Sequence[str]) -> dict[str, str]:
    """Recipe key → path: by `test`, `valid`, `val` or `dev` in a name; else the training file."""
    files: dict[str, str] = {}
    for path in paths:
        parts = re.split(r"[^a-z]+", Path(path).stem.casefold()) if len(paths) > 1 else []
        key = next((key for word, key in _SPLITS if any(part.startswith(word) for part in parts)), "file")
        if key in files:
            raise DataError(
                f"{files[key]} and {path} would both be the {key}: give one training file, and others whose "
                "names contain test or valid."
            )
        files[key] = path
    if "file" not in files:
        raise DataError(f"{', '.join(paths)}: by name (test, valid), none of them is the training file.")
    return dict(sorted(files.items()))


def _fields(
    columns: dict[str, Column], given: dict[str, str], type: str | None, path: str
) -> tuple[dict[str, str], str]:
    """Guess the role of each column, and the task type that fits."""
    found = dict(given)
    free = [column for name, column in columns.items() if name not in found.values()]
    names = [column.name for column in free if column.filled]

    def take(field: str, column: Column | None) -> None:
        if field not in found and column is not None:
            found[field] = column.name
            free.remove(column)

    usual = usual_column("time", names)
    take("time", next((c for c in free if c.name == usual and c.share("dates") > 0.9), None))
    asked = usual_column("question", names)
    if type in (None, "qa"):
        take("question", next((c for c in free if c.name == asked), None))
    texts = [c for c in free if c.mean_words >= 2 and c.share("dates") < 0.9]
    likely = usual_column("target", [c.name for c in free])
    others = [c for c in texts if c.name != likely]
    usual = usual_column("text", [c.name for c in others])
    take(
        "text",
        next((c for c in others if c.name == usual), max(others, key=lambda c: c.mean_words, default=None)),
    )
    if "target" not in found:
        answers = [c for c in free if c.filled]
        chosen = next((c for c in answers if c.name == likely), None)
        candidates = [c for c in answers if c.few] or answers
        take("target", chosen or (candidates[0] if len(candidates) == 1 else None))
    for needed in ("text", "target"):
        if needed not in found:
            raise DataError(
                f"No column of {path} is clearly the {needed}: name it by  --{needed} COLUMN; its columns "
                f"are: {', '.join(columns)}."
            )
    target = columns[found["target"]]
    if type is None:
        type = _type(target, columns[found["text"]], "question" in found)
    if type != "qa" and "question" not in given:
        found.pop("question", None)
    return found, type


def _type(target: Column, text: Column, asked: bool) -> str:
    """The task type that a target's values suggest."""
    if asked:
        return "qa"
    parts = Counter(part for value in target.values for part in _SEPARATED.split(value))
    several = len(target.values) > len(parts) and len(parts) <= MAX_LABELS and target.mean_words <= 2 * 3
    if target.share("lists") > 0.5 or (several and target.share("numbers") < 0.5):
        return "multilabel"
    if target.share("numbers") > 0.9 and (not target.few or any("." in value for value in target.values)):
        return "regression"
    if target.few:
        return "classification"
    return "summarization" if text.mean_words > 3 * target.mean_words else "instruction"
