"""A small synthetic finance sample for the five tasks: a task and a seed in, records out.

Used if there is no real data. Every text is a template filled with invented companies, figures and names; it
copies no dataset and describes no real event. Its test split requires generalization: it has its own
companies and phrasings, and numbers with an odd last digit, while those of train and validation end in an
even one.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from fintune.data.raw.sample.calls import call
from fintune.data.raw.sample.news import news
from fintune.data.raw.sample.reports import report
from fintune.data.raw.sample.slots import POOLS, Slots, polish
from fintune.data.raw.sample.statements import HEADLINE, SENTIMENT, statement
from fintune.errors import DataError
from fintune.tasks.base import Record

SIZES: dict[str, tuple[int, int, int]] = {
    "sentiment": (120, 50, 100),
    "headline": (128, 50, 100),
    "summarization": (44, 10, 24),
    "qa": (64, 50, 50),
    "regression": (144, 50, 80),
}
"""The number of train, validation and test records of each task."""

_MAKERS: dict[str, Callable[[Slots], dict[str, Any]]] = {
    "summarization": call,
    "qa": report,
    "regression": news,
}
_LABELS = {"sentiment": tuple(SENTIMENT), "headline": tuple(HEADLINE)}
_MAX_TRIES = 200


def sample_records(task: str, seed: int = 0, sizes: tuple[int, int, int] | None = None) -> list[Record]:
    """The built-in sample of a task: the same records for the same task, seed and sizes.

    Args:
        task: one of the five built-in tasks.
        seed: another seed gives another sample from the same phrasings and companies.
        sizes: the number of train, validation and test records (default: `SIZES[task]`).

    Returns:
        Records with `split`, `id`, `source`, `group` (the company) and `target` set; a classification task's
        labels are balanced within 1 in each split, and no text (with its question) repeats.

    Raises:
        DataError: the task has no sample, or the templates cannot give this many different texts.
    """
    if task not in SIZES:
        raise DataError(
            f"There is no built-in sample for task {task!r}; there is one for: {', '.join(SIZES)}."
        )
    rng = random.Random(f"{task}-{seed}")
    records: list[Record] = []
    seen: set[tuple[str, str | None]] = set()
    for split, size in zip(POOLS, sizes or SIZES[task], strict=True):
        names = _LABELS.get(task, (None,))
        labels = [names[i % len(names)] for i in range(size)]
        rng.shuffle(labels)
        for label in labels:
            for _ in range(_MAX_TRIES):
                slots = Slots(rng, split)
                fields = statement(task, slots, label) if label else _MAKERS[task](slots)
                fields["text"] = polish(fields["text"])
                key = (fields["text"], fields.get("question"))
                if key not in seen:
                    break
            else:
                raise DataError(
                    f"The built-in {task} sample has no {size} different {split} texts; ask for fewer."
                )
            seen.add(key)
            name = f"sample-{task}-{len(records):05d}"
            fields.update(group=slots["company"], split=split, id=name, source="built-in sample")
            records.append(Record(**fields))
    return records
