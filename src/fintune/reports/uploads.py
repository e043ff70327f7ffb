"""Final figures and tables to Weights & Biases or TensorBoard, beside the curves of training."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fintune.errors import MissingExtraError
from fintune.reports import figures, markdown

ERRORS = 500
"""Rows of the table of inexact answers, at most; `is_error` tells those that the slices count."""


def check(trackers: Sequence[str]) -> None:
    """Refuse a tracker that is not installed, before the work rather than after it.

    Raises:
        MissingExtraError: it is not installed.
    """
    for name in trackers:
        if not importlib.util.find_spec(name):
            raise MissingExtraError(f"evaluation.report_to: [{name}]", "track")


def upload(
    results: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], output: Path, trackers: Sequence[str]
) -> None:
    """Send every metric of every task, the table of results, and (to W&B) a table of inexact answers.

    TensorBoard's events go to `tensorboard/evaluation` beside the results. W&B logs offline where it has no
    credentials.
    """
    if "tensorboard" in trackers:
        _tensorboard(results, output.parent / "tensorboard" / "evaluation")
    if "wandb" in trackers:
        _wandb(results, rows, output)


def _figures(results: Mapping[str, Any]) -> dict[str, float]:
    """`SPLIT/TASK/METRIC` → the figure of the model's own system."""
    found: dict[str, float] = {}
    split = figures.split_of(results)
    for task, entry in results["tasks"].items():
        systems = entry.get("systems", {})
        own = systems.get("adapter") or systems.get("base") or {"metrics": {}}
        for metric, value in own["metrics"].items():
            if value is not None:
                found[f"{split}/{task}/{metric}"] = value
    return found


def _tensorboard(results: Mapping[str, Any], folder: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    step = results.get("training", {}).get("optimizer_steps", 0)
    with SummaryWriter(log_dir=str(folder)) as writer:
        for name, value in _figures(results).items():
            writer.add_scalar(name, value, step)
        writer.add_text(f"{figures.split_of(results)}/results", markdown.results_table(results), step)


def _wandb(results: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], output: Path) -> None:
    import wandb

    from fintune.training.callbacks import wandb as choose_mode

    choose_mode()
    circumstances = {key: results[key] for key in ("model", "data", "settings", "versions", "machine")}
    columns = ["task", "metric", "n", "baseline", "base", "adapter", "low", "high"]
    table = [
        [row.task, row.metric, row.n, row.baseline, row.base, row.adapter, *(row.interval or (None, None))]
        for row in figures.rows_of(results)
    ]
    wrong = sorted((row for row in rows if row.get("error")), key=lambda row: row["error"]["rank"])[:ERRORS]
    errors = [
        [
            row["task"],
            row["id"],
            row["text"],
            str(row["target"]),
            str(row["prediction"]),
            row["error"]["mistake"],
            row["error"].get("counts"),
        ]
        for row in wrong
    ]
    with wandb.init(job_type="evaluate", config=circumstances, dir=str(output.parent)) as run:
        run.summary.update(_figures(results))
        run.log(
            {
                "results": wandb.Table(columns=columns, data=table),
                "errors": wandb.Table(
                    columns=["task", "id", "text", "target", "prediction", "mistake", "is_error"], data=errors
                ),
            }
        )
