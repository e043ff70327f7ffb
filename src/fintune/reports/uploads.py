"""Sends final figures and tables to Weights & Biases or TensorBoard, beside the training curves."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from fintune.errors import MissingExtraError
from fintune.evaluation.results import Answer, Results
from fintune.reports import figures, markdown

ERRORS = 500
"""The most rows in the table of inexact answers; `is_error` marks those that the slices count."""


def check(trackers: Sequence[str]) -> None:
    """Refuse a tracker that is not installed, before the work starts.

    Raises:
        MissingExtraError: it is not installed.
    """
    for name in trackers:
        if not importlib.util.find_spec(name):
            raise MissingExtraError(f"evaluation.report_to: [{name}]", "track")


def upload(results: Results, answers: Sequence[Answer], output: Path, trackers: Sequence[str]) -> None:
    """Send every metric of every task, the table of results, and (to W&B) a table of inexact answers.

    TensorBoard's events go to `tensorboard/evaluation` beside the results. Without credentials W&B logs
    offline.
    """
    if "tensorboard" in trackers:
        _tensorboard(results, output.parent / "tensorboard" / "evaluation")
    if "wandb" in trackers:
        _wandb(results, answers, output)


def _figures(results: Results) -> dict[str, float]:
    """`SPLIT/TASK/METRIC` → the figure of the model's own system."""
    return {
        f"{results.split}/{name}/{metric}": value
        for name, task in results.tasks.items()
        for metric, value in (task.own.metrics if task.own else {}).items()
        if value is not None
    }


def _tensorboard(results: Results, folder: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    step = results.training.get("optimizer_steps", 0)
    with SummaryWriter(log_dir=str(folder)) as writer:
        for name, value in _figures(results).items():
            writer.add_scalar(name, value, step)
        writer.add_text(f"{results.split}/results", markdown.results_table(results), step)


def _wandb(results: Results, answers: Sequence[Answer], output: Path) -> None:
    import wandb

    from fintune.training.callbacks import wandb as choose_mode

    choose_mode()
    circumstances = results.model_dump(
        mode="json", include={"model", "data", "settings", "versions", "machine"}, exclude_unset=True
    )
    columns = ["task", "metric", "n", "baseline", "base", "adapter", "low", "high"]
    table = [
        [r.task, r.measure.name, r.n, r.baseline, r.base, r.adapter, *(r.interval or (None, None))]
        for r in figures.rows_of(results)
    ]
    wrong = [(answer, answer.error) for answer in answers if answer.error]
    errors = [
        [a.task, a.id, a.text, str(a.target), str(a.prediction), error.mistake, error.counts]
        for a, error in sorted(wrong, key=lambda pair: pair[1].rank)[:ERRORS]
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
