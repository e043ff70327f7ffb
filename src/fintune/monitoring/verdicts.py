"""A right answer, as feedback has it, beside the one given: in its type, and whether they are equal."""

from __future__ import annotations

import math

from fintune.errors import DataError


def as_answer(target: str | float, value: str | float) -> str | float:
    """The right answer in the type of the one given: 3 is "3" of a text, and "0.5" is 0.5 of a number.

    Raises:
        DataError: the answer is a number, and the target is none.
    """
    if isinstance(value, str):
        if isinstance(target, str):
            return target
        return value if _number(value) == target else as_text(target)  # JSON has 3 for "3.0", too
    number = _number(target)
    if number is None:
        raise DataError(f"target must be a number, as the answer is, got {str(target)[:40]!r}.")
    return number


def as_text(number: float) -> str:
    """A number as people write it: 3.0 is 3."""
    return f"{number:.15g}"


def is_right(value: str | float, target: str | float | None, correct: bool | None) -> bool | None:
    """The feedback's own verdict, else whether a text's target is the answer; a number has none."""
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
