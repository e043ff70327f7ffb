"""Readers of public datasets that are one or a few files with one row per example."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from fintune.data.documents.tables import cell_text, table_lines
from fintune.data.raw.readers import csv_rows
from fintune.data.raw.readers.streams import json_items, lines
from fintune.data.records import Dropped, Split, text_key
from fintune.data.storage import locate
from fintune.errors import DataError
from fintune.tasks.base import Record

_TWITTER_LABELS = {"0": "bearish", "1": "bullish", "2": "neutral"}
_SENTIMENT = {"bearish": "negative", "bullish": "positive", "neutral": "neutral"}
_FIQA_NEUTRAL = (-0.1, 0.1)
_SHORT_LINK = re.compile(r"https?://t\.co/\w*…?")


def financial_phrasebank(path: Path) -> Iterator[Record | Dropped]:
    """`sentence@label` lines. The test split is the one that published systems share.

    It is `datasets.Dataset` of the lines in file order, `.train_test_split(seed=42)`: a quarter of them
    (rounded up), the first of NumPy's seeded permutation.
    """
    import numpy as np

    rows = list(lines(locate(path)))
    test = set(np.random.default_rng(42).permutation(len(rows))[: -(-len(rows) // 4)].tolist())
    for i, line in enumerate(rows):
        where = f"{path.name}:{i + 1}"
        sentence, at, label = line.rpartition("@")
        if not at:
            yield Dropped("malformed rows", where, "it has no @ before a label")
            continue
        split: Split = "test" if i in test else "train"
        yield Record(sentence.strip(), label.strip(), split=split, id=where, source="financial_phrasebank")


def twitter_financial_news(train: Path, valid: Path) -> Iterator[Record | Dropped]:
    """`text,label` rows with labels 0, 1, 2; the official valid file is the test split.

    Every short link (https://t.co/…) becomes `[link]`: its letters are random and meaningless.
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


def twitter_sentiment(train: Path, valid: Path) -> Iterator[Record | Dropped]:
    """The same rows as sentiment: bullish is positive, bearish negative (the publisher's own names)."""
    for item in twitter_financial_news(train, valid):
        if isinstance(item, Record):
            item = replace(item, target=_SENTIMENT[str(item.target)], source="twitter_sentiment")
        yield item


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

    The text is the sentence and a line `Target: …`, because one sentence may be good news for one company and
    bad news for another. Scores are as published, not percentages.
    """
    for path in paths:
        split: Split = "test" if path.stem.endswith("_test") else "train"
        for name, entry in _json(path).items():
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


def fiqa_sentiment(*paths: Path) -> Iterator[Record | Dropped]:
    """The scores as labels: negative below -0.1, positive from 0.1 on, neutral between.

    The thresholds are those of FinGPT's benchmark (fingpt/FinGPT_Benchmark/benchmarks/fiqa.py), so that
    figures compare.
    """
    low, high = _FIQA_NEUTRAL
    for item in fiqa_sa(*paths):
        if isinstance(item, Record):
            score = float(item.target or 0)
            label = "negative" if score < low else "positive" if score >= high else "neutral"
            item = replace(item, target=label, source="fiqa_sentiment")
        yield item


def tatqa(*paths: Path) -> Iterator[Record | Dropped]:
    """Questions on a table (see `tables.table_lines`) and its paragraphs; a table is a group.

    An answer includes its scale (`4.1 million`, `-22.22%`); several spans are joined by semicolons. `kind` is
    the answer's type and `derivation` its computation.

    Args:
        paths: the available official parts (`…_train.json`, `…_dev.json`, `…_test_gold.json`). With all
            three, dev is the validation split. Without the test part dev is the test split, and a single
            part has no split.
    """
    names = [path.stem.removeprefix("tatqa_dataset_") for path in paths]
    dev: Split = "validation" if "train" in names and "test_gold" in names else "test"
    splits: dict[str, Split] = {"train": "train", "dev": dev, "test_gold": "test"}
    if "train" not in names:
        splits["dev"] = "train"
    for path, name in zip(paths, names, strict=True):
        split = splits.get(name) if len(paths) > 1 else None
        with path.open("rb") as stream:
            for number, entry in enumerate(json_items(stream, str(path))):
                yield from _tatqa_table(entry, split, f"{path.name}:{number}")


def _tatqa_table(entry: Any, split: Split | None, where: str) -> Iterator[Record | Dropped]:
    try:
        paragraphs = sorted(entry["paragraphs"], key=lambda paragraph: paragraph["order"])
        text = "\n".join([*table_lines(entry["table"]["table"]), *(part["text"] for part in paragraphs)])
        group, questions = entry["table"]["uid"], list(entry["questions"])
    except (TypeError, KeyError):
        yield Dropped("malformed rows", where, "it lacks a table, paragraphs or questions")
        return
    for number, question in enumerate(questions, start=1):
        try:
            yield Record(
                text=text,
                target=_scaled(question["answer"], question["scale"]),
                question=question["question"],
                group=group,
                split=split,
                id=f"{where}.{question.get('order', number)}",
                source="tatqa",
                kind=question["answer_type"],
                derivation=" ".join(question["derivation"].split()),
            )
        except (TypeError, KeyError, AttributeError):
            yield Dropped("malformed rows", f"{where}.{number}", "it lacks a question, an answer or a scale")


def _scaled(answer: Any, scale: str) -> str:
    """An answer as a reader writes it: each span with thousands separators and its scale.

    Raises:
        TypeError: it is not an answer, or all its spans are empty.
    """
    if isinstance(answer, int | float):
        answer = f"{answer:,}"
    spans = [answer] if isinstance(answer, str) else answer
    texts = [text for span in spans if (text := cell_text(span))]
    if not texts:
        raise TypeError("the answer is empty")
    if scale == "percent":
        texts = [text if text.endswith("%") else f"{text}%" for text in texts]
    elif scale:
        texts = [f"{text} {scale}" for text in texts]
    return "; ".join(texts)


def _csv(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[str, dict[str, str] | Dropped]]:
    rows = csv_rows.read(lines(locate(path)), name=str(path))
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


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads("".join(lines(locate(path))))
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is not valid JSON ({error}): download it again.") from None
    if not isinstance(value, dict):
        raise DataError(f"{path} holds a {type(value).__name__}, not a dict: download it again.")
    return value
