"""Multi-label: any number of labels of a fixed set, decided by the likelihoods of whole label sets.

The candidates are the empty set, each label alone, and the most frequent sets in training (label powerset,
Tsoumakas and Katakis, 2007). A label's probability is the sum over the sets that contain it, and the answer
is every label with at least 0.5; so the answer may be a set that is not a candidate.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from fintune.metrics import labels as label_metrics
from fintune.metrics.measure import Measure, each
from fintune.tasks import classical
from fintune.tasks.base import MISSING, Answers, Decoding, Prediction, Record, Task, softmax
from fintune.tasks.types.classification import probability_cells, probability_columns
from fintune.text.written import parsed

NO_LABEL = "none"
"""The completion and answer of an example without labels."""
SETS = 32
"""At most this many sets of two or more labels are scored: the most frequent ones in training."""
_SEPARATOR = re.compile(r"[,;|\n]")


def _sets(task: Task, records: Sequence[Record], predictions: Sequence[Prediction]) -> Any:
    assert isinstance(task, MultiLabelTask)
    return label_metrics.set_counts(
        task.labels, [task.set_of(r.target) for r in records], [task.set_of(p.value) for p in predictions]
    )


def _brier(task: Any, record: Record, prediction: Prediction) -> float | None:
    """The mean over labels of (p − [the label is expected])², 0 to 1 (Brier, 1950)."""
    if not prediction.probabilities:
        return None
    wanted = task.set_of(record.target)
    return sum((p - (label in wanted)) ** 2 for label, p in prediction.probabilities.items()) / len(
        task.labels
    )


class MultiLabelTask(Task):
    """Labels of `labels`: targets and answers are texts such as `earnings, guidance`, or `none`."""

    type = "multilabel"
    decoding: Decoding = "candidates"
    measures = (
        Measure(
            "exact_match",
            "same labels",
            each(lambda task, r, p: task.set_of(r.target) == task.set_of(p.value)),
            share=True,
        ),
        Measure("micro_f1", "F1 (micro)", _sets, aggregate=label_metrics.set_micro_f1, share=True),
        Measure("macro_f1", "F1 (macro)", _sets, aggregate=label_metrics.set_macro_f1, share=True),
        MISSING,
        Measure("brier", "Brier", each(_brier), better="lower", further=True),
    )
    headline_metrics = ("micro_f1", "macro_f1", "exact_match")
    learnt = ("sets",)
    error_means = "another set of labels than the expected one"
    verb: ClassVar[str] = "Label"

    def __init__(
        self,
        name: str,
        instruction: str,
        labels: Sequence[str],
        sets: Sequence[str] = (),
    ) -> None:
        """
        Raises:
            ValueError: there are no labels, or one could be mistaken for a list of labels.
        """
        super().__init__(name, instruction)
        if not labels or len(set(labels)) < len(labels):
            raise ValueError(f"labels must hold different labels, got {list(labels)}")
        for label in labels:
            if _SEPARATOR.search(label) or label != label.strip() or label == NO_LABEL:
                raise ValueError(
                    f"the label {label!r} cannot be part of a list of labels: write it without commas, "
                    f"semicolons, bars and outer spaces, and not as '{NO_LABEL}'"
                )
        self.labels = tuple(labels)
        self.sets = list(sets)

    # Sets as texts ------------------------------------------------------------------------------------

    def set_of(self, value: Any) -> frozenset[str]:
        """The labels in a text such as `earnings, guidance`; none for `none` or an empty text."""
        parts = (part.strip() for part in _SEPARATOR.split(str(value or "")))
        return frozenset(part for part in parts if part and part != NO_LABEL)

    def text_of(self, chosen: frozenset[str]) -> str:
        """A set as text, in the order of `labels`; unknown labels last, so that errors can name them."""
        known = [label for label in self.labels if label in chosen]
        return ", ".join(known + sorted(chosen.difference(known))) or NO_LABEL

    def read_target(self, value: Any) -> str:
        """Read a list of labels, also as JSON or Python in a cell, or a text that separates them by commas,
        semicolons or bars; an empty cell has no labels."""
        if value is None:
            return ""
        value = parsed(value) if isinstance(value, str) else value
        parts = value if isinstance(value, list | tuple) else [value]
        if not all(isinstance(part, str | int | float) for part in parts):
            raise ValueError("the target is not a list of labels")
        texts = (str(part).lower() if isinstance(part, bool) else str(part) for part in parts)
        return self.text_of(frozenset().union(*map(self.set_of, texts)))

    def relabel(self, target: str | float | None, labels: Mapping[str, str | None]) -> str | float | None:
        """Remove labels that are to be left out; a row that had no other label is left out too."""
        given = self.set_of(target)
        meant = frozenset(labels.get(label, label) for label in given) - {None}
        return None if given and not meant else self.text_of(meant)  # type: ignore[arg-type]

    def unknown_labels(self, record: Record) -> list[str]:
        return sorted(self.set_of(record.target).difference(self.labels))

    # Answers ------------------------------------------------------------------------------------------

    def fit(self, records: Sequence[Record]) -> None:
        """Learn the most frequent sets of two or more labels."""
        counts = Counter(self.set_of(record.target) for record in records)
        several = {self.text_of(chosen): n for chosen, n in counts.items() if len(chosen) > 1}
        self.sets = sorted(several, key=lambda text: (-several[text], text))[:SETS]

    def completion(self, record: Record) -> str:
        return self.text_of(self.set_of(record.target))

    def candidates(self) -> list[str]:
        return [NO_LABEL, *self.labels, *self.sets]

    def decide(self, log_likelihoods: Sequence[float]) -> Prediction:
        shares = dict(zip(self.candidates(), softmax(log_likelihoods), strict=True))
        members = {text: self.set_of(text) for text in shares}
        by_label = {
            label: sum(p for text, p in shares.items() if label in members[text]) for label in self.labels
        }
        value = self.text_of(frozenset(label for label, p in by_label.items() if p >= 0.5))
        return Prediction(value, by_label, set_probability=shares.get(value, 0.0))

    def answer_columns(self) -> dict[str, Literal["text", "number"]]:
        return probability_columns(self.labels)

    def answer_cells(self, line: Mapping[str, Any]) -> dict[str, Any]:
        return probability_cells(line, self.labels)

    # Figures and errors -------------------------------------------------------------------------------

    def missing(self, prediction: Prediction) -> bool:
        return not self.set_of(prediction.value) <= set(self.labels)

    def baseline(self, train: Sequence[Record], test: Sequence[Record]) -> Answers:
        """The most frequent set of labels, with the labels' frequencies."""
        classical.needed(self.name, train)
        counts = Counter(self.set_of(record.target) for record in train)
        shares = {
            label: sum(n for c, n in counts.items() if label in c) / len(train) for label in self.labels
        }
        most = Prediction(self.text_of(max(counts, key=lambda c: (counts[c], sorted(c)))), shares)
        return "most frequent labels", [most] * len(test)

    def mistake(self, record: Record, prediction: Prediction) -> tuple[str, dict[str, Any]]:
        """`missed`, `too many` or `other labels`."""
        wanted, got = self.set_of(record.target), self.set_of(prediction.value)
        if wanted == got:
            return "", {}
        return ("too many" if wanted < got else "missed" if got < wanted else "other labels"), {}

    def details(self, records: Sequence[Record], predictions: Sequence[Prediction]) -> dict[str, Any]:
        """`per_class`: precision, recall, F1 and n of each label."""
        sums = _sets(self, records, predictions).sum(axis=0).reshape(-1, 3).astype(int).tolist()
        return {"per_class": label_metrics.per_label(dict(zip(self.labels, map(tuple, sums), strict=True)))}

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "labels": list(self.labels), "sets": self.sets}
