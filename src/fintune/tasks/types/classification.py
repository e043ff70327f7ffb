"""Classification: one label of a fixed set, chosen by log-likelihood, never by parsing free text."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from fintune.metrics import labels, reliability
from fintune.metrics.measure import Measure, each
from fintune.tasks import classical, label_noise
from fintune.tasks.base import (
    MISSING,
    Analysed,
    Answers,
    Decoding,
    Normalization,
    Prediction,
    Record,
    Task,
    softmax,
)

if TYPE_CHECKING:
    from fintune.config import EvaluationConfig

RARE = 0.5
"""A label is rare if its share of the training examples is below this fraction of an equal share."""
_TEMPERATURES = (0.02, 50.0)
TEMPERATURE_ROWS, TEMPERATURE_EACH = 50, 5
"""The fewest examples, and the fewest right and the fewest wrong answers, to fit a temperature. With right
answers only, the best temperature would be 0, which makes every answer certain."""


def _confusion(task: Task, records: Sequence[Record], predictions: Sequence[Prediction]) -> Any:
    targets, answers = [str(r.target) for r in records], [str(p.value) for p in predictions]
    return labels.confusion_cells(task.one_of, targets, answers)


def _correct(record: Record, prediction: Prediction) -> float:
    return float(str(record.target) == str(prediction.value))


def _brier(task: Task, record: Record, prediction: Prediction) -> float | None:
    shares = prediction.probabilities
    return reliability.brier(shares, str(record.target)) if shares else None


def _sure_and_correct(task: Task, records: Sequence[Record], predictions: Sequence[Prediction]) -> Any:
    """(confidence, correct) of each example; the confidence is nan for an answer without probabilities."""
    return [
        ((p.probabilities or {}).get(str(p.value), 0.0) if p.probabilities else math.nan, _correct(r, p))
        for r, p in zip(records, predictions, strict=True)
    ]


def _if_sure(figure: Callable[[Any, Any], float]) -> Callable[[Any], float]:
    """A metric of confidences and hits; nan if any answer has no confidence."""
    return lambda table: math.nan if any(map(math.isnan, table[:, 0])) else figure(table[:, 0], table[:, 1])


class ClassificationTask(Task):
    """One label of `labels`."""

    type = "classification"
    decoding: Decoding = "candidates"
    measures = (
        Measure(
            "accuracy", "accuracy", each(lambda _, r, p: _correct(r, p)), columns=("correct",), share=True
        ),
        Measure("macro_f1", "F1 (macro)", _confusion, aggregate=labels.macro_f1, share=True),
        Measure("weighted_f1", "F1 (weighted)", _confusion, aggregate=labels.weighted_f1, share=True),
        MISSING,
        Measure("brier", "Brier", each(_brier), better="lower", further=True),
        Measure("mcc", "MCC", _confusion, aggregate=labels.mcc, further=True),
        Measure(
            "ece",
            "ECE",
            _sure_and_correct,
            better="lower",
            aggregate=_if_sure(reliability.expected_calibration_error),
            whole=True,
            further=True,
        ),
        Measure(
            "aurc",
            "AURC",
            _sure_and_correct,
            better="lower",
            aggregate=_if_sure(reliability.aurc),
            whole=True,
            further=True,
        ),
    )
    headline_metrics = ("accuracy", "macro_f1")
    learnt = ("normalization", "temperature")
    needs_neighbours = True
    error_means = "another label than the expected one"
    verb: ClassVar[str] = "Classify"

    def __init__(
        self,
        name: str,
        instruction: str,
        labels: Sequence[str],
        normalization: Normalization = "none",
        temperature: float = 1.0,
    ) -> None:
        """
        Raises:
            ValueError: there are fewer than two different labels.
        """
        super().__init__(name, instruction)
        if len(set(labels)) < 2:
            raise ValueError(f"labels must hold at least two different labels, got {list(labels)}")
        self.labels = tuple(labels)
        self.normalization = normalization
        self.temperature = temperature

    @property
    def one_of(self) -> tuple[str, ...]:
        return self.labels

    def unknown_labels(self, record: Record) -> list[str]:
        target = str(record.target)
        return [target] if target.strip() and target not in self.labels else []

    def candidates(self) -> list[str]:
        return list(self.labels)

    def decide(self, log_likelihoods: Sequence[float]) -> Prediction:
        probabilities = dict(zip(self.labels, softmax(log_likelihoods), strict=True))
        return Prediction(max(probabilities, key=probabilities.__getitem__), probabilities)

    def configure(self, config: EvaluationConfig) -> None:
        super().configure(config)
        self.calibration = config.calibration
        if config.label_normalization != "auto":
            self.normalization = config.label_normalization

    def calibrate(
        self,
        ask: Callable[[Sequence[Record]], list[Prediction]],
        records: Sequence[Record],
        config: EvaluationConfig,
        tokens: Callable[[str], int],
    ) -> dict[str, str | float]:
        """Set `normalization` to the one with the most right answers, and fit `temperature`.

        An explicit recipe setting of the normalization wins. If all labels have equally many tokens, the
        normalization does not matter and they are asked once. Ties go to the plain likelihood, `none`.
        """
        self.temperature = 1.0
        even = len({tokens(label) for label in self.candidates()}) == 1
        answers: dict[Normalization, list[Prediction]] = {}
        for how in get_args(Normalization):
            wanted = config.label_normalization
            if wanted == how or (wanted == "auto" and (how == "none" or not even)):
                self.normalization = how
                answers[how] = ask(records)
        right = {how: sum(map(_correct, records, found)) for how, found in answers.items()}
        self.normalization = max(right, key=right.__getitem__)
        shares = [answer.probabilities or {} for answer in answers[self.normalization]]
        self.temperature = fit_temperature(shares, [str(record.target) for record in records])
        return {"normalization": self.normalization, "temperature": round(self.temperature, 4)}

    def answer_columns(self) -> dict[str, Literal["text", "number"]]:
        return probability_columns(self.labels)

    def answer_cells(self, line: Mapping[str, Any]) -> dict[str, Any]:
        return probability_cells(line, self.labels)

    # Figures and errors -------------------------------------------------------------------------------

    def missing(self, prediction: Prediction) -> bool:
        return prediction.value not in self.labels

    def baseline(self, train: Sequence[Record], test: Sequence[Record]) -> Answers:
        return classical.majority(self.name, self.labels, train, test)

    def references(self) -> dict[str, Callable[..., Answers | str]]:
        return {
            "tfidf": lambda train, validation, test: classical.logistic(self.labels, train, validation, test),
            "lexicon": lambda train, validation, test: classical.lexicon_labels(self.labels, test),
        }

    def mistake(self, record: Record, prediction: Prediction) -> tuple[str, dict[str, Any]]:
        return ("" if prediction.value == record.target else f"{record.target} → {prediction.value}"), {}

    def severity(self, predictions: Sequence[Prediction], values: Sequence[float]) -> list[float]:
        """The more confident a wrong label, the worse."""
        return [max((p.probabilities or {"": 0.0}).values()) for p in predictions]

    def error_measure(self, values: Sequence[float]) -> tuple[str, list[float]]:
        return "error_rate", [1 - value for value in values]

    def traits(self, records: Sequence[Record], train: Sequence[Record]) -> list[dict[str, str]]:
        """`label`, and with training records `rarity`."""
        counts = Counter(str(record.target) for record in train)
        limit = RARE * len(train) / len(self.labels)
        rows = []
        for record in records:
            row = {"label": str(record.target)}
            if train and any(counts[label] < limit for label in self.labels):
                row["rarity"] = "rare label" if counts[row["label"]] < limit else "other label"
            rows.append(row)
        return rows

    def analysis(self, answers: Analysed) -> dict[str, Any]:
        """The confusion matrix, and labels that may be wrong in the data."""
        targets = [str(r.target) for r in answers.records]
        given = [str(p.value) for p in answers.predictions]
        matrix = labels.confusion_matrix(self.labels, targets, given)
        return {
            "confusion": {"labels": list(self.labels), "matrix": matrix},
            "label_noise": label_noise.candidates(targets, answers),
        }

    def details(self, records: Sequence[Record], predictions: Sequence[Prediction]) -> dict[str, Any]:
        """`per_class`; if all answers have probabilities also `reliability` and `risk_coverage`."""
        targets = Counter(str(r.target) for r in records)
        given = Counter(str(p.value) for p in predictions)
        right = Counter(str(r.target) for r, p in zip(records, predictions, strict=True) if _correct(r, p))
        hits = {label: (right[label], given[label], targets[label]) for label in self.labels}
        found: dict[str, Any] = {"per_class": labels.per_label(hits)}
        pairs = _sure_and_correct(self, records, predictions)
        if not any(math.isnan(sure) for sure, _ in pairs):
            sure, correct = zip(*pairs, strict=True)
            found["reliability"] = reliability.reliability(sure, correct)
            found["risk_coverage"] = reliability.risk_coverage(sure, correct)
        return found

    def to_dict(self) -> dict[str, Any]:
        chosen: dict[str, Any] = {"normalization": self.normalization, "temperature": self.temperature}
        chosen = {name: value for name, value in chosen.items() if value not in ("none", 1.0)}
        return {**super().to_dict(), "labels": list(self.labels), **chosen}


def probability_columns(labels: Sequence[str]) -> dict[str, Literal["text", "number"]]:
    """`Task.answer_columns` of a task with labels: each label's probability has its own column."""
    return {"prediction": "text", **{f"probability_{label}": "number" for label in labels}}


