"""What a task is: its instruction, its prompt and completion text, how an answer is chosen, its metrics.

A task knows nothing of tokenizers, models or files. Training, evaluation, the demo and serving all
read the same `Task`, so what is trained is what is evaluated is what is served.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from fintune.errors import DataError
from fintune.text.salience import Salience

Decoding = Literal["candidates", "text"]
Normalization = Literal["none", "tokens"]
INTERVAL = 0.8
"""How much of a number's distribution its interval holds: from the 0.1 to the 0.9 quantile."""


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
    split: Literal["train", "validation", "test"] | None = None
    """Set where the dataset has official splits; None lets the seed, or time, decide."""
    time: str = ""
    """When the text was known, in UTC and ISO 8601 (a date, or date and time); "" where a source has none."""
    id: str = ""
    source: str = ""
    kind: str = ""
    """What sort of example it is: TAT-QA's answer type, FinQA's operations, StockNet's view."""
    derivation: str = ""
    """How the target was computed, where its dataset says: never part of a prompt."""
    system: str = ""
    """A system message of the example's own, in place of the task's instruction."""


@dataclass(frozen=True)
class Prediction:
    """An answer, and how sure the model is of it."""

    value: str | float
    probabilities: Mapping[str, float] | None = None
    """Of tasks with candidates: the probability of each."""
    interval: tuple[float, float] | None = None
    """Of numbers: where the middle 80 % of the model's distribution lies."""
    token_probability: float | None = None
    """Of generated texts: the geometric mean of their tokens' probabilities, the end of text included."""

    @property
    def confidence(self) -> float | None:
        """The label's probability, or the text's `token_probability`; None of a number, or where unknown."""
        if self.probabilities is not None and isinstance(self.value, str):
            return self.probabilities.get(self.value)
        return self.token_probability


@dataclass(frozen=True)
class TextFormat:
    """How a generated answer must look. Each part is off by default."""

    bullets: int | None = None
    """At most so many lines, each of which begins with a dash."""
    bullet_tokens: int | None = None
    """At most so many tokens in each of them, the dash included."""
    copy_spans: bool = False
    """The answer is a passage of the record's text, word for word."""
    source_numbers: bool = False
    """Every number of the answer, with its scale, stands in the record's text or question."""


class Task:
    """The contract; its kinds are in `kinds.py`, and a plug-in may subclass any of them."""

    type: str = ""
    decoding: Decoding = "text"
    max_new_tokens: int = 64
    headline_metrics: tuple[str, ...] = ()
    """The metrics a summary table shows, best-known first."""
    learnt: tuple[str, ...] = ()
    """The fields that `fit` or the end of training sets and `to_dict` keeps."""
    salience: Salience | None = None
    """Which sentences stand for a text that does not fit; with None its end is cut off."""
    normalization: Normalization = "none"
    """Candidates are compared by log p of all their tokens, or by its mean over the tokens."""
    temperature: float = 1.0
    """The adapter's log-likelihoods are divided by it (Guo et al., 2017), which changes no answer."""
    calibration: Literal["none", "contextual"] = "none"
    """contextual: labels are compared after dividing by what the model says of an input without content."""
    text_format: TextFormat | None = None
    """How generated text must look; None leaves it to the model."""

    def __init__(self, name: str, instruction: str) -> None:
        self.name = name
        self.instruction = instruction

    def system(self, record: Record) -> str:
        """The system message: the instruction, or the example's own."""
        return record.system or self.instruction

    def body(self, record: Record) -> str:
        """The user's message: what differs between examples."""
        return record.text

    def with_text(self, record: Record, text: str) -> Record:
        """The record with a shorter text, when a prompt must be truncated."""
        return replace(record, text=text)

    def completion(self, record: Record) -> str:
        """The text the model is trained to answer with."""
        return str(record.target)

    def input_problem(self, record: Record) -> str | None:
        """Why this record cannot be answered; None when it can. Its target does not matter."""
        return None if record.text.strip() else "the text is empty"

    def problem(self, record: Record) -> str | None:
        """Why this record cannot be trained or evaluated on; None when it can."""
        if problem := self.input_problem(record):
            return problem
        if not isinstance(record.target, str) or not record.target.strip():
            return "the target is empty"
        return None

    def fit(self, records: Sequence[Record]) -> None:
        """Learn what the task needs of its training records (regression: its levels; summarization: what is
        salient)."""

    def candidates(self) -> list[str]:
        """The completions that are scored when `decoding` is "candidates"."""
        return []

    def decide(self, log_likelihoods: Sequence[float]) -> Prediction:
        """Turn each candidate's log p(candidate | prompt) into an answer."""
        raise NotImplementedError

    def calibrated(self, prediction: Prediction) -> Prediction:
        """The adapter's prediction, as sure as validation found it to be (never the untuned base's)."""
        return prediction

    def parse(self, text: str) -> Prediction:
        """Turn generated text into an answer."""
        return Prediction(text.strip())

    def metrics(self, records: Sequence[Record], predictions: Sequence[Prediction]) -> dict[str, float]:
        """Score predictions against the records' targets; {} where `evaluate_custom_task` does it all."""
        return {}

    def score(self, records: Sequence[Record], predictions: Sequence[Prediction]) -> dict[str, float]:
        """What validation and evaluation report: `metrics`, and what `evaluate_custom_task` adds."""
        rows = [
            {"text": r.text, "question": r.question, "target": r.target, "prediction": p.value}
            for r, p in zip(records, predictions, strict=True)
        ]
        return {**self.metrics(records, predictions), **self.evaluate_custom_task(rows)}

    def load_custom_dataset(self) -> list[dict[str, Any]]:
        """A plug-in's own data: dicts with `text` and `target`, optionally `question`, `group`, `split`."""
        raise NotImplementedError(f"task {self.name} has no load_custom_dataset")

    def evaluate_custom_task(self, test_data: list[dict[str, Any]]) -> dict[str, float]:
        """A plug-in's own metrics over dicts of text, question, target and prediction; {} adds none."""
        return {}

    def to_dict(self) -> dict[str, Any]:
        """What an adapter folder keeps so that the task can be made again without its data."""
        fields = {"name": self.name, "type": self.type, "instruction": self.instruction}
        return fields | ({"salience": self.salience.to_dict()} if self.salience else {})


def softmax(scores: Sequence[float]) -> list[float]:
    """exp(score) of each over their sum."""
    top = max(scores)
    weights = [math.exp(score - top) for score in scores]
    total = sum(weights)
    return [weight / total for weight in weights]


@dataclass
class TaskSet:
    """The tasks of one run, in a fixed order (their index is the task id of a batch)."""

    tasks: dict[str, Task] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Task:
        if name not in self.tasks:
            raise DataError(f"There is no task {name!r}: the tasks are {', '.join(self.tasks)}.")
        return self.tasks[name]

    def __iter__(self):
        return iter(self.tasks.values())

    def __len__(self) -> int:
        return len(self.tasks)

    def names(self) -> list[str]:
        return list(self.tasks)
