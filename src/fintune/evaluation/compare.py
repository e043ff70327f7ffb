"""Two runs example by example, or several runs of one recipe: differences, intervals, tests, spread.

Takes `Run`s that answered the same examples; returns plain dicts that a JSON file holds.
"""

from __future__ import annotations

import math
import statistics as plain
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from fintune.errors import DataError
from fintune.evaluation.analysis.errors import shorten
from fintune.evaluation.intervals import (
    PERMUTATIONS,
    RESAMPLES,
    cluster_of,
    mcnemar,
    paired_differences,
)
from fintune.evaluation.runs import Run, TaskRun, common_tasks
from fintune.evaluation.scores import metrics_of_rows

NAMED = 3
"""Examples shown of those won and of those lost."""
TEXT_CHARACTERS = 200
_RANKED_BY = {
    "classification": "correct",
    "regression": "absolute_error",
    "qa": "f1",
    "summarization": "rougeL",
}
"""Type → the measure that decides which of two answers is better."""


def compare(
    a: Run,
    b: Run,
    *,
    task: str | None = None,
    metric: str | None = None,
    resamples: int = RESAMPLES,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> dict[str, Any]:
    """B against A on every task both evaluated (or `task`), in every metric (or `metric`).

    Returns:
        `a` and `b` (`path`, `model`), `settings`, and `tasks`: name → `n`, `clusters` (`by` example or
        cluster, `n`), `metrics` (name → `a`, `b`, `difference` (b - a), `interval` (95 %, paired bootstrap),
        `p_value`, `test`), `measure` and the numbers of examples `won`, `lost`, `tied` by B in it, and
        `won_examples`, `lost_examples`, those with the largest gaps. Metrics with neither interval nor test
        have null there.

    Raises:
        DataError: the test examples differ, or the task or metric is in none.
    """
    names = common_tasks([a, b], task)
    found = {
        name: _compare_task(a.tasks[name], b.tasks[name], resamples, permutations, seed) for name in names
    }
    if metric is not None:
        _keep_metric(found, metric)
    return {
        "a": {"path": str(a.path), "model": a.model},
        "b": {"path": str(b.path), "model": b.model},
        "settings": {"resamples": resamples, "permutations": permutations, "seed": seed, "confidence": 0.95},
        "tasks": found,
    }


def _keep_metric(tasks: dict[str, Any], metric: str) -> None:
    known = sorted({name for entry in tasks.values() for name in entry["metrics"]})
    if metric not in known:
        raise DataError(f"--metric is {metric}, which none of the tasks has; they have: {', '.join(known)}.")
    for name in [name for name, entry in tasks.items() if metric not in entry["metrics"]]:
        del tasks[name]
    for entry in tasks.values():
        entry["metrics"] = {metric: entry["metrics"][metric]}


def _compare_task(a: TaskRun, b: TaskRun, resamples: int, permutations: int, seed: int) -> dict[str, Any]:
    order = list(a.rows)
    clusters = [
        cluster_of(isinstance(a.rows[i]["target"], float), i, a.rows[i]["group"], a.rows[i]["time"])
        for i in order
    ]
    scores = {"a": a.scores(order), "b": b.scores(order)}
    one, two = (
        metrics_of_rows(
            run.type, run.labels, [SimpleNamespace(**run.rows[i]) for i in order], list(run.metrics)
        )
        for run in (a, b)
    )
    tested = paired_differences(one, two, clusters, resamples=resamples, permutations=permutations, seed=seed)
    independent = len(set(clusters)) == len(order)
    metrics: dict[str, Any] = {}
    for name in [name for name in a.metrics if name in b.metrics]:
        x, y = a.metrics[name], b.metrics[name]
        gap = None if x is None or y is None else y - x
        row: dict[str, Any] = {
            "a": x,
            "b": y,
            "difference": gap,
            "interval": None,
            "p_value": None,
            "test": None,
        }
        if name in tested and gap is not None:
            interval = tested[name].interval
            row |= {
                "interval": list(interval) if interval else None,
                "p_value": tested[name].p_value,
                "test": "permutation",
            }
        if name == "accuracy" and independent:
            row |= {
                "p_value": mcnemar(scores["a"]["correct"], scores["b"]["correct"]),
                "test": "McNemar, exact",
            }
        metrics[name] = row
    found = {
        "n": len(order),
        "clusters": {"by": "example" if independent else "cluster", "n": len(set(clusters))},
        "metrics": metrics,
    }
    return found | _won_and_lost(a, b, order, scores)


def _won_and_lost(
    a: TaskRun, b: TaskRun, order: Sequence[str], scores: Mapping[str, Mapping[str, Sequence[float]]]
) -> dict[str, Any]:
    measure = _RANKED_BY.get(a.type)
    if measure is None or measure not in scores["a"] or measure not in scores["b"]:
        return {}
    sign = -1 if a.type == "regression" else 1
    gains = [sign * (y - x) for x, y in zip(scores["a"][measure], scores["b"][measure], strict=True)]
    ranked = sorted(range(len(order)), key=lambda i: -abs(gains[i]))

    def named(wanted: int) -> list[dict[str, Any]]:
        chosen = [i for i in ranked if gains[i] * wanted > 0][:NAMED]
        return [_example(a.rows[order[i]], b.rows[order[i]]) for i in chosen]

    return {
        "measure": measure,
        "won": sum(gain > 0 for gain in gains),
        "lost": sum(gain < 0 for gain in gains),
        "tied": sum(gain == 0 for gain in gains),
        "won_examples": named(1),
        "lost_examples": named(-1),
    }


def _example(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    row = {"id": a["id"], "text": shorten(a["text"], TEXT_CHARACTERS)}
    if a["question"]:
        row["question"] = a["question"]
    return row | {"target": a["target"], "a": a["prediction"], "b": b["prediction"]}


def better(metric: str, difference: float | None) -> bool | None:
    """Whether a difference (b - a) is to B's good; None where there is none."""
    if not difference:
        return None
    return (difference < 0) == (metric in ("mse", "mae", "brier", "ece", "aurc", "missing_rate"))


def spread(runs: Sequence[Run], *, task: str | None = None, metric: str | None = None) -> dict[str, Any]:
    """Several runs of one recipe, as `runs` (path and model of each) and `tasks`.

    `tasks`: name → `n` (test examples) and `metrics`: name → `values`, one a run, `mean`, `sd` (the
    sample's, with n - 1), `low` and `high`, the smallest and largest, and `n`, the runs. A metric that some
    run lacks is left out.

    Raises:
        DataError: fewer than two runs, different test examples, or the task or metric is in none.
    """
    if len(runs) < 2:
        raise DataError(f"--seeds needs at least two runs, got {len(runs)}: name their results files.")
    found: dict[str, Any] = {}
    for name in common_tasks(runs, task):
        metrics = {}
        for measure in runs[0].tasks[name].metrics:
            values = [run.tasks[name].metrics.get(measure) for run in runs]
            known = [value for value in values if value is not None and math.isfinite(value)]
            if len(known) == len(runs):
                metrics[measure] = {
                    "values": known,
                    "mean": plain.fmean(known),
                    "sd": plain.stdev(known),
                    "low": min(known),
                    "high": max(known),
                    "n": len(known),
                }
        found[name] = {"n": len(runs[0].tasks[name].rows), "metrics": metrics}
    if metric is not None:
        _keep_metric(found, metric)
    return {"runs": [{"path": str(run.path), "model": run.model} for run in runs], "tasks": found}
