"""Describes the answering model on the page: its adapter, training and test figures."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

from fintune.demo import render
from fintune.errors import FintuneError
from fintune.evaluation.results import Results, read_results
from fintune.inference.engine import Engine
from fintune.models import manifest
from fintune.reports.figures import Row, number, rows_of

logger = logging.getLogger(__name__)

LARGEST = 30 * 2**20
"""The most bytes read of a results file or a report."""


def header(engine: Engine) -> str:
    """The top of the page."""
    count = len(engine.tasks)
    tasks = "one finance task" if count == 1 else f"{count} finance tasks"
    base = f"<code>{escape(str(engine.base_name))}</code>"
    if engine.adapter:
        model = f"<p>Model: {base} with the adapter <code>{escape(str(engine.adapter))}</code></p>"
        model += f'<p class="ft-quiet">{escape(trained(manifest.read_raw(engine.adapter)))}</p>'
        if engine.recipe and engine.recipe.debug:
            model += render.notice(
                "This adapter comes from a --debug run, which trains for seconds to try the program: "
                "its answers mean nothing."
            )
    else:
        model = f"<p>Model: {base}, untuned</p>" + render.notice(
            "No trained adapter is loaded, so these are the answers of the untuned base model. "
            "Train one with “fintune train” and start the demo again."
        )
    return f'<div class="ft-header"><h1>fintune</h1><p>One language model, {tasks}.</p>{model}</div>'


def trained(facts: Mapping[str, Any]) -> str:
    """When and on what data an adapter was trained, from its manifest."""
    try:
        moment = datetime.fromisoformat(str(facts.get("created"))).astimezone(UTC)
    except ValueError:
        when = ""
    else:
        when = f" on {moment.day} {moment:%B %Y} at {moment:%H:%M} UTC"
    datasets: dict[str, list[str]] = {}
    for name, entry in _tasks(facts).items():
        datasets.setdefault(str(entry.get("dataset") or "unnamed data"), []).append(str(name))
    if len(datasets) == 1:
        data = next(iter(datasets))
    else:
        data = ", ".join(f"{dataset} ({', '.join(names)})" for dataset, names in datasets.items())
    if data == "built-in sample":
        data = f"the {data}"
    if not (when or data):
        return "The adapter's folder does not say when it was trained, or on what data."
    return f"Trained{f' on {data}' if data else ''}{when}."


def _tasks(facts: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Task → the manifest's entry on its data; a folder from elsewhere may hold anything."""
    tasks = manifest.part(manifest.part(facts, "data"), "tasks")
    return {name: entry for name, entry in tasks.items() if isinstance(entry, dict)}


def below_baseline(adapter: Path | None) -> dict[str, str]:
    """Task → one sentence, for each task that was worse in its test than its simplest baseline.

    Read from the results.json beside the adapter; results of another training do not count.
    """
    path = adapter / "results.json" if adapter else None
    if not adapter or not path or not path.is_file():
        return {}
    try:
        if path.stat().st_size > LARGEST:
            raise FintuneError(f"{path} has more than {LARGEST:,} bytes.")
        results = read_results(path)
        current = manifest.read_raw(adapter).get("created")
        rows = rows_of(results)
    except (FintuneError, OSError) as error:
        logger.warning("The page does not compare tasks with their baselines: %s", error)
        return {}
    if results.training.get("created") != current:
        logger.warning("%s is of another training of this adapter: evaluate it again.", path)
        return {}
    found: dict[str, str] = {}
    for row in rows:
        if said := _worse(results, row):
            found.setdefault(row.task, said)
    return found


def _worse(results: Results, row: Row) -> str:
    """How a headline figure is worse than the baseline's; "" if it is not."""
    task, measure = results.tasks[row.task], row.measure
    if row.adapter is None or row.baseline is None or measure.name not in task.headline_metrics:
        return ""
    own, simplest = number(row.adapter), number(row.baseline)
    if own == simplest or measure.improves(row.adapter - row.baseline) is not False:
        return ""
    direction = ", where lower is better" if measure.better == "lower" else ""
    return (
        f"On its {results.split} set this task did worse than its simplest baseline "
        f"({task.systems['baseline'].name}): {measure.title} {own} against {simplest}{direction}."
    )
