"""The kinds of task: a label, a number, an answer, a summary, an instruction.

A task of a recipe's YAML names one of them as its `type`; a plug-in may subclass any.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, Literal

from fintune.errors import DataError
from fintune.tasks.base import (
    INTERVAL,
    Decoding,
    Normalization,
    Prediction,
    Record,
    Task,
    softmax,
)
from fintune.text.sentences import bullet_lines


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
        from fintune.metrics.figures import classification_metrics

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
        from fintune.metrics.figures import regression_metrics

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
        from fintune.metrics.figures import qa_metrics

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
        from fintune.metrics.figures import summarization_metrics

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
        from fintune.metrics.figures import instruction_metrics

        return instruction_metrics([str(r.target) for r in records], [str(p.value) for p in predictions])
