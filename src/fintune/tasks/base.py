"""What a task is: its instruction, its prompt and completion text, how an answer is chosen, its metrics.

A task knows nothing of tokenizers, models or files. Training, evaluation, the demo and serving all
read the same `Task`, so what is trained is what is evaluated is what is served.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Literal

from fintune.data.salience import Salience
from fintune.data.sentences import bullet_lines
from fintune.errors import DataError

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
    """The contract; the concrete kinds are below, and a plug-in may subclass any of them."""

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


class ClassificationTask(Task):
    """One label of a fixed set, chosen by log-likelihood, never by parsing free text."""

    type = "classification"
    decoding: Decoding = "candidates"
    headline_metrics = ("accuracy", "macro_f1")
    learnt = ("normalization", "temperature")

    def __init__(
        self,
        name: str,
        instruction: str,
        labels: Sequence[str],
        normalization: Normalization = "none",
        temperature: float = 1.0,
    ) -> None:
        super().__init__(name, instruction)
        self.labels = tuple(labels)
        self.normalization = normalization
        self.temperature = temperature

    def problem(self, record: Record) -> str | None:
        problem = super().problem(record)
        if problem is None and record.target not in self.labels:
            return f"the label {record.target!r} is unknown; task {self.name} has {', '.join(self.labels)}"
        return problem

    def candidates(self) -> list[str]:
        return list(self.labels)

    def decide(self, log_likelihoods: Sequence[float]) -> Prediction:
        probabilities = dict(zip(self.labels, softmax(log_likelihoods), strict=True))
        return Prediction(max(probabilities, key=probabilities.__getitem__), probabilities)

    def metrics(self, records: Sequence[Record], predictions: Sequence[Prediction]) -> dict[str, float]:
        from fintune.evaluation.metrics import classification_metrics

        return classification_metrics(
            [str(r.target) for r in records], [str(p.value) for p in predictions], self.labels
        )

    def to_dict(self) -> dict[str, Any]:
        chosen: dict[str, Any] = {"normalization": self.normalization, "temperature": self.temperature}
        chosen = {name: value for name, value in chosen.items() if value not in ("none", 1.0)}
        return {**super().to_dict(), "labels": list(self.labels), **chosen}


def _signed(value: float, decimals: int) -> str:
    """A number with its sign; what rounds to zero is +0, not -0."""
    text = f"{value:+.{decimals}f}"
    return text if float(text) else f"{0.0:+.{decimals}f}"


class RegressionTask(Task):
    """A number, answered as the mean of the model's distribution over levels.

    `fit` takes quantiles of the training targets as levels. A target is trained as the text of its
    nearest level; a prediction is Σ p(level) · (mean training target nearest to that level), which
    minimizes the expected squared error under the model's own distribution.
    """

    type = "regression"
    decoding: Decoding = "candidates"
    headline_metrics = ("mse", "r2")
    learnt = ("levels", "level_means", "interval_margin")
    max_levels = 15
    answers_with: Literal["expectation", "greedy"] = "expectation"
    """greedy: the likeliest level alone, which is what decoding without its distribution gives."""

    def __init__(
        self,
        name: str,
        instruction: str,
        unit: str = "",
        levels: Sequence[str] = (),
        level_means: Sequence[float] = (),
        interval_margin: float = 0.0,
    ) -> None:
        super().__init__(name, instruction)
        self.unit = unit
        self.levels = list(levels)
        self.level_means = list(level_means)
        self.interval_margin = interval_margin
        """The adapter's intervals are made wider by it on both sides; see `calibration.conformal_margin`."""

    def problem(self, record: Record) -> str | None:
        if problem := self.input_problem(record):
            return problem
        if isinstance(record.target, str) or record.target is None or not math.isfinite(record.target):
            return f"the target {record.target!r} is not a finite number"
        return None

    def fit(self, records: Sequence[Record]) -> None:
        import numpy as np

        targets = np.array([float(r.target) for r in records])  # type: ignore[arg-type]
        quantiles = np.quantile(targets, (np.arange(self.max_levels) + 0.5) / self.max_levels)
        wanted = min(self.max_levels, len(set(targets.tolist()))) * 0.6
        for decimals in range(5):  # the shortest text that still tells the levels apart
            texts = (_signed(value, decimals) for value in quantiles.tolist())
            by_value = {float(text): text for text in texts}
            if len(by_value) >= wanted:
                break
        values = np.array(sorted(by_value))
        nearest = np.abs(targets[:, None] - values[None, :]).argmin(axis=1)
        self.levels = [by_value[float(value)] for value in values]
        self.level_means = [
            float(targets[nearest == i].mean()) if (nearest == i).any() else float(value)
            for i, value in enumerate(values)
        ]

    def completion(self, record: Record) -> str:
        target = float(record.target)  # type: ignore[arg-type]
        return min(self.candidates(), key=lambda level: abs(float(level) - target))

    def candidates(self) -> list[str]:
        if not self.levels:
            raise DataError(
                f"Task {self.name} has no levels yet: they are learnt from its training data, "
                "so train an adapter on it first."
            )
        return self.levels

    def decide(self, log_likelihoods: Sequence[float]) -> Prediction:
        probabilities = dict(zip(self.levels, softmax(log_likelihoods), strict=True))
        if self.answers_with == "greedy":
            value = float(max(probabilities, key=probabilities.__getitem__))
        else:
            value = sum(p * m for p, m in zip(probabilities.values(), self.level_means, strict=True))
        tail = (1 - INTERVAL) / 2
        low, high = (self.quantile(probabilities, q) for q in (tail, 1 - tail))
        return Prediction(value, probabilities, interval=(low, high))

    def calibrated(self, prediction: Prediction) -> Prediction:
        """The adapter's prediction with the interval that validation asked for."""
        if not (prediction.interval and self.interval_margin):
            return prediction
        low, high = (
            prediction.interval[0] - self.interval_margin,
            prediction.interval[1] + self.interval_margin,
        )
        if low > high:  # a negative margin of more than half of it
            low = high = (low + high) / 2
        return replace(prediction, interval=(low, high))

    def quantile(self, probabilities: Mapping[str, float], q: float) -> float:
        """The q-quantile of a distribution over the levels, interpolated.

        Each level's probability is spread evenly from the middle between it and the level below to the
        middle between it and the level above; the outer ones reach as far out as in.
        """
        values = [float(level) for level in self.levels]
        if len(values) == 1:
            return values[0]
        inner = [(a + b) / 2 for a, b in pairwise(values)]
        edges = [2 * values[0] - inner[0], *inner, 2 * values[-1] - inner[-1]]
        below = 0.0
        for i, p in enumerate(probabilities.values()):
            if p > 0 and below + p >= q:
                return edges[i] + (edges[i + 1] - edges[i]) * max(0.0, min(1.0, (q - below) / p))
            below += p
        return edges[-1]

    def metrics(self, records: Sequence[Record], predictions: Sequence[Prediction]) -> dict[str, float]:
        from fintune.evaluation.metrics import regression_metrics

        return regression_metrics(
            [float(r.target) for r in records],  # type: ignore[arg-type]
            [float(p.value) for p in predictions],
        )

    def to_dict(self) -> dict[str, Any]:
        learnt = {name: getattr(self, name) for name in self.learnt}
        return {**super().to_dict(), "unit": self.unit, **learnt}