def probability_cells(line: Mapping[str, Any], labels: Sequence[str]) -> dict[str, Any]:
    """The cells of `probability_columns`."""
    shares = line.get("probabilities") or {}
    cells = {f"probability_{label}": shares.get(label) for label in labels}
    return {"prediction": line.get("prediction"), **cells}


def fit_temperature(probabilities: Sequence[Mapping[str, float]], targets: Sequence[str]) -> float:
    """The T that minimizes the targets' mean NLL under softmax(log p / T) (Guo et al., 2017); 1 if there are
    too few examples, or too few right or wrong ones, to fit it.

    The order of labels stays, so no answer changes, only its confidence.
    """
    from scipy.optimize import minimize_scalar

    right = sum(max(p, key=p.__getitem__) == target for p, target in zip(probabilities, targets, strict=True))
    if len(targets) < TEMPERATURE_ROWS or min(right, len(targets) - right) < TEMPERATURE_EACH:
        return 1.0
    scores = [[math.log(max(p, 1e-300)) for p in shares.values()] for shares in probabilities]
    wanted = [list(shares).index(target) for shares, target in zip(probabilities, targets, strict=True)]

    def nll(log_temperature: float) -> float:
        temperature = math.exp(log_temperature)
        shares = (softmax([score / temperature for score in row]) for row in scores)
        return -sum(math.log(max(p[i], 1e-300)) for p, i in zip(shares, wanted, strict=True)) / len(wanted)

    low, high = (math.log(bound) for bound in _TEMPERATURES)
    return math.exp(minimize_scalar(nll, bounds=(low, high), method="bounded").x)
