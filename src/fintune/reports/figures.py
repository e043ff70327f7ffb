"""Results for people: the figures as rows, what must be known to read them, and a table for the terminal.

Reads the dict that `evaluate` writes, so a table can be made again from results.json alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fintune.tasks.base import NONE_OF_ITS_TYPE

SMALLER_IS_BETTER = ("mse", "mae", "brier", "ece", "aurc", "missing_rate", "error_rate")
_NAMES = {
    "macro_f1": "F1 (macro)",
    "weighted_f1": "F1 (weighted)",
    "f1": "F1 (tokens)",
    "exact_match": "exact match",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "bertscore_f1": "BERTScore",
    "mse": "MSE",
    "mae": "MAE",
    "r2": "R²",
    "error_rate": "error rate",
    "mcc": "MCC",
    "brier": "Brier",
    "ece": "ECE",
    "aurc": "AURC",
    "missing_rate": "missing",
    "spearman": "Spearman",
    "directional_accuracy": "direction",
    "interval_coverage": "coverage (80 %)",
    "mean_interval_width": "width (80 %)",
    "numeric_exact_match": "number match",
    "tatqa_exact_match": "TAT-QA EM",
    "tatqa_f1": "TAT-QA F1",
    "number_faithfulness": "true numbers",
    "execution_accuracy": "execution accuracy",
    "f1_as_published": "F1 (as published)",
}
_NEITHER_IS_BETTER = frozenset({"interval_coverage", "mean_interval_width"})
"""Metrics that say nothing alone: an interval is good where it is narrow and still holds 80 %."""


def metric_name(metric: str) -> str:
    """A metric as a table shows it; an arrow marks those where smaller is better."""
    return _NAMES.get(metric, metric) + (" ↓" if metric in SMALLER_IS_BETTER else "")


def number(value: float | None) -> str:
    """Three decimals, or two significant digits where those would all be 0; – where there is none."""
    if value is None:
        return "–"
    return f"{value:.2g}" if 0 < abs(value) < 0.0005 else f"{value:.3f}"


def answer_text(value: Any) -> str:
    """An answer or a target as reports show it: a number with its sign, a text as it is."""
    return f"{value:+.2f}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Row:
    """One metric of one task, as figures."""

    task: str
    metric: str
    n: int
    baseline: float | None
    base: float | None
    adapter: float | None
    interval: tuple[float, float] | None
    base_n: int | None
    """Examples the untuned base answered; None where it was not asked."""
    adapter_beside_base: float | None
    """The adapter's figure on those same examples."""
    others: Mapping[str, float | None] = field(default_factory=dict)
    """The figures of the further systems, by key."""

    @property
    def verdict(self) -> bool | None:
        """Whether the adapter beats every other system on the same examples; None where nothing compares."""
        pairs = [(self.adapter, self.baseline), (self.adapter_beside_base, self.base)]
        pairs += [(self.adapter, value) for value in self.others.values()]
        gains = [own - other for own, other in pairs if own is not None and other is not None]
        if not gains or self.metric in _NEITHER_IS_BETTER:
            return None
        return max(gains) < 0 if self.metric in SMALLER_IS_BETTER else min(gains) > 0


def further_systems(systems: Mapping[str, Any]) -> list[str]:
    """The keys of the systems besides the baseline, the base and the adapter."""
    return [key for key in systems if key not in ("baseline", "base", "adapter")]


def rows_of(results: Mapping[str, Any]) -> list[Row]:
    """One row per task and metric, in the order of the results."""
    rows = []
    for task, entry in results["tasks"].items():
        systems = entry.get("systems", {})
        figures = {name: system["metrics"] for name, system in systems.items()}
        own = systems.get("adapter") or systems.get("base")
        beside = systems.get("base", {}).get("adapter_metrics") or figures.get("adapter", {})
        for metric in own["metrics"] if own else ():
            interval = own["metrics_interval"].get(metric)
            baseline, base, adapter = (
                figures.get(name, {}).get(metric) for name in ("baseline", "base", "adapter")
            )
            base_n = systems["base"]["n"] if "base" in systems else None
            bounds = tuple(interval) if interval else None
            others = {key: figures[key].get(metric) for key in further_systems(systems)}
            rows.append(
                Row(
                    task,
                    metric,
                    own["n"],
                    baseline,
                    base,
                    adapter,
                    bounds,
                    base_n,
                    beside.get(metric),
                    others,
                )
            )
    return rows


def summary_line(results: Mapping[str, Any], task: str) -> str:
    """One task in one line, while an evaluation runs."""
    entry = results["tasks"][task]
    if "skipped" in entry:
        return f"{task}: skipped, {entry['skipped']}"
    systems = entry["systems"]
    own = systems.get("adapter") or systems["base"]
    metric = next(iter([m for m in entry["headline_metrics"] if m in own["metrics"]] or own["metrics"]), None)
    speed = f"{own['n']:,} examples, {own['examples_per_second']:,.1f} examples/s"
    if metric is None:
        return f"{task}: {speed}"
    others = {
        label: systems[name]["metrics"].get(metric)
        for name, label in (("baseline", systems["baseline"]["name"]), ("base", "untuned base"))
        if name in systems and systems[name] is not own
    }
    beside = ", ".join(f"{label} {number(value)}" for label, value in others.items())
    return f"{task}: {metric_name(metric)} {number(own['metrics'][metric])} ({beside}); {speed}"


