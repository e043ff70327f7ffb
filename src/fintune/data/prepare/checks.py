"""Check rows: which are kept or dropped, and why; every dropped row is counted and named.

Knows records and tasks, but no files, datasets or splitting.
"""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from fintune.data.records import Dropped, Split
from fintune.errors import DataError
from fintune.tasks.base import Record, Task
from fintune.tasks.label_names import LabelNames, label_key

MAX_LABELS = 200
"""The most different unknown labels to count: a column with more does not hold labels."""
MAX_NAMED = 5
"""How many dropped rows a report names; all are counted."""
SHOWN, LABEL = 50, 60
"""How many labels a message lists, and characters of each."""
MANY = 0.1
"""A rule that drops more than this share of a task's rows is reported first."""


@dataclass(frozen=True)
class Rule:
    """The rule behind a reason for dropping rows, and one example."""

    governed: str
    """The recipe key and its effect, as a clause."""
    row: int
    other: int | None
    """The row that it duplicates, if any."""


@dataclass
class Report:
    """What happened to a task's rows between the source and the splits."""

    dropped: Counter[str] = field(default_factory=Counter)
    named: list[str] = field(default_factory=list)
    """The first dropped rows, malformed ones first: «file:line: why»."""
    unknown_labels: dict[str, tuple[str, int]] = field(default_factory=dict)
    """Label unknown to the task → the first row with it, and how many rows have it."""
    folded: Counter[tuple[str, str | None]] = field(default_factory=Counter)
    """(label in the data, label it is read as) → count, where they differ slightly."""
    conflicting: int = 0
    """The number of training texts with more than one target."""
    rules: dict[str, Rule] = field(default_factory=dict)
    """Reason → its rule, for reasons from splitting."""
    notes: list[str] = field(default_factory=list)
    """Sentences on anything unusual in how the rows were split."""

    def add(self, item: Dropped) -> None:
        self.dropped[item.reason] += item.count
        if len(self.named) < MAX_NAMED:
            self.named.append(f"{item.where}: {item.why or item.reason}")

    def merge(self, later: Report) -> None:
        """Add what a later part of the same source dropped."""
        self.dropped.update(later.dropped)
        self.named = [*self.named, *later.named][:MAX_NAMED]
        self.folded.update(later.folded)
        for label, (row, count) in later.unknown_labels.items():
            self.add_unknown(label, row, count)

    def add_unknown(self, label: str, row: str, count: int = 1) -> None:
        """Count a label that the task does not know."""
        if label in self.unknown_labels or len(self.unknown_labels) < MAX_LABELS:
            first, before = self.unknown_labels.get(label, (row, 0))
            self.unknown_labels[label] = first, before + count


def check(
    task: Task, items: Iterable[Record | Dropped], report: Report, labels: Mapping[str, str | None]
) -> Iterator[Record]:
    """Yield the records that the task can use, with mapped labels; count the others in `report`.

    Args:
        labels: the source's label → the task's label, where they differ; None drops its rows.
    """
    names = LabelNames(task.labels, labels)
    report.folded = names.folded
    for item in items:
        if isinstance(item, Dropped):
            report.add(item)
            continue
        target = task.relabel(item.target, names) if names else item.target
        if target is None and item.target is not None:
            report.add(
                Dropped("rows of a label that is mapped to null", item.id, f"its label is {item.target!r}")
            )
            continue
        record = item if target is item.target else replace(item, target=target)
        problem = task.problem(record)
        if problem is None:
            yield record
        elif task.input_problem(record) is None and (unknown := task.unknown_labels(record)):
            for label in unknown:
                report.add_unknown(label, record.id)
        else:
            report.add(Dropped("malformed rows", record.id, problem))


def folded_labels(task: Task, report: Report) -> str:
    """A line on labels that are read as one although they are spelt differently; "" if there are none."""
    if not report.folded:
        return ""
    shown = [
        f"{label!r} as {'none' if meant is None else repr(meant)} ({count:,})"
        for (label, meant), count in report.folded.most_common(SHOWN)
    ]
    more = len(report.folded) - len(shown)
    rest = f", and {more:,} more" if more > 0 else ""
    return (
        f"{task.name}: labels that differ only in case or spaces are read as one: {', '.join(shown)}{rest}."
    )


def refuse_unknown_labels(task: Task, report: Report) -> None:
    """Raise a DataError for labels unknown to the task; it names all of them and how to map them."""
    unknown = report.unknown_labels
    if not unknown:
        return
    ordered = sorted(unknown, key=lambda label: -unknown[label][1])[:SHOWN]
    names = []
    for label in ordered:
        near = difflib.get_close_matches(label_key(label), map(label_key, task.labels), n=1, cutoff=0.8)
        alike = next((f", like {own}" for own in task.labels if [label_key(own)] == near), "")
        names.append(f"{label[:LABEL]!r} ({unknown[label][1]:,}{alike})")
    if (more := len(unknown) - len(ordered)) > 0:
        names.append(f"and {more:,}{'' if len(unknown) < MAX_LABELS else ' or more'} others")
    mapping = ", ".join(f"{json.dumps(label[:LABEL], ensure_ascii=False)}: null" for label in ordered)
    first = next(iter(unknown))
    raise DataError(
        f"Task {task.name}: {unknown[first][0]} and other rows have labels that the task does not know: "
        f"{', '.join(names)}; it knows: {', '.join(task.labels)}. Correct the file, or map them in the "
        f"recipe: data.tasks.{task.name}.labels: {{{mapping}}}  where null drops the rows, and one of the "
        "task's labels keeps them."
    )


def refuse_empty(
    task: Task, labels: Mapping[Split, Mapping[str, int]], where: str, report: Report, losses: list[str]
) -> None:
    """Raise a DataError for a split without records, or a classification split with only one label.

    Args:
        labels: split → label → its number of records; a task without labels has one, "".
        losses: the result of `table.losses`, which names the likely cause.
    """
    lost = sum(report.dropped.values())
    hint = f" ({lost:,} rows were dropped, such as {report.named[0]})" if lost else ""
    fix = f"add rows to it, or give the task another file or dataset under data.tasks.{task.name}."
    if losses:
        hint, fix = "", " ".join(losses)
    for split, counts in labels.items():
        total = sum(counts.values())
        if not total:
            rules = [rule.governed for reason, rule in report.rules.items() if reason.startswith(f"{split} ")]
            what = f"; {rules[-1]}" if rules and not losses else ""
            raise DataError(f"Task {task.name}: the {split} split of {where} is empty{hint}{what}: {fix}")
        if task.one_of and total > (split != "train") and len(counts) == 1:
            raise DataError(
                f"Task {task.name}: all {total:,} records of the {split} split of {where} have "
                f"the label {next(iter(counts))!r}: add rows of the other labels "
                f"(the task has {', '.join(task.one_of)})."
            )
