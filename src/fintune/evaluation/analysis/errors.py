"""Where a system goes wrong: confusions, sorts of mistakes, harder kinds of examples, the worst of them.

Only summaries and a few short examples are kept here; every prediction stands in the predictions file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fintune.evaluation.analysis import label_noise
from fintune.evaluation.analysis.mistakes import mistake
from fintune.evaluation.analysis.neighbours import NEAREST, Neighbours
from fintune.evaluation.analysis.slices import error_slices, traits_of
from fintune.evaluation.metrics import score_examples

if TYPE_CHECKING:
    from fintune.tasks import Prediction, Record, Task

WORST = 10
BROWSED = 200
"""The errors of a task that get their nearest training examples, and a place in the HTML report, at most."""
TEXT_CHARACTERS = 300
NEAREST_CHARACTERS = 200

_MEASURES = {
    "classification": "error_rate",
    "regression": "mae",
    "qa": "f1",
    "summarization": "rougeL",
    "instruction": "f1",
}
"""Type → the measure whose mean stands beside the share of errors: that of the first one of `score_examples`
(of its complement, for classification)."""
_ERROR_MEANS = {
    "classification": "another label than the expected one",
    "regression": "an answer farther from its target than the mean training target is",
    "qa": "an answer with a token F1 below 0.5",
    "summarization": "a summary with a number that is not in the text",
    "instruction": "an answer with a token F1 below 0.5",
}


@dataclass(frozen=True)
class Analysis:
    """The error analysis of one system on one task."""

    summary: dict[str, Any]
    """What the results file keeps."""
    examples: list[dict[str, Any] | None]
    """What the predictions file keeps of each example; None of an exact answer."""


def shorten(text: str, limit: int) -> str:
    """The text on at most `limit` characters, cut with an ellipsis."""
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"


def confusion_matrix(
    labels: Sequence[str], targets: Sequence[str], predictions: Sequence[str]
) -> list[list[int]]:
    """Counts; rows are targets, columns predictions, both in the order of `labels`."""
    from sklearn.metrics import confusion_matrix as matrix

    return matrix(targets, predictions, labels=list(labels)).tolist()


def analyse(
    task: Task,
    records: Sequence[Record],
    predictions: Sequence[Prediction],
    train: Sequence[Record] = (),
) -> Analysis:
    """The error analysis of one system on one task; empty for a task type that has no measures here.

    The summary's keys: `measure`, `error_means` (what counts as an error), `mistakes` (sort → count),
    `slices` (see `slices.error_slices`), `worst` (at most 10: the most confident wrong labels, the largest
    residuals, the lowest F1 or ROUGE-L); `confusion` and `label_noise` (classification), `numbers`
    (summarization), `largest` (regression: the largest errors `too_high` and `too_low`).

    An example's keys: `rank` (1 is the worst), `mistake`, `counts` (whether it is an error), `traits`,
    `nearest` (of the worst `BROWSED`: the training examples most like it), and for summaries `unfaithful`
    and `missing` numbers.

    Args:
        train: the training records, for nearest examples, rare labels and the mean of the targets.
    """
    scores = score_examples(task, records, predictions)
    if not scores:
        return Analysis({}, [None] * len(records))
    return _Errors(task, records, predictions, train, scores).analysis()


class _Errors:
    """One analysis: what its parts share."""

    def __init__(
        self,
        task: Task,
        records: Sequence[Record],
        predictions: Sequence[Prediction],
        train: Sequence[Record],
        scores: dict[str, list[float]],
    ) -> None:
        self.task, self.records, self.predictions, self.train = task, records, predictions, train
        self.measure, self.scores = next(iter(scores.items()))
        self.found = [mistake(task, r, p) for r, p in zip(records, predictions, strict=True)]
        self.order = self._worst_first()
        neighbours = Neighbours(task, train)
        # Labels are compared with those of near copies, so every example needs its neighbours.
        wanted = range(len(records)) if task.type == "classification" else self.order[:BROWSED]
        nearest = neighbours.nearest([records[i] for i in wanted]) if wanted else []
        self.nearest = dict(zip(wanted, nearest, strict=True))

    def analysis(self) -> Analysis:
        """The parts put together."""
        task, traits = self.task, traits_of(self.task, self.records, self.train)
        wrong = self._wrong()
        labels = task.type == "classification"
        values = [1 - score for score in self.scores] if labels else self.scores
        summary: dict[str, Any] = {
            "measure": _MEASURES[task.type],
            "error_means": _ERROR_MEANS[task.type],
            "mistakes": dict(Counter(name for name, _ in self.found if name).most_common()),
            "slices": error_slices(traits, wrong, values),
            "worst": [self._example(i) for i in self.order[:WORST]],
        }
        if labels:
            targets = [str(r.target) for r in self.records]
            answers = [str(p.value) for p in self.predictions]
            matrix = confusion_matrix(task.candidates(), targets, answers)
            summary["confusion"] = {"labels": task.candidates(), "matrix": matrix}
            summary["label_noise"] = self._label_noise(targets)
        elif task.type == "regression":
            high = [i for i in self.order if self._residual(i) > 0][: WORST // 2]
            low = [i for i in self.order if self._residual(i) < 0][: WORST // 2]
            summary["largest"] = {
                "too_high": [self._example(i) for i in high],
                "too_low": [self._example(i) for i in low],
            }
        elif task.type == "summarization":
            summary["numbers"] = {
                f"summaries_with_{kind}": sum(kind in details for _, details in self.found)
                for kind in ("unfaithful", "missing")
            }
        examples: list[dict[str, Any] | None] = [None] * len(self.records)
        for rank, i in enumerate(self.order, 1):
            name, details = self.found[i]
            examples[i] = {"rank": rank, "mistake": name, "counts": wrong[i], **details, "traits": traits[i]}
            if rank <= BROWSED:
                examples[i]["nearest"] = self._nearest(i)  # type: ignore[index]
        return Analysis(summary, examples)

    def _worst_first(self) -> list[int]:
        """Indices of the examples whose answer is not right, the worst first."""
        wrong = [i for i, (name, _) in enumerate(self.found) if name]
        if self.task.type == "classification":
            return sorted(wrong, key=lambda i: -self._confidence(i))
        return sorted(
            wrong, key=lambda i: -self.scores[i] if self.task.type == "regression" else self.scores[i]
        )

    def _wrong(self) -> list[bool]:
        if self.task.type == "classification":
            return [not score for score in self.scores]
        if self.task.type == "summarization":
            return ["unfaithful" in details for _, details in self.found]
        if self.task.type != "regression":
            return [score < 0.5 for score in self.scores]
        targets = [float(r.target) for r in self.train or self.records]  # type: ignore[arg-type]
        mean = sum(targets) / len(targets)
        return [
            score > abs(float(r.target) - mean)  # type: ignore[arg-type]
            for r, score in zip(self.records, self.scores, strict=True)
        ]

    def _residual(self, i: int) -> float:
        return float(self.predictions[i].value) - float(self.records[i].target)  # type: ignore[arg-type]

    def _confidence(self, i: int) -> float:
        return max((self.predictions[i].probabilities or {"": 0.0}).values())

    def _label_noise(self, targets: Sequence[str]) -> dict[str, Any]:
        """Candidates, at most `label_noise.CANDIDATES` of each sort, and how many were `found`."""
        confident = []
        for i, gap in label_noise.confident_disagreements(targets, self.predictions):
            around = self.nearest[i]
            agreeing = sum(str(r.target) == self.predictions[i].value for r, _ in around)
            confident.append({**self._example(i), "gap": gap, "neighbours_agree": [agreeing, len(around)]})
        nearest = [self.nearest[i] for i in range(len(targets))]
        copies = [
            {**self._example(i), "near_copy": _neighbour(record, cosine)}
            for i, record, cosine in label_noise.near_copies(targets, nearest)
        ]
        limit = label_noise.CANDIDATES
        found = {"confident": len(confident), "near_copies": len(copies)}
        return {"confident": confident[:limit], "near_copies": copies[:limit], "found": found}

    def _nearest(self, i: int) -> list[dict[str, Any]]:
        return [_neighbour(record, cosine) for record, cosine in self.nearest[i][:NEAREST]]

    def _example(self, i: int) -> dict[str, Any]:
        record, (name, details) = self.records[i], self.found[i]
        row: dict[str, Any] = {"id": record.id, "text": shorten(record.text, TEXT_CHARACTERS)}
        if record.question:
            row["question"] = record.question
        row |= {"target": record.target, "prediction": self.predictions[i].value, "mistake": name, **details}
        if self.measure == "correct":
            row["confidence"] = self._confidence(i)
        else:
            row[self.measure] = self.scores[i]
        if i in self.nearest:
            row["nearest"] = self._nearest(i)
        return row


def _neighbour(record: Record, cosine: float) -> dict[str, Any]:
    row: dict[str, Any] = {"id": record.id, "similarity": round(cosine, 4), "target": record.target}
    if record.question:
        row["question"] = record.question
    return {**row, "text": shorten(record.text, NEAREST_CHARACTERS)}
