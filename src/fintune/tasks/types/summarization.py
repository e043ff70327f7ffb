"""Summarization: a long text in, bullet points out, one per line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from fintune.metrics.measure import Measure, each, ratio
from fintune.tasks import classical
from fintune.tasks.base import MISSING, Analysed, Answers, Prediction, Record, Task
from fintune.tasks.types.wording import absent
from fintune.text.answers import normalize_answer, rouge
from fintune.text.numbers import supported_numbers, unsupported_figures
from fintune.text.sentences import bullet_lines
from fintune.text.written import parsed


def _rouge(name: str, title: str) -> Measure:
    """An F-measure of ROUGE (Lin, 2004), with Porter stemming.

    rougeL treats the bullets as one sequence, so their order counts; it is stricter than the package's other
    variant, rougeLsum, which matches bullet by bullet.
    """
    return Measure(
        name, title, each(lambda task, r, p: rouge(task.completion(r), str(p.value))[name]), share=True
    )


class SummarizationTask(Task):
    """Bullet points."""

    type = "summarization"
    measures = (
        _rouge("rouge1", "ROUGE-1"),
        _rouge("rouge2", "ROUGE-2"),
        _rouge("rougeL", "ROUGE-L"),
        MISSING,
        # Supported numbers / all numbers over all summaries, not the mean over summaries.
        Measure(
            "number_faithfulness",
            "true numbers",
            lambda _, records, predictions: [
                supported_numbers(str(p.value), r.text) for r, p in zip(records, predictions, strict=True)
            ],
            aggregate=ratio,
            columns=("numbers_supported", "numbers"),
            further=True,
            share=True,
        ),
    )
    ranked_by = "rougeL"
    headline_metrics = ("rougeL", "rouge1", "rouge2")
    max_new_tokens = 96
    grounded = "bullets"
    semantic = True
    error_means = "a summary with a number that is not in the text"
    verb: ClassVar[str] = "Summarize"
    input_lines: ClassVar[int] = 12
    default_salience: ClassVar[str | None] = "learnt"

    def fit(self, records: Sequence[Record]) -> None:
        if self.salience:
            self.salience = self.salience.fit((record.text, str(record.target)) for record in records)

    def read_target(self, value: Any) -> str | float:
        """Read a text, or a list of texts, one per bullet."""
        value = parsed(value) if isinstance(value, str) else value
        if isinstance(value, list | tuple) and all(isinstance(line, str) for line in value):
            return "\n".join(value)
        return super().read_target(value)

    def completion(self, record: Record) -> str:
        return "\n".join(f"- {line}" for line in bullet_lines(str(record.target)))

    def baseline(self, train: Sequence[Record], test: Sequence[Record]) -> Answers:
        return classical.lead(test)

    def references(self) -> dict[str, Callable[..., Answers | str]]:
        return {"tfidf": lambda train, validation, test: classical.central(train, test)}

    def mistake(self, record: Record, prediction: Prediction) -> tuple[str, dict[str, Any]]:
        """`unfaithful number` (not in the text), `missing number` (of the expected summary), else
        `other wording`; `unfaithful` and `missing` hold the numbers."""
        expected, got = str(record.target), str(prediction.value)
        details = {"unfaithful": absent(got, record.text), "missing": absent(expected, got)}
        for kind in details:
            if details[kind]:
                return f"{kind} number", {name: found for name, found in details.items() if found}
        same = normalize_answer(self.completion(record)) == normalize_answer(got)
        return ("" if same else "other wording"), {}

    def is_error(
        self, records: Sequence[Record], predictions: Sequence[Prediction], train: Sequence[Record]
    ) -> list[bool]:
        pairs = zip(records, predictions, strict=True)
        return [bool(unsupported_figures(str(p.value), r.text)) for r, p in pairs]

    def analysis(self, answers: Analysed) -> dict[str, Any]:
        """How many summaries have an unfaithful or missing number."""
        return {
            "numbers": {
                f"summaries_with_{kind}": sum(kind in details for _, details in answers.mistakes)
                for kind in ("unfaithful", "missing")
            }
        }
