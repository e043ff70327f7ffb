"""The data types that stages exchange: an example, its answer, and constraints on an answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

INTERVAL = 0.8
"""The probability mass of a number's interval: from the 0.1 to the 0.9 quantile."""


@dataclass(frozen=True)
class Record:
    """One example, as a reader yields it and a Parquet row stores it."""

    text: str
    """The statement, headline, transcript, context or news."""
    target: str | float | None = None
    """The label or text, or a number for regression; None when only predicting."""
    question: str | None = None
    """The question of a qa example, or the last user turn of a conversation."""
    group: str = ""
    """Records with the same group (text, company or sentence) are never split between splits."""
    split: Literal["train", "validation", "test", "more"] | None = None
    """Set if the dataset has official splits; None lets the seed, or time, decide. `more` rows are only for
    training and never held out."""
    time: str = ""
    """When the text became known, in UTC as ISO 8601 (a date, or date and time); "" if unknown."""
    id: str = ""
    source: str = ""
    kind: str = ""
    """The kind of example: TAT-QA's answer type, FinQA's operations, StockNet's view."""
    derivation: str = ""
    """How the target was computed, if the dataset says so; never part of a prompt."""
    system: str = ""
    """The example's own system message, which replaces the task's instruction."""
    turns: str = ""
    """A conversation's turns before the answer, [[role, text], …] as JSON: what the model is asked. With
    tools it is {"tools", "turns", "answer"}: turns as chat templates take them, and the answer if it calls a
    tool. `text` and `question` hold the same as one string each, which identify the row."""

    @property
    def uses_tools(self) -> bool:
        """Whether it is a conversation with tools, whose `turns` are an object."""
        return self.turns.startswith("{")


@dataclass(frozen=True)
class Prediction:
    """An answer and the model's confidence in it."""

    value: str | float
    probabilities: Mapping[str, float] | None = None
    """The probability of each candidate, or of each label of a set; None for generated text."""
    interval: tuple[float, float] | None = None
    """For numbers: the central 80 % of the model's distribution."""
    token_probability: float | None = None
    """For generated text: the geometric mean of its tokens' probabilities, the end of text included."""
    set_probability: float | None = None
    """For a set of labels: the probability of exactly this set."""

    @property
    def confidence(self) -> float | None:
        """The answer's probability, for a label, set or text; None for a number, or if unknown."""
        if self.set_probability is not None:
            return self.set_probability
        if self.probabilities is not None and isinstance(self.value, str):
            return self.probabilities.get(self.value)
        return self.token_probability


@dataclass(frozen=True)
class TextFormat:
    """Constraints on a generated answer. Each is off by default."""

    bullets: int | None = None
    """At most this many lines, each starting with a dash."""
    bullet_tokens: int | None = None
    """At most this many tokens in each line, the dash included."""
    copy_spans: bool = False
    """The answer is copied from the record's text, word for word."""
    source_numbers: bool = False
    """Every number in the answer, with its scale, occurs in the record's text or question."""


@dataclass(frozen=True)
class Expectation:
    """A number's completions, for training on the error of their expectation."""

    levels: Sequence[str]
    means: Sequence[float]
    """The mean training target of each level."""
    target: float
