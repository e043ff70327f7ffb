"""Instructions: free-text questions and answers from `messages`, ShareGPT or Alpaca rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fintune.metrics.measure import Measure, each
from fintune.tasks.base import MISSING, Prediction, Record, Task
from fintune.tasks.types.wording import is_half_wrong, wording_mistake
from fintune.text.answers import answer_scores, rouge
from fintune.tool_calls import as_hermes


def _said(record: Record, prediction: Prediction) -> str:
    """An answer with tool calls rewritten in the target's format, whatever the base's."""
    text = str(prediction.value)
    return as_hermes(text) if record.uses_tools else text


class InstructionTask(Task):
    """A free-text answer.

    The system message is the data's own if it has one. In a conversation, the last assistant turn is the
    target, and the turns before it are asked as turns of the chat template. A conversation that is too long
    loses its oldest turns.

    Args:
        answers: `last`, or `all`: train on each assistant turn, given the turns before it.

    Raises:
        ValueError: `answers` is something else.
    """

    type = "instruction"
    measures = (
        Measure(
            "f1",
            "F1 (tokens)",
            each(lambda _, r, p: answer_scores(str(r.target), _said(r, p))[1]),
            share=True,
        ),
        Measure(
            "rougeL",
            "ROUGE-L",
            each(lambda _, r, p: rouge(str(r.target), _said(r, p))["rougeL"]),
            share=True,
        ),
        MISSING,
    )
    headline_metrics = ("f1", "rougeL")
    max_new_tokens = 128
    takes_turns = True
    error_means = "an answer with a token F1 below 0.5"

    def __init__(self, name: str, instruction: str, answers: str = "last") -> None:
        super().__init__(name, instruction)
        if answers not in ("last", "all"):
            raise ValueError(f"answers must be last or all, got {answers!r}")
        self.every_answer = answers == "all"

    def body(self, record: Record) -> str:
        return f"{record.text}\n\n{record.question}" if record.question else record.text

    def mistake(self, record: Record, prediction: Prediction) -> tuple[str, dict[str, Any]]:
        return wording_mistake(str(record.target), _said(record, prediction)), {}

    def is_error(
        self, records: Sequence[Record], predictions: Sequence[Prediction], train: Sequence[Record]
    ) -> list[bool]:
        pairs = zip(records, predictions, strict=True)
        return is_half_wrong(records, [replace(p, value=_said(r, p)) for r, p in pairs])

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), **({"answers": "all"} if self.every_answer else {})}
