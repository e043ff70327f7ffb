"""Readers of the public datasets that are one or a few files, a row an example."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fintune.data.quality import Dropped, Split, text_key
from fintune.data.readers.own_file import csv_rows
from fintune.errors import DataError
from fintune.tasks.base import Record

_TWITTER_LABELS = {"0": "bearish", "1": "bullish", "2": "neutral"}
_SHORT_LINK = re.compile(r"https?://t\.co/\w*…?")


def financial_phrasebank(path: Path) -> Iterator[Record | Dropped]:
    """`sentence@label` lines. The test split is the one the published systems share.

    That split is `datasets.Dataset` of the lines in file order, `.train_test_split(seed=42)`: a quarter
    of them (rounded up), the first of NumPy's seeded permutation.
    """
    import numpy as np

    lines = list(io.StringIO(_text(path)))
    test = set(np.random.default_rng(42).permutation(len(lines))[: -(-len(lines) // 4)].tolist())
    for i, line in enumerate(lines):
        where = f"{path.name}:{i + 1}"
        sentence, at, label = line.rpartition("@")
        if not at:
            yield Dropped("malformed rows", where, "it has no @ before a label")
            continue
        split: Split = "test" if i in test else "train"
        yield Record(sentence.strip(), label.strip(), split=split, id=where, source="financial_phrasebank")


def twitter_financial_news(train: Path, valid: Path) -> Iterator[Record | Dropped]:
    """`text,label` rows with labels 0, 1, 2; the official valid file is the test split.

    Every short link (https://t.co/…) becomes `[link]`: its letters are random and say nothing.
    """
    split: Split
    for path, split in ((train, "train"), (valid, "test")):
        for where, row in _csv(path, ("text", "label")):
            if isinstance(row, Dropped):
                yield row
            elif row["label"].strip() not in _TWITTER_LABELS:
                yield Dropped("malformed rows", where, f"the label {row['label']!r} is none of 0, 1, 2")
            else:
                yield Record(
                    text=_SHORT_LINK.sub("[link]", row["text"]).strip(),
                    target=_TWITTER_LABELS[row["label"].strip()],
                    split=split,
                    id=where,
                    source="twitter_financial_news",
                )


def financial_qa_10k(path: Path) -> Iterator[Record | Dropped]:
    """`question,answer,context,ticker,filing` rows; a company's rows form a group."""
    for where, row in _csv(path, ("question", "answer", "context", "ticker")):
        if isinstance(row, Dropped):
            yield row
        else:
            yield Record(
                text=row["context"].strip(),
                target=row["answer"].strip(),
                question=row["question"].strip(),
                group=row["ticker"].strip(),
                id=where,
                source="financial_qa_10k",
            )


def fiqa_sa(*paths: Path) -> Iterator[Record | Dropped]:
    """Sentences with a score in [-1, 1] for each target they name; a sentence's targets form a group.

    The text is the sentence and a line `Target: …`, as one sentence may be good news for one company
    and bad news for another. Scores are as published, not percentages.
    """
    for path in paths:
        split: Split = "test" if path.stem.endswith("_test") else "train"
        for name, entry in _json(path, dict).items():
            where = f"{path.name}:{name}"
            try:
                sentence, items = entry["sentence"].strip(), list(entry["info"])
            except (TypeError, KeyError, AttributeError):
                yield Dropped("malformed rows", where, "it lacks a sentence or its info")
                continue
            for number, item in enumerate(items):
                try:
                    score = float(item["sentiment_score"])
                    text = f"{sentence}\nTarget: {item['target']}"
                except (TypeError, KeyError, ValueError):
                    yield Dropped("malformed rows", f"{where}.{number}", "it lacks a target or a score")
                    continue
                if not -1 <= score <= 1:
                    yield Dropped(
                        "malformed rows", f"{where}.{number}", f"its score {score} is not in [-1, 1]"
                    )
                    continue
                yield Record(
                    text=text,
                    target=score,
                    group=text_key(sentence),
                    split=split,
                    id=f"{where}.{number}",
                    source="fiqa_sa",
                )


def tatqa(path: Path) -> Iterator[Record | Dropped]:
    """Questions on a table (a line a row, cells between `|`) and its paragraphs; a table forms a group.

    An answer of several spans is joined by commas; a number is followed by its scale.
    """
    for number, entry in enumerate(_json(path, list)):
        try:
            table = [" | ".join(map(str, row)) for row in entry["table"]["table"]]
            paragraphs = sorted(entry["paragraphs"], key=lambda paragraph: paragraph["order"])
            text = "\n".join([*table, *(paragraph["text"] for paragraph in paragraphs)])
            group, questions = entry["table"]["uid"], list(entry["questions"])
        except (TypeError, KeyError):
            yield Dropped(
                "malformed rows", f"{path.name}:{number}", "it lacks a table, paragraphs or questions"
            )
            continue
        for question in questions:
            answer = question["answer"]
            answer = ", ".join(map(str, answer)) if isinstance(answer, list) else str(answer)
            yield Record(
                text=text,
                target=f"{answer} {question['scale']}".strip(),
                question=question["question"],
                group=group,
                id=f"{path.name}:{number}.{question['order']}",
                source="tatqa",
            )


def _text(path: Path) -> str:
    """A file's text; UTF-8, with a byte order mark or without."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}): download it again.") from None


def _csv(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[str, dict[str, str] | Dropped]]:
    rows = csv_rows(_text(path))
    _, names = next(rows, (0, []))
    missing = [column for column in columns if column not in names]
    if missing:
        raise DataError(
            f"{path} has no column '{missing[0]}', only: {', '.join(names) or 'none'}; download it again."
        )
    for number, row in rows:
        where = f"{path.name}:{number}"
        if len(row) == len(names):
            yield where, dict(zip(names, row, strict=True))
        else:
            why = f"it has {len(row)} cells, but the header has {len(names)}"
            yield where, Dropped("malformed rows", where, why)


def _json(path: Path, kind: type) -> Any:
    try:
        value = json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is not valid JSON ({error}): download it again.") from None
    if not isinstance(value, kind):
        raise DataError(f"{path} holds a {type(value).__name__}, not a {kind.__name__}: download it again.")
    return value
