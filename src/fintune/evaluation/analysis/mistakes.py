"""What sort of mistake an answer is, told from the expected answer, the answer and the text."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from fintune.text.answers import normalize_answer
from fintune.text.numbers import Figure, unsupported_figures

if TYPE_CHECKING:
    from fintune.tasks import Prediction, Record, Task

VERBOSE = 2.0
"""An answer that holds the whole expected one is verbose if it has this many times its words."""

_SCALES = {1e2: " hundred", 1e3: " thousand", 1e6: " million", 1e9: " billion", 1e12: " trillion"}


def absent(text: str, source: str) -> list[str]:
    """The numbers of a text that do not occur in its source (see `numeric.supported_numbers`), each once."""
    return list(dict.fromkeys(map(_shown, unsupported_figures(text, source))))


def _shown(figure: Figure) -> str:
    return (
        f"{figure.figure:,.{figure.decimals}f}{_SCALES.get(figure.scale, '')}{' %' if figure.percent else ''}"
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
        details = {
            "unfaithful": absent(got, record.text),
            "missing": absent(expected, got),
        }
        same = normalize_answer(task.completion(record)) == normalize_answer(got)
        name = (
            "unfaithful number" if details["unfaithful"] else "missing number" if details["missing"] else ""
        )
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
    if absent(expected, got):
        return "wrong number"
    if shared == given.total():
        return "incomplete"
    return "wrong span" if 2 * shared < 0.5 * (wanted.total() + given.total()) else "other wording"
