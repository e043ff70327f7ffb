"""Shared by text types: the kind of mistake in an answer's words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from fintune.tasks.base import Prediction, Record
from fintune.text.answers import answer_scores, normalize_answer
from fintune.text.numbers import Figure, unsupported_figures

VERBOSE = 2.0
"""An answer that contains the expected one is verbose if it has this many times its words."""

_SCALES = {1e2: " hundred", 1e3: " thousand", 1e6: " million", 1e9: " billion", 1e12: " trillion"}


def is_half_wrong(records: Sequence[Record], predictions: Sequence[Prediction]) -> list[bool]:
    """Whether each answer has a token F1 below 0.5."""
    pairs = zip(records, predictions, strict=True)
    return [answer_scores(str(r.target), str(p.value))[1] < 0.5 for r, p in pairs]


def absent(text: str, source: str) -> list[str]:
    """The numbers of a text that do not occur in its source (see `numbers.supported_numbers`), each once."""
    return list(dict.fromkeys(map(_shown, unsupported_figures(text, source))))


def _shown(figure: Figure) -> str:
    scale = _SCALES.get(figure.scale, "")
    return f"{figure.figure:,.{figure.decimals}f}{scale}{' %' if figure.percent else ''}"


def wording_mistake(expected: str, got: str) -> str:
    """The kind of mistake: the first of these that applies to SQuAD's normalised tokens, or "" for none.

    `empty`; `verbose`: contains the expected answer and is at least twice as long; `wrong number`: lacks a
    number of the expected answer; `incomplete`: only part of the expected answer; `wrong span`: less than
    half of the tokens agree (F1 < 0.5); `other wording`.
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
