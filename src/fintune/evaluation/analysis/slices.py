"""Finds harder kinds of examples: their traits, and the error rate among examples with each trait.

Knows texts and labels, no models; the task's type decides what counts as an error (`Task.is_error`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fintune.evaluation.intervals import wilson_interval

if TYPE_CHECKING:
    from fintune.tasks import Record, Task

_NUMBER = re.compile(r"\d")
_NEGATION = re.compile(
    r"\b(?:no|not|nor|never|none|neither|without|cannot|hardly|fail(?:s|ed)? to)\b|n['’]t\b", re.IGNORECASE
)
_TICKER = re.compile(
    r"(?<![\w$])\$([A-Za-z]{1,6})\b|\b(?:NYSE|NASDAQ|Nasdaq|AMEX|LSE|OMX|TSX|HEL)\s*:\s*([A-Z]{1,6})\b"
)
_STOCK = re.compile(r"[A-Z]{1,5}(?:[.-][A-Z])?")
"""A group named after a stock, as in financial_qa_10k."""
STOCKS, STOCK_EXAMPLES = 8, 10
"""The most stocks with a slice of their own, and the fewest examples of each."""


def traits_of(task: Task, records: Sequence[Record], train: Sequence[Record] = ()) -> list[dict[str, str]]:
    """Trait → its value, for each record.

    `length` (quartiles of the texts' words), `numbers`, `negation` and `ticker` (whether the text has one),
    `stock` (the most frequent ones), `question` (its first word), the type's own (`Task.traits`), and
    `source` and `kind` if the record has them.
    """
    stocks = _stocks(records)
    lengths = _quartiles([len(record.text.split()) for record in records])
    rows = []
    own = task.traits(records, train)
    for record, length, stock, more in zip(records, lengths, stocks, own, strict=True):
        row = {"length": length}
        for trait, pattern in (("numbers", _NUMBER), ("negation", _NEGATION), ("ticker", _TICKER)):
            row[trait] = f"{'with' if pattern.search(record.text) else 'without'} {trait}"
        row["stock"] = stock
        if record.question:
            first = re.search(r"\b(what|which|who|when|where|why|how)\b", record.question.lower())
            row["question"] = first[1] if first else "other"
        row |= more
        for trait in ("source", "kind"):
            if value := getattr(record, trait, ""):
                row[trait] = value
        rows.append(row)
    return rows


def error_slices(
    traits: Sequence[dict[str, str]], wrong: Sequence[bool], values: Sequence[float]
) -> list[dict[str, Any]]:
    """Errors by trait and value; a trait whose value all examples share is left out.

    Args:
        wrong: whether each example counts as an error.
        values: the task's measure on each example.

    Returns:
        Rows of `trait`, `value`, `n`, `errors`, `rate`, `interval` (95 %, Wilson) and `mean` of the measure.
    """
    rows = []
    for trait in dict.fromkeys(name for row in traits for name in row):
        members: dict[str, list[int]] = {}
        for i, row in enumerate(traits):
            if trait in row:
                members.setdefault(row[trait], []).append(i)
        if len(members) < 2:
            continue
        order = sorted(members, key=lambda value: (-len(members[value]), value))
        if trait == "length":
            order = sorted(members, key=_first_number)
        for value in order:
            inside = members[value]
            errors = sum(bool(wrong[i]) for i in inside)
            rows.append(
                {
                    "trait": trait,
                    "value": value,
                    "n": len(inside),
                    "errors": errors,
                    "rate": errors / len(inside),
                    "interval": list(wilson_interval(errors, len(inside))),
                    "mean": sum(values[i] for i in inside) / len(inside),
                }
            )
    return rows


def _first_number(text: str) -> int:
    found = re.search(r"\d+", text)
    return int(found[0]) if found else 0


def _quartiles(words: Sequence[int]) -> list[str]:
    """Each text's quartile as a range of word counts; fewer than four ranges if lengths are equal."""
    import numpy as np

    counts = np.array(words)
    quarter = np.searchsorted(np.quantile(counts, [0.25, 0.5, 0.75]), counts, side="left")
    names = {}
    for i in set(quarter.tolist()):
        inside = counts[quarter == i]
        low, high = int(inside.min()), int(inside.max())
        names[i] = f"{low}–{high} words" if low < high else f"{low} words"
    return [names[i] for i in quarter.tolist()]


def _stocks(records: Sequence[Record]) -> list[str]:
    """The stock that each record is about, `$AAPL`, if enough records are about it.

    It is the record's group if that is a ticker, otherwise the text's first ticker.
    """
    named = []
    for record in records:
        first = _TICKER.search(record.text)
        named.append(
            record.group
            if _STOCK.fullmatch(record.group)
            else (first[1] or first[2]).upper()
            if first
            else ""
        )
    counts = Counter(filter(None, named)).most_common(STOCKS)
    frequent = {stock for stock, n in counts if n >= STOCK_EXAMPLES}
    return [f"${stock}" if stock in frequent else "another stock, or none" for stock in named]
