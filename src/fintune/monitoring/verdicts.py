"""Compares feedback's right answer with the given one: converts its type, and decides whether they match."""

from __future__ import annotations

import math

from fintune.errors import DataError


def as_answer(target: str | float, value: str | float) -> str | float:
    """The right answer in the given answer's type: 3 becomes "3" for a text, "0.5" becomes 0.5 for a number.

    Raises:
        DataError: the answer is a number but the target is not.
    """
    if isinstance(value, str):
        if isinstance(target, str):
            return target
        return value if _number(value) == target else as_text(target)  # JSON turns "3.0" into 3
    number = _number(target)
    if number is None:
        raise DataError(f"target must be a number like the answer, got {str(target)[:40]!r}.")
    return number


def as_text(number: float) -> str:
    """A number as people write it: 3.0 is 3."""
    return f"{number:.15g}"


def is_right(value: str | float, target: str | float | None, correct: bool | None) -> bool | None:
    """The feedback's own verdict; without one whether a text's target matches; None for a number."""
    if correct is not None or target is None or not isinstance(value, str):
        return correct
    return _plain(value) == _plain(str(as_answer(target, value)))


def _plain(text: str) -> str:
    return " ".join(text.split()).lower()


def _number(value: str | float) -> float | None:
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
