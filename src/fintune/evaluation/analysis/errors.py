"""Analyses a system's errors: confusions, sorts of mistakes, harder kinds of examples, the worst examples.

Only summaries and a few short examples are kept here; the predictions file has every prediction.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fintune.evaluation.analysis.neighbours import NEAREST, Neighbours
from fintune.evaluation.analysis.slices import error_slices, traits_of
from fintune.tasks.base import Analysed

if TYPE_CHECKING:
    from fintune.evaluation.scores import Scored
    from fintune.tasks import Record

WORST = 10
BROWSED = 200
"""The most errors per task that get nearest training examples and a place in the HTML report."""
TEXT_CHARACTERS = 300
NEAREST_CHARACTERS = 200


@dataclass(frozen=True)
class Analysis:
    """The error analysis of one system on one task."""

    summary: dict[str, Any]
    """The part for the results file."""
    examples: list[dict[str, Any] | None]
    """Each example's part for the predictions file; None for an exact answer."""


def shorten(text: str, limit: int) -> str:
    """The text shortened to at most `limit` characters, with an ellipsis."""
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"


def analyse(scored: Scored, train: Sequence[Record] = ()) -> Analysis:
    """The error analysis of one system on one task; empty for a task type that has no measures.

    The summary's keys: `measure`, `error_means` (what counts as an error), `mistakes` (sort → count),
    `slices` (see `slices.error_slices`), `worst` (at most 10, by `Task.severity`), and those of the type
    (`Task.analysis`): labels have `confusion` and `label_noise`, numbers `largest`, summaries `numbers`.
    An example's keys: `rank` (1 is the worst), `mistake`, `counts` (whether it is an error), `traits`,
    `nearest` (the most similar training examples, for the worst `BROWSED`), and the mistake's details.

    Args:
        train: the training records, for nearest examples, rare labels and the mean of the targets.
    """
    if scored.task.ranking is None:
        return Analysis({}, [None] * len(scored.records))
    return _Errors(scored, train).analysis()


class _Errors:
    """One analysis, with what its parts share."""

    def __init__(self, scored: Scored, train: Sequence[Record]) -> None:
        self.task, self.records, self.predictions = scored.task, scored.records, scored.predictions
        self.train = train
        ranking = scored.task.ranking
        assert ranking is not None
        self.measure = ranking.column
        self.scores: list[float] = scored.tables[ranking.name][:, 0].tolist()
        self.found = [self.task.mistake(r, p) for r, p in zip(self.records, self.predictions, strict=True)]
        severity = self.task.severity(self.predictions, self.scores)
        wrong = [i for i, (name, _) in enumerate(self.found) if name]
        self.order = sorted(wrong, key=lambda i: -severity[i])
        wanted = range(len(self.records)) if self.task.needs_neighbours else self.order[:BROWSED]
        neighbours = Neighbours(self.task, train)
        nearest = neighbours.nearest([self.records[i] for i in wanted]) if wanted else []
        self.nearest = dict(zip(wanted, nearest, strict=True))

    def analysis(self) -> Analysis:
        """Combine the parts."""
        traits = traits_of(self.task, self.records, self.train)
        wrong = self.task.is_error(self.records, self.predictions, self.train)
        measure, values = self.task.error_measure(self.scores)
        analysed = Analysed(
            records=self.records,
            predictions=self.predictions,
            order=self.order,
            mistakes=self.found,
            example=self._example,
            nearest=self.nearest,
            neighbour=_neighbour,
        )
        summary: dict[str, Any] = {
            "measure": measure,
            "error_means": self.task.error_means,
            "mistakes": dict(Counter(name for name, _ in self.found if name).most_common()),
            "slices": error_slices(traits, wrong, values),
            "worst": [self._example(i) for i in self.order[:WORST]],
            **self.task.analysis(analysed),
        }
        examples: list[dict[str, Any] | None] = [None] * len(self.records)
        for rank, i in enumerate(self.order, 1):
            name, details = self.found[i]
            examples[i] = {"rank": rank, "mistake": name, "counts": wrong[i], **details, "traits": traits[i]}
            if rank <= BROWSED:
                examples[i]["nearest"] = self._nearest(i)  # type: ignore[index]
        return Analysis(summary, examples)

    def _nearest(self, i: int) -> list[dict[str, Any]]:
        return [_neighbour(record, cosine) for record, cosine in self.nearest[i][:NEAREST]]

    def _example(self, i: int) -> dict[str, Any]:
        record, (name, details) = self.records[i], self.found[i]
        row: dict[str, Any] = {"id": record.id, "text": shorten(record.text, TEXT_CHARACTERS)}
        if record.question:
            row["question"] = record.question
        row |= {"target": record.target, "prediction": self.predictions[i].value, "mistake": name, **details}
        if self.task.one_of:
            row["confidence"] = max((self.predictions[i].probabilities or {"": 0.0}).values())
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
