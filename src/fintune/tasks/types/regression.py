"""Regression: a number, answered as the mean of the model's distribution over levels."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from fintune.errors import DataError
from fintune.metrics import numbers
from fintune.metrics.measure import Measure, each
from fintune.metrics.strategy import strategy
from fintune.tasks import classical
from fintune.tasks.base import (
    INTERVAL,
    MISSING,
    Analysed,
    Answers,
    Decoding,
    Expectation,
    Prediction,
    Record,
    Task,
    softmax,
)
from fintune.text.numbers import PERCENT, parse_figure

if TYPE_CHECKING:
    from fintune.config import EvaluationConfig

_BASIS_POINTS = re.compile(r"\s*(?:bps?|basis points?)\s*$", re.IGNORECASE)
_OTHER_UNIT = re.compile(r"[$€£¥]|\b(?:USD|EUR|GBP|dollars?|euros?)\b", re.IGNORECASE)
"""A currency, which is never a task's unit."""
LARGEST = 5
"""How many of the largest errors to show on each side."""


def numbers_of(
    records: Sequence[Record], predictions: Sequence[Prediction]
) -> tuple[list[float], list[float]]:
    """Targets and answers as floats."""
    return [float(r.target) for r in records], [float(p.value) for p in predictions]  # type: ignore[arg-type]


def _error(record: Record, prediction: Prediction) -> float:
    return float(prediction.value) - float(record.target)  # type: ignore[arg-type]


def _same_direction(task: Task, record: Record, prediction: Prediction) -> float | None:
    """Whether target and answer have the same sign; None for a target of 0."""
    target = float(record.target)  # type: ignore[arg-type]
    return float(target * float(prediction.value) > 0) if target else None


def _covered(task: Task, record: Record, prediction: Prediction) -> float | None:
    bounds = prediction.interval
    return float(bounds[0] <= float(record.target) <= bounds[1]) if bounds else None  # type: ignore[arg-type]


