"""Reads evaluations from disk and checks that they answered the same examples.

Files in, `Run`s out, which `fintune compare` compares. Needs no model, only the files that `evaluate` wrote.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fintune.errors import DataError
from fintune.evaluation.results import (
    Answer,
    Results,
    TaskResult,
    output_files,
    read_predictions,
    read_results,
)

_SAME = ("text", "question", "target")
"""What must match for an example to be the same, besides its id."""


@dataclass(frozen=True)
class TaskAnswers:
    """One task of an evaluation: its entry in the results, and the model's own answers by example id."""

    name: str
    result: TaskResult
    rows: dict[str, Answer]

    @property
    def metrics(self) -> dict[str, float | None]:
        """The figures of the model's own system."""
        return self.result.own.metrics if self.result.own else {}

    def scores(self, order: Sequence[str]) -> dict[str, list[float]]:
        """Each measure's value per example, in the order of the given ids; nan if there is none."""
        measures = next(iter(self.rows.values())).scores if self.rows else {}
        return {
            measure: [
                math.nan if value is None else value
                for value in (self.rows[name].scores.get(measure) for name in order)
            ]
            for measure in measures
        }


@dataclass(frozen=True)
class Run:
    """One evaluation."""

    path: Path
    results: Results
    tasks: dict[str, TaskAnswers] = field(default_factory=dict)

    @property
    def model(self) -> str:
        return self.results.model.adapter or self.results.model.base

    @classmethod
    def load(cls, path: str | Path) -> Run:
        """Load an evaluation from its results file or the folder that holds it.

        Raises:
            DataError: there is none, it has another format, or its predictions are missing or damaged.
        """
        file = results_file(path)
        results = read_results(file)
        rows: dict[str, dict[str, Answer]] = {}
        for row in read_predictions(output_files(file)["predictions"]):
            rows.setdefault(row.task, {})[row.id] = row
        tasks = {}
        for name, entry in results.tasks.items():
            if entry.own is None:
                continue
            known = rows.get(name, {})
            if len(known) != entry.own.n:
                raise DataError(
                    f"{file} counts {entry.own.n} predictions of task {name}, but the predictions file "
                    f"beside it holds {len(known)} with different ids: evaluate again."
                )
            tasks[name] = TaskAnswers(name, entry, known)
        return cls(file, results, tasks)


def results_file(path: str | Path) -> Path:
    """The results file meant by a path: the file itself, the folder's `results.json`, or its only results.

    Raises:
        DataError: there is none, or there are several.
    """
    path = Path(path)
    if path.is_file():
        return path
    if not path.is_dir():
        raise DataError(f"There is no results file or folder {path}: run  fintune evaluate  first.")
    if (path / "results.json").is_file():
        return path / "results.json"
    found = [file for file in sorted(path.glob("*.json")) if output_files(file)["predictions"].is_file()]
    if len(found) == 1:
        return found[0]
    what = f"{len(found)} results files: name one" if found else "no results of  fintune evaluate"
    raise DataError(f"The folder {path} holds {what}.")


def common_tasks(runs: Sequence[Run], task: str | None = None) -> list[str]:
    """The tasks that all runs evaluated on the same examples; only `task` if given.

    Raises:
        DataError: there is none, or the test examples of a task differ.
    """
    shared = [name for name in runs[0].tasks if all(name in run.tasks for run in runs)]
    if task is not None:
        if task not in shared:
            known = ", ".join(shared) or "none"
            raise DataError(f"--task is {task}, which not all of the runs evaluated; they share: {known}.")
        shared = [task]
    if not shared:
        raise DataError("The runs have no task in common, so there is nothing to compare.")
    for name in shared:
        first = runs[0].tasks[name]
        for run in runs[1:]:
            _check_same(name, runs[0], first, run, run.tasks[name])
    return shared


def _check_same(name: str, run_a: Run, a: TaskAnswers, run_b: Run, b: TaskAnswers) -> None:
    advice = "evaluate both on the same prepared data, with the same --max_test"
    apart = len(a.rows.keys() ^ b.rows.keys())
    if apart:
        raise DataError(
            f"Task {name} has {len(a.rows)} test examples in {run_a.path} and {len(b.rows)} in {run_b.path}, "
            f"and {apart} of them are in only one: {advice}."
        )
    changed = [i for i, x in a.rows.items() if any(getattr(x, k) != getattr(b.rows[i], k) for k in _SAME)]
    if changed:
        raise DataError(
            f"Task {name}: {len(changed)} test examples of {run_a.path} and {run_b.path} share an id but "
            f"differ in text or target (the first is {changed[0]}): {advice}."
        )
