"""What is kept, what is dropped, and why: every row that does not reach training is counted and named.

Knows records and tasks; knows nothing of files, datasets or how splits are made.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from fintune.data.records import Dropped, Split, text_key
from fintune.errors import DataError
from fintune.tasks.base import Record, Task

MAX_NAMED = 5
"""Dropped rows that a report names one by one; all are counted."""
MANY = 0.1
"""A rule that leaves out more than this share of a task's rows is told before anything else."""


@dataclass(frozen=True)
class Rule:
    """What governs a reason for which rows are left out, and one of them."""

    governed: str
    """The key of the recipe and what it does, as a clause."""
    row: int
    other: int | None
    """The row that it repeats, where it repeats one."""


@dataclass
class Report:
    """What happened to a task's rows between the source and the splits."""

    dropped: Counter[str] = field(default_factory=Counter)
    named: list[str] = field(default_factory=list)
    """The first rows that were dropped for being malformed, then the others: «file:line: why»."""
    unknown_labels: dict[str, str] = field(default_factory=dict)
    """A label that the task does not know → the first row that has it."""
    conflicting: int = 0
    """Texts of the training split that stand there with more than one target."""
    rules: dict[str, Rule] = field(default_factory=dict)
    """Reason → its rule, of those that splitting has."""
    notes: list[str] = field(default_factory=list)
    """Sentences on how the rows were split, where that is not as one would expect."""

    def add(self, item: Dropped) -> None:
        self.dropped[item.reason] += item.count
        if len(self.named) < MAX_NAMED:
            self.named.append(f"{item.where}: {item.why or item.reason}")

    def merge(self, later: Report) -> None:
        """Add what a later part of the same source dropped."""
        self.dropped.update(later.dropped)
        self.named = [*self.named, *later.named][:MAX_NAMED]
        self.unknown_labels = {**later.unknown_labels, **self.unknown_labels}


def check(
    task: Task, items: Iterable[Record | Dropped], report: Report, labels: Mapping[str, str]
) -> Iterator[Record]:
    """The records the task can use, their labels mapped; the rest goes into `report`.

    Args:
        labels: the source's label → the task's label, where they differ.
    """
    for item in items:
        if isinstance(item, Dropped):
            report.add(item)
            continue
        record = replace(item, target=task.relabel(item.target, labels)) if labels else item
        problem = task.problem(record)
        if problem is None:
            yield record
        elif task.input_problem(record) is None and (unknown := task.unknown_labels(record)):
            for label in unknown:
                report.unknown_labels.setdefault(label, record.id)
        else:
            report.add(Dropped("malformed rows", record.id, problem))


def refuse_unknown_labels(task: Task, report: Report) -> None:
    """Raise a DataError for labels that are none of the task's; it names them and how to map them."""
    unknown = report.unknown_labels
    if not unknown:
        return
    labels = task.labels
    shown = list(unknown)[:5]
    names = ", ".join(repr(label) for label in shown) + (", …" if len(unknown) > 5 else "")
    by_key = {text_key(label): label for label in labels}
    mapping = ", ".join(f"{label!r}: {by_key.get(text_key(label), labels[0])}" for label in shown)
    raise DataError(
        f"Task {task.name}: {unknown[shown[0]]} has a label that the task does not know ({names}); "
        f"valid are: {', '.join(labels)}. Correct the file, or map the labels in the recipe, "
        f"such as  data.tasks.{task.name}.labels: {{{mapping}}}"
    )


def refuse_empty(
    task: Task, labels: Mapping[Split, Mapping[str, int]], where: str, report: Report, losses: list[str]
) -> None:
    """Raise a DataError for a split without records, or a classification split of one label only.

    Args:
        labels: split → label → its number of records; a task without labels has one, "".
        losses: what `table.losses` says, which is then the likely cause.
    """
    lost = sum(report.dropped.values())
    hint = f" ({lost:,} rows were dropped, such as {report.named[0]})" if lost else ""
    fix = f"add rows to it, or give the task another file or dataset under data.tasks.{task.name}."
    if losses:
        hint, fix = "", " ".join(losses)
    for split, counts in labels.items():
        total = sum(counts.values())
        if not total:
            raise DataError(f"Task {task.name}: the {split} split of {where} is empty{hint}: {fix}")
        if task.one_of and total > (split != "train") and len(counts) == 1:
            raise DataError(
                f"Task {task.name}: all {total:,} records of the {split} split of {where} have "
                f"the label {next(iter(counts))!r}: add rows of the other labels "
                f"(the task has {', '.join(task.one_of)})."
            )
