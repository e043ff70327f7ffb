"""FinQA (Chen et al., EMNLP 2021) and ConvFinQA (Chen et al., EMNLP 2022): reasoning with a report's figures.

A context is a page of a filing: its table, then the sentences before and after it. The target is the result
of the annotated program (`exe_ans`), on which published execution accuracy is measured, so percentages are
fractions: 0.12, not 12 %. A page is a group, the same in both datasets.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fintune.data.documents.tables import table_lines
from fintune.data.raw.readers.streams import json_items
from fintune.data.records import Dropped, Split
from fintune.errors import DataError
from fintune.tasks.base import Record

MAX_MEMBER_BYTES = 2**31
"""Larger members of ConvFinQA's archive are refused: the genuine ones are far smaller."""
_OPERATION = re.compile(r"([a-z_]+)\(")
_PAGE = re.compile(r"(?:(?:Single|Double)_)?(.+?\.pdf)(?:-.*|_.*)?")


def finqa(train: Path, dev: Path, test: Path) -> Iterator[Record | Dropped]:
    """A record per question, in the official splits; `kind` names its program's operations."""
    splits: tuple[tuple[Path, Split], ...] = ((train, "train"), (dev, "validation"), (test, "test"))
    for path, split in splits:
        with path.open("rb") as stream:
            for number, entry in enumerate(json_items(stream, str(path))):
                where = f"{path.name}:{number}"
                try:
                    qa = entry["qa"]
                    yield _record(
                        entry, qa["question"], qa["exe_ans"], qa["program"], split, where, source="finqa"
                    )
                except (TypeError, KeyError, AttributeError):
                    yield Dropped("malformed rows", where, "it lacks a table, a question or its answer")


def convfinqa(path: Path) -> Iterator[Record | Dropped]:
    """A record per turn of a conversation, with the turns before it and their answers.

    The official test part has no answers, so the development part is the test split, as in published
    comparisons; validation is split off the training part.
    """
    splits: dict[str, Split] = {"train_turn.json": "train", "dev_turn.json": "test"}
    try:
        with zipfile.ZipFile(path) as archive:
            for name, split in splits.items():
                member = _member(archive, name, path)
                with archive.open(member) as stream:
                    for number, entry in enumerate(json_items(stream, f"{path}:{name}")):
                        yield _turn(entry, split, f"{path.name}:{name}:{number}")
    except (zipfile.BadZipFile, EOFError, RuntimeError, NotImplementedError) as error:
        raise DataError(f"{path} is damaged ({error}): download it again.") from None


def _member(archive: zipfile.ZipFile, name: str, path: Path) -> zipfile.ZipInfo:
    for member in archive.infolist():
        if member.filename.rpartition("/")[2] == name and not member.is_dir():
            if member.file_size > MAX_MEMBER_BYTES:
                raise DataError(f"{path} holds {name} of {member.file_size:,} bytes: it is not genuine.")
            return member
    raise DataError(f"{path} has no {name}: download it again.")


def _turn(entry: Any, split: Split, where: str) -> Record | Dropped:
    try:
        turn = entry["annotation"]
        *earlier, question = turn["cur_dial"]
        answers = turn["exe_ans_list"]
        told = [f"{asked} {answer_text(answers[i])}" for i, asked in enumerate(earlier)]
        asked = "\n".join([*told, question])
        return _record(entry, asked, turn["exe_ans"], turn["cur_program"], split, where, source="convfinqa")
    except (TypeError, KeyError, AttributeError, IndexError, ValueError):
        return Dropped("malformed rows", where, "it lacks a table, a conversation or its answers")


def _record(
    entry: Mapping[str, Any], question: str, answer: Any, program: str, split: Split, where: str, source: str
) -> Record:
    text = [*table_lines(entry["table"], headers=1), *entry["pre_text"], *entry["post_text"]]
    page = _PAGE.fullmatch(entry["id"])
    return Record(
        text="\n".join(line.strip() for line in text if re.search(r"\w", line)),
        target=answer_text(answer),
        question=question.strip(),
        group=page[1] if page else entry["id"],
        split=split,
        id=where,
        source=source,
        kind=" ".join(_OPERATION.findall(program)) or "lookup",
        derivation=program,
    )


def answer_text(value: Any) -> str:
    """A program's result as text: numbers without trailing zeros, to 5 decimals as published.

    Raises:
        TypeError: it is neither a number nor a text.
    """
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise TypeError(f"{value!r} is not an answer")
    if isinstance(value, str):
        return value.strip()
    whole, _, decimals = f"{value:.5f}".partition(".")
    decimals = decimals.rstrip("0")
    return f"{whole}.{decimals}" if decimals else whole if int(whole) else "0"
