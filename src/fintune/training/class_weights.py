"""Weights examples by their label in the loss, so that rare labels can count as much as frequent ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from fintune.errors import ConfigError
from fintune.prompts import TokenizedExample
from fintune.tasks import Record, Task, TaskSet

Wish = str | Mapping[str, float]
"""`balanced`, or label → weight: a value of `multi_task.class_weights`."""


def label_weights(task: Task, records: Sequence[Record], wish: Wish) -> dict[str, float]:
    """The weight of each of a task's labels.

    `balanced` is n / (k · n_c) for label c, of k labels that occur in the n training records (King and Zeng,
    2001; scikit-learn's "balanced"): the mean weight of the records is 1.

    Raises:
        ConfigError: the task has no labels, or `wish` names an unknown label.
    """
    where = f"multi_task.class_weights.{task.name}"
    labels = task.one_of
    if not labels:
        raise ConfigError(f"{where} is set, but a {task.type} task has no labels: remove it")
    if isinstance(wish, str):
        counts = Counter(str(record.target) for record in records)
        return {label: len(records) / (len(counts) * count) for label, count in counts.items()}
    unknown = [label for label in wish if label not in labels]
    if unknown:
        raise ConfigError(f"{where} names the label '{unknown[0]}', but the labels are {', '.join(labels)}")
    return {label: wish.get(label, 1.0) for label in labels}


def add_class_weights(
    examples: Sequence[TokenizedExample],
    records: Sequence[Record],
    tasks: TaskSet,
    wishes: Mapping[str, Wish],
) -> list[TokenizedExample]:
    """The records' examples, in the same order, with the weights of the tasks in `wishes`."""
    both = list(zip(examples, records, strict=True))
    weights = {
        name: label_weights(tasks[name], [record for example, record in both if example.task == name], wish)
        for name, wish in wishes.items()
    }
    return [replace(e, weight=weights.get(e.task, {}).get(str(r.target), 1.0)) for e, r in both]
