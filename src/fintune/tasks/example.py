"""What passes between stages: one example, its answer, and the shape that an answer must have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

INTERVAL = 0.8
"""The share of a number's distribution that its interval holds: from the 0.1 to the 0.9 quantile."""


@dataclass(frozen=True)
class Record:
    """One example, as a reader yields it and a Parquet row holds it."""

    text: str
    """The statement, headline, transcript, context or news."""
    target: str | float | None = None
    """The label or text, or for regression the number; None when only predicting."""
    question: str | None = None
    """The question of a qa example, or the last turn of a conversation."""
    group: str = ""
    """Records of one group (same text, company or sentence) never end in different splits."""
    split: Literal["train", "validation", "test", "more"] | None = None
    """Set where the dataset has official splits; None lets the seed, or time, decide. `more` is trained on,
    and nothing of it is ever held out."""
    time: str = ""
    """When the text was known, in UTC and ISO 8601 (a date, or date and time); "" where a source has none."""
    id: str = ""
    source: str = ""
    kind: str = ""
    """The sort of example: TAT-QA's answer type, FinQA's operations, StockNet's view."""
    derivation: str = ""
    """How the target was computed, where its dataset says so; never part of a prompt."""
    system: str = ""
    """A system message of the example's own, in place of the task's instruction."""
    turns: str = ""
    """Of a conversation its turns before the answer, [[role, text], …] as JSON: what the model is asked.
    With tools it is {"tools", "turns", "answer"}: turns as chat templates take them, and the answer where it
    calls a tool.
    `text` and `question` hold the same in one string each, by which rows are told apart."""


@dataclass(frozen=True)
class Prediction:
    """An answer, and how sure the model is of it."""

    value: str | float
    probabilities: Mapping[str, float] | None = None
    """The probability of each candidate, or of each label of a set; None of generated texts."""
    interval: tuple[float, float] | None = None
    """Of numbers: the central 80 % of the model's distribution."""
    token_probability: float | None = None
    """Of generated texts: the geometric mean of their tokens' probabilities, the end of text included."""
    set_probability: float | None = None
    """Of a set of labels: the probability of exactly this set."""

    @property
    def confidence(self) -> float | None:
        """How probable the answer is: of a label, set or text; None of a number, or where it is not known."""
        if self.set_probability is not None:
            return self.set_probability
        if self.probabilities is not None and isinstance(self.value, str):
            return self.probabilities.get(self.value)
        return self.token_probability


@dataclass(frozen=True)
class TextFormat:
    """How a generated answer must look. Each part is off by default."""

    bullets: int | None = None
    """At most this many lines, each beginning with a dash."""
    bullet_tokens: int | None = None
    """At most this many tokens in each line, the dash included."""
    copy_spans: bool = False
    """The answer is a passage of the record's text, word for word."""
    source_numbers: bool = False
    """Every number of the answer, with its scale, stands in the record's text or question."""


@dataclass(frozen=True)
class Expectation:
    """A number's completions, for training on the error of their expectation."""

    levels: Sequence[str]
    means: Sequence[float]
    """The mean training target of each level."""
    target: float
