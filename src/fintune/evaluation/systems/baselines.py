"""What needs no model: the answers every figure must beat, learnt from the training records alone."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import islice

from fintune.errors import DataError
from fintune.tasks import Prediction, Record, Task
from fintune.text.sentences import sentences

LEAD_SENTENCES = 3

_WORD = re.compile(r"[a-z0-9]+")
_STOP_WORDS = frozenset(
    "a an and are as at be been by did do does for from had has have how in is it its of on or that the "
    "their this to was were what when where which who whom whose why will with".split()
)


def lead(text: str, count: int = LEAD_SENTENCES) -> str:
    """The first sentences as bullets, one a line."""
    return "\n".join(f"- {sentence}" for sentence in islice(sentences(text), count))


def _content_words(text: str) -> set[str]:
    return set(_WORD.findall(text.lower())) - _STOP_WORDS


def overlap_sentence(context: str, question: str) -> str:
    """The context's sentence that shares most words with the question, the first of equals."""
    wanted = _content_words(question)
    return max(sentences(context), key=lambda sentence: len(wanted & _content_words(sentence)), default="")


def baseline_predictions(
    task: Task, train_records: Sequence[Record], test_records: Sequence[Record]
) -> tuple[str, list[Prediction]]:
    """The name of the task's baseline, and its answers to the test records.

    Classification: the label most frequent in training, with the training frequencies as probabilities;
    regression: the training mean; summarization: the first three sentences; qa: the sentence of the
    context that overlaps most with the question; any other type: the most frequent training answer.

    Raises:
        DataError: the baseline needs training records and there are none.
    """
    if task.type == "summarization":
        return f"lead-{LEAD_SENTENCES} sentences", [Prediction(lead(r.text)) for r in test_records]
    if task.type == "qa":
        answers = [overlap_sentence(r.text, r.question or "") for r in test_records]
        return "best-overlap sentence", [Prediction(answer) for answer in answers]
    if not train_records:
        raise DataError(f"Task {task.name} has no training records, which its baseline is made from.")
    if task.type == "regression":
        mean = sum(float(r.target) for r in train_records) / len(train_records)  # type: ignore[arg-type, misc]
        return "training mean", [Prediction(mean)] * len(test_records)
    counts = Counter(str(r.target) for r in train_records)
    if task.type == "classification":
        total = len(train_records)
        shares = {label: counts[label] / total for label in task.candidates()}
        majority = Prediction(max(shares, key=shares.__getitem__), shares)
        return "majority class", [majority] * len(test_records)
    return "most frequent answer", [Prediction(counts.most_common(1)[0][0])] * len(test_records)
