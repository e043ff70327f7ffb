"""What sort of mistake an answer is, told from the expected answer, the answer and the text."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fintune.evaluation.metrics import normalize_answer

if TYPE_CHECKING:
    from fintune.tasks import Prediction, Record, Task

VERBOSE = 2.0
"""An answer that holds the whole expected one is verbose if it has this many times its words."""

_SCALES = {
    "k": 1e3, "thousand": 1e3,
    "m": 1e6, "mn": 1e6, "mln": 1e6, "mio": 1e6, "million": 1e6,
    "b": 1e9, "bn": 1e9, "bln": 1e9, "billion": 1e9,
    "tn": 1e12, "trln": 1e12, "trillion": 1e12,
}  # fmt: skip
_NUMBER = re.compile(
    r"(?<![\w.,])(?P<digits>\d{1,3}(?:,\d{3})+|\d+)(?P<decimals>\.\d+)?"
    r"(?:\s?(?P<scale>" + "|".join(sorted(_SCALES, key=len, reverse=True)) + r")\b)?(?![\d])",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Figure:
    """A number of a text."""

    text: str
    value: float
    """Without its sign, with its scale: 1.2 bn is 1.2e9; 5 % is 5."""
    unit: float
    """What its last digit stands for: 0.1e9 in 1.2 bn."""

    def agrees(self, other: Figure) -> bool:
        """Whether `other` is this number, or rounds to it at this one's precision."""
        if math.isclose(self.value, other.value, rel_tol=1e-9):
            return True
        return other.unit < self.unit and abs(self.value - other.value) <= 0.5 * self.unit * (1 + 1e-9)


def figures(text: str) -> list[Figure]:
    """The numbers of a text as they stand in it; digits that follow a letter (Q3, FY24) are none."""
    found = []
    for match in _NUMBER.finditer(text):
        decimals = match["decimals"] or ""
        scale = _SCALES.get((match["scale"] or "").lower(), 1.0)
        value = float(match["digits"].replace(",", "") + decimals) * scale
        unit = scale * 10.0 ** -max(0, len(decimals) - 1)
        found.append(Figure(match[0].strip(), value, unit))
    return found


def absent(these: Sequence[Figure], those: Sequence[Figure]) -> list[str]:
    """The texts of `these` that no number of `those` agrees with, each once."""
    return list(
        dict.fromkeys(figure.text for figure in these if not any(figure.agrees(other) for other in those))
    )


def mistake(task: Task, record: Record, prediction: Prediction) -> tuple[str, dict[str, Any]]:
    """The sort of mistake, "" for a right answer, and what shows it.

    Classification: the two labels. Regression: `wrong sign`, `too high` or `too low`. QA (and instruction):
    see `_answer_mistake`. Summarization: `unfaithful number` (one that the text does not have), `missing
    number` (of the expected summary), else `other wording`; the numbers stand in `unfaithful` and `missing`.
    """
    if task.type == "classification":
        return ("" if prediction.value == record.target else f"{record.target} → {prediction.value}"), {}
    if task.type == "regression":
        error = float(prediction.value) - float(record.target)  # type: ignore[arg-type]
        if not error:
            return "", {}
        opposed = float(prediction.value) * float(record.target) < 0  # type: ignore[arg-type]
        return ("wrong sign" if opposed else "too high" if error > 0 else "too low"), {}
    expected, got = str(record.target), str(prediction.value)
    if task.type == "summarization":
        shown = figures(got)
        details = {
            "unfaithful": absent(shown, figures(record.text)),
            "missing": absent(figures(expected), shown),
        }
        same = normalize_answer(task.completion(record)) == normalize_answer(got)
        name = "unfaithful number" if details["unfaithful"] else "missing number" if details["missing"] else ""
        return name or ("" if same else "other wording"), {k: v for k, v in details.items() if v}
    return _answer_mistake(expected, got), {}


def _answer_mistake(expected: str, got: str) -> str:
    """What is wrong with an answer: the first of these that fits, over SQuAD's normalised tokens.

    `empty`; `verbose`: all of the expected answer and at least as much again; `wrong number`: it lacks a
    number of the expected answer; `incomplete`: nothing but part of the expected answer; `wrong span`: less
    than half of the tokens agree (F1 < 0.5); `other wording`.
    """
    wanted, given = Counter(normalize_answer(expected).split()), Counter(normalize_answer(got).split())
    if wanted == given:
        return ""
    if not given:
        return "empty"
    shared = (wanted & given).total()
    if shared == wanted.total() and given.total() >= VERBOSE * wanted.total():
        return "verbose"
    if absent(figures(expected), figures(got)):
        return "wrong number"
    if shared == given.total():
        return "incomplete"
    return "wrong span" if 2 * shared < 0.5 * (wanted.total() + given.total()) else "other wording"