class RegressionTask(Task):
    """A number.

    `fit` takes quantiles of the training targets as levels. A target is trained as the text of its nearest
    level; a prediction is Σ p(level) · (mean training target nearest to that level), which minimizes the
    expected squared error under the model's own distribution.
    """

    type = "regression"
    decoding: Decoding = "candidates"
    numeric = True
    measures = (
        Measure(
            "mse",
            "MSE",
            each(lambda _, r, p: _error(r, p) ** 2),
            better="lower",
            columns=("squared_error",),
        ),
        Measure(
            "mae",
            "MAE",
            each(lambda _, r, p: abs(_error(r, p))),
            better="lower",
            columns=("absolute_error",),
        ),
        Measure("r2", "R²", lambda _, r, p: numbers.r2_terms(*numbers_of(r, p)), aggregate=numbers.r2),
        MISSING,
        Measure(
            "directional_accuracy",
            "direction",
            each(_same_direction),
            columns=("same_direction",),
            further=True,
            share=True,
        ),
        # A good interval is narrow and still holds 80 %: neither metric alone shows that.
        Measure(
            "interval_coverage",
            "coverage (80 %)",
            each(_covered),
            better="neither",
            columns=("covered",),
            further=True,
            share=True,
        ),
        Measure(
            "mean_interval_width",
            "width (80 %)",
            each(lambda _, __, p: p.interval[1] - p.interval[0] if p.interval else None),
            better="neither",
            columns=("interval_width",),
            further=True,
        ),
        Measure(
            "spearman",
            "Spearman",
            lambda _, r, p: numbers.rank_terms(*numbers_of(r, p)),
            aggregate=numbers.correlation,
            further=True,
        ),
    )
    ranked_by = "mae"
    headline_metrics = ("mse", "r2")
    learnt = ("levels", "level_means", "interval_margin")
    error_means = "an answer farther from its target than the mean training target is"
    verb: ClassVar[str] = "Predict"
    input_lines: ClassVar[int] = 4
    max_levels = 15
    answers_with: Literal["expectation", "greedy"] = "expectation"
    """greedy: only the likeliest level, as decoding without the distribution would give."""

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
        """How much the adapter's intervals grow on each side; see `conformal_margin`."""

    def read_target(self, value: Any) -> float:
        """Read a number, also in human notation: `1,250`, `(3.2)`, `−1.5`; `5%` and `75 bps` are converted to
        the task's unit if that is `%` or `bps`."""
        if isinstance(value, bool) or str(value).strip().casefold() in ("true", "false"):
            raise ValueError(f"the target {value!r} is a boolean, not a number")
        try:
            return float(value)
        except (TypeError, ValueError):
            return self._written(value)

    def _written(self, value: Any) -> float:
        wrong = f"the target {value!r} is not a number"
        if not isinstance(value, str):
            raise ValueError(wrong)
        text, bps = _BASIS_POINTS.subn("", value)
        figure = parse_figure(text)
        if figure is None or figure.scale != 1 or _OTHER_UNIT.search(text):
            raise ValueError(wrong)
        written = "bps" if bps else "%" if figure.percent else ""
        own = "bps" if _BASIS_POINTS.fullmatch(self.unit) else "%" if self.unit in PERCENT else self.unit
        if bps and figure.percent:
            raise ValueError(wrong)
        if written in ("", own):
            return figure.figure
        if {written, own} != {"%", "bps"}:
            unit = f"unit is {self.unit}" if self.unit else "unit is not stated"
            raise ValueError(
                f"the target {value!r} is in {written}, but the task's {unit}: write only the number, or "
                f"set the unit under options of its custom_task, such as  options: {{unit: '{written}'}}"
            )
        return figure.figure / 100 if written == "bps" else figure.figure * 100

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
        for decimals in range(5):  # the shortest texts that still tell the levels apart
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

    def expectation(self, record: Record) -> Expectation:
        return Expectation(self.candidates(), self.level_means, float(record.target))  # type: ignore[arg-type]

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

    def quantile(self, probabilities: Mapping[str, float], q: float) -> float:
        """The q-quantile of a distribution over the levels, interpolated.

        Each level's probability is spread evenly between the midpoints to its neighbours; the outermost
        levels extend as far outward as inward.
        """
        values = [float(level) for level in self.levels]
        if len(values) == 1:
            return values[0]
        edges = spread(values)
        below = 0.0
        for i, p in enumerate(probabilities.values()):
            if p > 0 and below + p >= q:
                return edges[i] + (edges[i + 1] - edges[i]) * max(0.0, min(1.0, (q - below) / p))
            below += p
        return edges[-1]

    def calibrated(self, prediction: Prediction) -> Prediction:
        """The adapter's prediction with its interval adjusted as validation chose."""
        if not (prediction.interval and self.interval_margin):
            return prediction
        low, high = prediction.interval
        low, high = low - self.interval_margin, high + self.interval_margin
        if low > high:  # a negative margin of more than half the interval
            low = high = (low + high) / 2
        return replace(prediction, interval=(low, high))

    def configure(self, config: EvaluationConfig) -> None:
        super().configure(config)
        self.answers_with = config.number_decoding

    def calibrate(
        self,
        ask: Callable[[Sequence[Record]], list[Prediction]],
        records: Sequence[Record],
        config: EvaluationConfig,
        tokens: Callable[[str], int],
    ) -> dict[str, str | float]:
        """Set `interval_margin` from validation."""
        self.interval_margin = 0.0
        intervals = [answer.interval or (0.0, 0.0) for answer in ask(records)]
        targets = [float(record.target) for record in records]  # type: ignore[arg-type]
        self.interval_margin = conformal_margin(intervals, targets)
        return {"interval_margin": round(self.interval_margin, 4)}

    def answer_columns(self) -> dict[str, Literal["text", "number"]]:
        interval: dict[str, Literal["text", "number"]] = {"interval_low": "number", "interval_high": "number"}
        return {"prediction": "number", **interval, "probabilities": "text"}

    def answer_cells(self, line: Mapping[str, Any]) -> dict[str, Any]:
        low, high = line.get("interval") or (None, None)
        return {**super().answer_cells(line), "interval_low": low, "interval_high": high}

    # Figures and errors -------------------------------------------------------------------------------

    def missing(self, prediction: Prediction) -> bool:
        return not math.isfinite(float(prediction.value))

    def baseline(self, train: Sequence[Record], test: Sequence[Record]) -> Answers:
        return classical.training_mean(self.name, train, test)

    def references(self) -> dict[str, Callable[..., Answers | str]]:
        return {
            "tfidf": classical.ridge,
            "lexicon": lambda train, validation, test: classical.lexicon_line(train, test),
            "zero": lambda train, validation, test: ("zero", [Prediction(0.0)] * len(test)),
        }

    def mistake(self, record: Record, prediction: Prediction) -> tuple[str, dict[str, Any]]:
        """`wrong sign`, `too high` or `too low`."""
        error = _error(record, prediction)
        if not error:
            return "", {}
        opposed = float(prediction.value) * float(record.target) < 0  # type: ignore[arg-type]
        return ("wrong sign" if opposed else "too high" if error > 0 else "too low"), {}

    def is_error(
        self, records: Sequence[Record], predictions: Sequence[Prediction], train: Sequence[Record]
    ) -> list[bool]:
        targets = [float(r.target) for r in train or records]  # type: ignore[arg-type]
        mean = sum(targets) / len(targets)
        return [
            abs(_error(r, p)) > abs(float(r.target) - mean)  # type: ignore[arg-type]
            for r, p in zip(records, predictions, strict=True)
        ]

    def analysis(self, answers: Analysed) -> dict[str, Any]:
        """The largest errors on either side."""
        errors = {i: _error(answers.records[i], answers.predictions[i]) for i in answers.order}
        high = [i for i, error in errors.items() if error > 0][:LARGEST]
        low = [i for i, error in errors.items() if error < 0][:LARGEST]
        shown = {"too_high": high, "too_low": low}
        return {"largest": {side: [answers.example(i) for i in places] for side, places in shown.items()}}

    def details(self, records: Sequence[Record], predictions: Sequence[Prediction]) -> dict[str, Any]:
        """For moves in percent with dates: what trading on the forecasts would have earned."""
        if self.unit != "%":
            return {}
        curve = strategy([r.time[:10] for r in records], *numbers_of(records, predictions))
        return {"strategy": curve} if curve else {}

    def to_dict(self) -> dict[str, Any]:
        learnt = {name: getattr(self, name) for name in self.learnt}
        return {**super().to_dict(), "unit": self.unit, **learnt}


