"""What is kept, what is dropped, and why: every row that does not reach training is counted and named.

Knows records and tasks; knows nothing of files, datasets or how splits are made.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from fintune.errors import DataError
from fintune.tasks.base import ClassificationTask, Record, Task

Split = Literal["train", "validation", "test"]

MAX_NAMED = 5
"""Dropped rows that a report names one by one; all are counted."""


@dataclass(frozen=True)
class Dropped:
    """A row a reader could not turn into a record, or left out by its dataset's rule."""

    reason: str
    """A short phrase that rows are counted under, such as "malformed rows"."""
    where: str
    """File and line, or another name the row can be found by."""
    why: str = ""
    count: int = 1


@dataclass
class Report:
    """What happened to a task's rows between the source and the splits."""

    dropped: Counter[str] = field(default_factory=Counter)
    named: list[str] = field(default_factory=list)
    """The first rows that were dropped for being malformed, then the others: «file:line: why»."""
    conflicting: int = 0
    """Texts of the training split that stand there with more than one target."""

    def add(self, item: Dropped) -> None:
        self.dropped[item.reason] += item.count
        if len(self.named) < MAX_NAMED:
            self.named.append(f"{item.where}: {item.why or item.reason}")

    def drop(self, reason: str, records: Iterable[Record]) -> None:
        for record in records:
            self.add(Dropped(reason, record.id))


def text_key(text: str) -> str:
    """Two texts with the same key are the same text: case and spacing do not tell them apart."""
    return " ".join(text.casefold().split())


def check(
    task: Task, items: Iterable[Record | Dropped], report: Report, labels: Mapping[str, str], key: str
) -> list[Record]:
    """The records the task can use, their labels mapped; the rest goes into `report`.

    Args:
        labels: the source's label → the task's label, where they differ.
        key: where in the recipe `labels` stands, for the error message.

    Raises:
        DataError: a label is none of the task's; it names the label and how to map it.
    """
    records: list[Record] = []
    unknown: dict[str, str] = {}
    for item in items:
        if isinstance(item, Dropped):
            report.add(item)
            continue
        record = replace(item, target=labels.get(item.target, item.target)) if labels else item  # type: ignore[arg-type]
        problem = task.problem(record)
        if problem is None:
            records.append(record)
        elif isinstance(task, ClassificationTask) and record.text.strip() and str(record.target).strip():
            unknown.setdefault(str(record.target), record.id)
        else:
            report.add(Dropped("malformed rows", record.id, problem))
    if unknown and isinstance(task, ClassificationTask):
        _refuse_labels(task, unknown, key)
    return records


def _refuse_labels(task: ClassificationTask, unknown: dict[str, str], key: str) -> None:
    shown = list(unknown)[:5]
    names = ", ".join(repr(label) for label in shown) + (", …" if len(unknown) > 5 else "")
    by_key = {text_key(label): label for label in task.labels}
    mapping = ", ".join(f"{label!r}: {by_key.get(text_key(label), task.labels[0])}" for label in shown)
    raise DataError(
        f"Task {task.name}: {unknown[shown[0]]} has a label that the task does not know ({names}); "
        f"valid are: {', '.join(task.labels)}. Correct the file, or map the labels in the recipe, "
        f"such as  {key}: {{{mapping}}}"
    )


def remove_leaks(
    records: list[Record], held_out: Iterable[Record], split: str, held_out_split: str, report: Report
) -> list[Record]:
    """`records` without those whose text or group also occurs in `held_out`, which stays as it is."""
    held_out = list(held_out)
    texts = {text_key(record.text) for record in held_out}
    groups = {record.group for record in held_out if record.group}
    same_text = [record for record in records if text_key(record.text) in texts]
    report.drop(f"{split} texts also in {held_out_split}", same_text)
    rest = [record for record in records if text_key(record.text) not in texts]
    report.drop(
        f"{split} records of a group also in {held_out_split}", (r for r in rest if r.group in groups)
    )
    return [record for record in rest if record.group not in groups]


def remove_duplicates(records: list[Record], report: Report) -> list[Record]:
    """The first of each set of records with the same text, question and target."""
    kept: dict[tuple[str, str, object], Record] = {}
    for record in records:
        key = (text_key(record.text), text_key(record.question or ""), record.target)
        if key in kept:
            report.add(Dropped("exact duplicates in train", record.id, f"repeats {kept[key].id}"))
        else:
            kept[key] = record
    return list(kept.values())


def count_conflicts(records: Iterable[Record]) -> int:
    """The number of texts (with their question) that have more than one target."""
    targets: dict[tuple[str, str], set[object]] = defaultdict(set)
    for record in records:
        targets[text_key(record.text), text_key(record.question or "")].add(record.target)
    return sum(len(values) > 1 for values in targets.values())


def refuse_empty(task: Task, splits: Mapping[Split, list[Record]], where: str, report: Report) -> None:
    """Raise a DataError for a split without records, or a classification split of one label only."""
    lost = sum(report.dropped.values())
    hint = f" ({lost:,} rows were dropped, such as {report.named[0]})" if lost else ""
    for split, records in splits.items():
        if not records:
            raise DataError(
                f"Task {task.name}: the {split} split of {where} is empty{hint}: add rows to it, or give "
                f"the task another file or dataset under data.tasks.{task.name}."
            )
        if isinstance(task, ClassificationTask) and len(records) > (split != "train"):
            labels = {record.target for record in records}
            if len(labels) == 1:
                raise DataError(
                    f"Task {task.name}: all {len(records):,} records of the {split} split of {where} have "
                    f"the label {labels.pop()!r}: add rows of the other labels "
                    f"(the task has {', '.join(task.labels)})."
                )
