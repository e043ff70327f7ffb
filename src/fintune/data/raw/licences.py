"""Which datasets allow commercial use, according to their stated licences: for display and for filtering.

This reads licences as stated; it is not legal advice.
"""

from __future__ import annotations

from fintune.data.raw.registry import COMMERCIAL_DEFAULTS, DATASETS, SAMPLE
from fintune.tasks.base import Task


def commercial_use(dataset: str) -> str:
    """Whether a source's licence allows commercial use: `yes`, `no`, `not stated` or `yours to know`."""
    if dataset not in DATASETS:
        return "yes" if dataset == SAMPLE else "yours to know"
    return {True: "yes", False: "no", None: "not stated"}[DATASETS[dataset].commercial]


def commercial_dataset(task: Task, dataset: str) -> tuple[str | None, str]:
    """The dataset for a task under `data.commercial_only`, and a line about any change.

    A dataset that allows commercial use is kept, without a line. Otherwise the task's stand-in is used if it
    allows it and has the task's labels; else None: the task is left out.
    """
    if DATASETS[dataset].commercial:
        return dataset, ""
    why = f"{dataset} ({DATASETS[dataset].licence}) does not allow commercial use"
    other = DATASETS.get(COMMERCIAL_DEFAULTS.get(task.name, ""))
    fits = other is not None and other.commercial and other.type == task.type
    if other is not None and fits and task.one_of:
        fits = set(other.labels) == set(task.one_of)
    if other is None or not fits or other.name == dataset:
        return None, f"{task.name}: left out (data.commercial_only): {why}."
    return other.name, f"{task.name}: {other.name} (data.commercial_only): {why}."