def notes(results: Mapping[str, Any]) -> list[str]:
    """What a reader must know to read the table, one sentence each."""
    entries = {task: entry for task, entry in results["tasks"].items() if "systems" in entry}
    names: dict[str, list[str]] = {}
    for task, entry in entries.items():
        names.setdefault(entry["systems"]["baseline"]["name"], []).append(task)
    found = []
    datasets: dict[str, list[str]] = {}
    for task, entry in entries.items():
        datasets.setdefault(entry["dataset"], []).append(task)
    if len(datasets) > 1:
        listed = "; ".join(f"{name} ({', '.join(tasks)})" for name, tasks in datasets.items())
        found.append(f"Data: {listed}.")
    if names:
        listed = "; ".join(f"{name} ({', '.join(tasks)})" for name, tasks in names.items())
        found.append(f"Baselines: {listed}.")
    found += _further_notes(entries)
    found += _missing_systems(entries)
    found.append(
        f"↓ smaller is better; everywhere else larger is better. Intervals: bootstrap {_drawn(entries)}."
    )
    fewer = sorted({row.base_n for row in rows_of(results) if row.base_n is not None and row.base_n < row.n})
    if fewer:
        listed = " or ".join(f"{n:,}" for n in fewer)
        found.append(
            f"† The untuned base answered {listed} of these examples, drawn by a fixed seed; "
            "it is compared with fintune on those."
        )
    if results["model"]["adapter"] is None:
        found.append("No adapter was given: the model is the untuned base.")
    split, limit = split_of(results), results["settings"]["max_test"]
    if split == "validation":
        found.append(
            "Validation examples: what was chosen on them, such as temperatures and TF-IDF's penalty, looks "
            "better than on new ones."
        )
    if limit:
        found.append(f"At most {limit:,} {split} examples per task, drawn by a fixed seed.")
    found += [
        f"BERTScore was skipped: {entry['bertscore']['skipped']}."
        for entry in entries.values()
        if "skipped" in entry.get("bertscore", {})
    ][:1]
    found += [
        f"{task} was skipped: {entry['skipped']}."
        for task, entry in results["tasks"].items()
        if "skipped" in entry
    ]
    if not results["complete"]:
        found.append("Incomplete: the evaluation was stopped before its last task.")
    return found


def _further_notes(entries: Mapping[str, Any]) -> list[str]:
    """A sentence for each further system: what it is, and its first headline metric on each task."""
    found: dict[str, list[str]] = {}
    for task, entry in entries.items():
        metric = next((m for m in entry["headline_metrics"]), None)
        for key in further_systems(entry["systems"]) if metric else ():
            value = number(entry["systems"][key]["metrics"].get(metric))
            found.setdefault(key, []).append(f"{task} {metric_name(str(metric))} {value}")
    return [f"{key}: {', '.join(figures)}." for key, figures in found.items()]


def _missing_systems(entries: Mapping[str, Any]) -> list[str]:
    """A sentence for each system that some tasks lack, though it is made for their type, and why they do."""
    found: dict[tuple[str, str], list[str]] = {}
    for task, entry in entries.items():
        for system, why in entry.get("systems_skipped", {}).items():
            if not why.startswith(NONE_OF_ITS_TYPE):
                found.setdefault((system, why), []).append(task)
    return [f"Without {system} ({', '.join(tasks)}): {why}." for (system, why), tasks in found.items()]


def _drawn(entries: Mapping[str, Any]) -> str:
    """What the bootstrap draws: examples, and on some tasks groups or dates (old results do not say)."""
    parts = []
    for task, entry in entries.items():
        clusters = entry.get("clusters") or {"by": "example"}
        if clusters["by"] != "example":
            parts.append(f"{task}: over {clusters['n']:,} {clusters['by']}s")
    return "; ".join([*(["over examples"] if len(parts) < len(entries) or not entries else []), *parts])


def split_of(results: Mapping[str, Any]) -> str:
    """`test` or `validation`; results of before there was a choice are of test examples."""
    return str(results["settings"].get("split", "test"))


def title_of(results: Mapping[str, Any]) -> str:
    describes, what = results["data"]["describes"], f"{split_of(results).capitalize()} results"
    return f"{what} on the {describes}" if describes == "built-in sample" else f"{what}: {describes}"


def base_figure(row: Row) -> str:
    fewer = row.base_n is not None and row.base_n < row.n and row.base is not None
    return number(row.base) + ("†" if fewer else "")


def interval_text(row: Row) -> str:
    return f"[{number(row.interval[0])}, {number(row.interval[1])}]" if row.interval else ""


def print_table(results: Mapping[str, Any], console: Any = None) -> None:
    """The table on a terminal of 80 columns or more, on `console` (a rich Console) or standard output."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = console or Console()
    table = Table(
        box=box.SIMPLE_HEAD,
        title=Text(title_of(results), style="bold"),
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column("task", overflow="fold")
    table.add_column("metric", no_wrap=True)
    for heading in ("baseline", "base", "fintune"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("95 % interval", justify="right", no_wrap=True, style="dim")
    rows = rows_of(results)
    for i, row in enumerate(rows):
        position = sum(1 for other in rows[:i] if other.task == row.task)
        last = i + 1 == len(rows) or rows[i + 1].task != row.task
        about = (row.task, f"n = {row.n:,}", "")[min(position, 2)]
        style = {True: "bold green", False: "yellow", None: ""}[row.verdict]
        table.add_row(
            Text(about, style="bold" if position == 0 else "dim"),
            metric_name(row.metric),
            number(row.baseline),
            base_figure(row),
            Text(number(row.adapter), style=style),
            interval_text(row),
            end_section=last,
        )
    console.print(table)
    for note in notes(results):
        console.print(Text(note, style="dim"))
    if results["model"]["adapter"]:
        console.print(Text("Green: better than every other system; yellow: not.", style="dim"))