class QATask(Task):
    """A context and a question in, an answer out."""

    type = "qa"
    max_new_tokens = 48
    headline_metrics = ("f1", "exact_match")

    def body(self, record: Record) -> str:
        return f"Context: {record.text}\n\nQuestion: {record.question}"

    def input_problem(self, record: Record) -> str | None:
        if not (record.question or "").strip():
            return "the question is empty"
        return super().input_problem(record)

    def metrics(self, records: Sequence[Record], predictions: Sequence[Prediction]) -> dict[str, float]:
        from fintune.evaluation.metrics import qa_metrics

        return qa_metrics([str(r.target) for r in records], [str(p.value) for p in predictions])


class SummarizationTask(Task):
    """A long text in, bullet points out, one a line."""

    type = "summarization"
    max_new_tokens = 96
    headline_metrics = ("rougeL", "rouge1", "rouge2")

    def fit(self, records: Sequence[Record]) -> None:
        if self.salience:
            self.salience = self.salience.fit((record.text, str(record.target)) for record in records)

    def completion(self, record: Record) -> str:
        return "\n".join(f"- {line}" for line in bullet_lines(str(record.target)))

    def metrics(self, records: Sequence[Record], predictions: Sequence[Prediction]) -> dict[str, float]:
        from fintune.evaluation.metrics import summarization_metrics

        return summarization_metrics(
            [self.completion(r) for r in records], [str(p.value) for p in predictions]
        )


class InstructionTask(Task):
    """Anything that is asked and answered in free text: `messages`, ShareGPT or Alpaca rows.

    The system message is the data's own where it has one. Of a conversation the last assistant turn is the
    target; what came before it is `text`, and the last user turn is `question`, which is never cut.
    """

    type = "instruction"
    max_new_tokens = 128
    headline_metrics = ("f1", "rougeL")

    def body(self, record: Record) -> str:
        return f"{record.text}\n\n{record.question}" if record.question else record.text

    def metrics(self, records: Sequence[Record], predictions: Sequence[Prediction]) -> dict[str, float]:
        from fintune.evaluation.metrics import instruction_metrics

        return instruction_metrics([str(r.target) for r in records], [str(p.value) for p in predictions])


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