def spread(levels: Sequence[float]) -> list[float]:
    """The bounds of each level's probability mass; a single level gets one half on each side."""
    inner = [(a + b) / 2 for a, b in pairwise(levels)] or [levels[0] + 0.5]
    return [2 * levels[0] - inner[0], *inner, *([2 * levels[-1] - inner[-1]] if len(levels) > 1 else [])]


def _signed(value: float, decimals: int) -> str:
    """A number with its sign; a value that rounds to zero is +0, not -0."""
    text = f"{value:+.{decimals}f}"
    return text if float(text) else f"{0.0:+.{decimals}f}"


def conformal_margin(intervals: Sequence[tuple[float, float]], targets: Sequence[float]) -> float:
    """How much intervals must grow on each side to hold `INTERVAL` of new targets; negative shrinks them.

    Conformalized quantile regression (Romano, Patterson & Candès, NeurIPS 2019, equations 6 to 8): the
    ⌈(n + 1) · 0.8⌉-th smallest of max(low − y, y − high). The intervals hold targets exchangeable with these
    with at least that probability, whatever the model. 0 with fewer than 10 examples.
    """
    if len(targets) < 10:
        return 0.0
    outside = sorted(max(low - y, y - high) for (low, high), y in zip(intervals, targets, strict=True))
    return outside[min(len(outside), math.ceil((len(outside) + 1) * INTERVAL)) - 1]
