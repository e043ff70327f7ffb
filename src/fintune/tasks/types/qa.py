"""Question answering: a context and a question in, an answer out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from fintune.metrics.measure import Measure, each
from fintune.tasks import classical
from fintune.tasks.base import MISSING, Answers, Prediction, Record, Task
from fintune.tasks.types.wording import is_half_wrong, wording_mistake
from fintune.text.answers import answer_scores
from fintune.text.numbers import numeric_match, tatqa_scores
from fintune.text.written import parsed

TATQA_KINDS = frozenset({"span", "multi-span", "arithmetic", "count"})


def _squad(record: Record, prediction: Prediction) -> tuple[float, float]:
    return answer_scores(str(record.target), str(prediction.value))


def _tatqa(record: Record, prediction: Prediction) -> tuple[float | None, float | None]:
    """TAT-QA's exact match and F1, only for its own answer types."""
    if record.kind not in TATQA_KINDS:
        return None, None
    return tatqa_scores(str(record.target), str(prediction.value), record.kind)


class QATask(Task):
    """An answer to a question on a text."""

    type = "qa"
    inputs = ("question", "text")
    measures = (
        Measure("exact_match", "exact match", each(lambda _, r, p: _squad(r, p)[0]), share=True),
        Measure("f1", "F1 (tokens)", each(lambda _, r, p: _squad(r, p)[1]), share=True),
        MISSING,
        Measure(
            "numeric_exact_match",
            "number match",
            each(lambda _, r, p: numeric_match(str(r.target), str(p.value))),
            columns=("numeric_match",),
            further=True,
            share=True,
        ),
        Measure(
            "tatqa_exact_match",
            "TAT-QA EM",
            each(lambda _, r, p: _tatqa(r, p)[0]),
            optional=True,
            further=True,
            share=True,
        ),
        Measure(
            "tatqa_f1",
            "TAT-QA F1",
            each(lambda _, r, p: _tatqa(r, p)[1]),
            optional=True,
            further=True,
            share=True,
        ),
    )
    ranked_by = "f1"
    headline_metrics = ("f1", "exact_match")
    max_new_tokens = 48
    grounded = "passage"
    error_means = "an answer with a token F1 below 0.5"
    verb: ClassVar[str] = "Answer"
    input_lines: ClassVar[int] = 7

    def read_target(self, value: Any) -> str | float:
        """Read a text, or SQuAD's answers, of which the first counts: `{text: […], answer_start: […]}`, or a
        list of `{text: …}`. A list of texts must hold exactly one."""
        value = parsed(value) if isinstance(value, str) else value
        if isinstance(value, Mapping) and "text" in value:
            value = value["text"]
            value = value[0] if isinstance(value, list | tuple) and value else value or ""
        elif isinstance(value, list | tuple) and value and all(isinstance(each, Mapping) for each in value):
            return self.read_target(value[0])
        elif isinstance(value, list | tuple) and len({str(each) for each in value}) == 1:
            value = value[0]
        return super().read_target(value)

    def body(self, record: Record) -> str:
        return f"Context: {record.text}\n\nQuestion: {record.question}"

    def baseline(self, train: Sequence[Record], test: Sequence[Record]) -> Answers:
        return classical.best_overlap(test)

    def mistake(self, record: Record, prediction: Prediction) -> tuple[str, dict[str, Any]]:
        return wording_mistake(str(record.target), str(prediction.value)), {}

    def is_error(
        self, records: Sequence[Record], predictions: Sequence[Prediction], train: Sequence[Record]
    ) -> list[bool]:
        return is_half_wrong(records, predictions)
