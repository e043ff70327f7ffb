"""Turns results into figures: table rows, notes for readers, and the table on a terminal.

Takes the `Results` of `evaluation.results`, so results.json alone is enough to make a table again. The other
modules here make pages from these figures.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from fintune.evaluation.measure_info import MeasureInfo
from fintune.evaluation.results import Published, Results, TaskResult
from fintune.tasks.base import NONE_OF_ITS_TYPE


def number(value: float | None) -> str:
    """Three decimals, or two significant digits if all three are 0; – if there is no value."""
    if value is None:
        return "–"
    return f"{value:.2g}" if 0 < abs(value) < 0.0005 else f"{value:.3f}"


def answer_text(value: Any) -> str:
    """An answer or a target in reports: a number with its sign, a text unchanged."""
    return f"{value:+.2f}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Row:
    """One metric of one task, as figures."""

    task: str
    measure: MeasureInfo
    n: int
    baseline: float | None
    base: float | None
    adapter: float | None
    interval: tuple[float, float] | None
    base_n: int | None
    """Number of examples that the untuned base answered; None if it was not asked."""
    adapter_beside_base: float | None
    """The adapter's figure on these examples."""
    others: Mapping[str, float | None] = field(default_factory=dict)
    """The other systems' figures, by key."""

    @property
    def verdict(self) -> bool | None:
        """Whether the adapter beats every other system on the same examples; None if nothing compares."""
        pairs = [(self.adapter, self.baseline), (self.adapter_beside_base, self.base)]
        pairs += [(self.adapter, value) for value in self.others.values()]
        gains = [own - other for own, other in pairs if own is not None and other is not None]
        if not gains or self.measure.better == "neither":
            return None
        return max(gains) < 0 if self.measure.better == "lower" else min(gains) > 0


def rows_of(results: Results) -> list[Row]:
    """One row per task and metric, in the order of the results."""
    return [row for name, task in results.tasks.items() for row in _rows_of_task(name, task)]


def _rows_of_task(name: str, task: TaskResult) -> list[Row]:
    if task.own is None:
        return []
    figures = {key: system.metrics for key, system in task.systems.items()}
    untuned = task.systems.get("base")
    beside = (untuned.adapter_metrics if untuned else {}) or figures.get("adapter", {})
    return [
        Row(
            name,
            task.measure(metric),
            task.own.n,
            baseline=figures.get("baseline", {}).get(metric),
            base=figures.get("base", {}).get(metric),
            adapter=figures.get("adapter", {}).get(metric),
            interval=task.own.metrics_interval.get(metric),
            base_n=untuned.n if untuned else None,
            adapter_beside_base=beside.get(metric),
            others={key: figures[key].get(metric) for key in task.further},
        )
        for metric in task.own.metrics
    ]


def as_dict(results: Results) -> dict[str, Any]:
    """The table and its notes as `--json` prints them; a row a task and metric."""
    rows = [
        {
            "task": row.task,
            "metric": row.measure.name,
            "title": row.measure.title,
            "better": row.measure.better,
            "n": row.n,
            "baseline": row.baseline,
            "base": row.base,
            "base_n": row.base_n,
            "adapter": row.adapter,
            "adapter_on_base_n": row.adapter_beside_base,
            "interval": row.interval,
            "others": row.others,
            "best": row.verdict,
        }
        for row in rows_of(results)
    ]
    about = {"split": results.split, "complete": results.complete, "seconds": results.seconds}
    return {**about, "model": results.model, "data": results.data, "rows": rows, "notes": notes(results)}


def summary_line(results: Results, name: str) -> str:
    """One task in one line, for a running evaluation."""
    task = results.tasks[name]
    if task.own is None:
        return f"{name}: skipped, {task.skipped}"
    metrics = task.own.metrics
    metric = next(iter([m for m in task.headline_metrics if m in metrics] or metrics), None)
    speed = f"{task.own.n:,} examples, {task.own.examples_per_second:,.1f} examples/s"
    if metric is None:
        return f"{name}: {speed}"
    others = {
        label: task.systems[key].metrics.get(metric)
        for key, label in (("baseline", task.systems["baseline"].name), ("base", "untuned base"))
        if key in task.systems and task.systems[key] is not task.own
    }
    beside = ", ".join(f"{label} {number(value)}" for label, value in others.items())
    return f"{name}: {task.measure(metric).heading} {number(metrics[metric])} ({beside}); {speed}"


def notes(results: Results) -> list[str]:
    """Notes for reading the table, one sentence each."""
    tasks = {name: task for name, task in results.tasks.items() if task.systems}
    found = []
    datasets = _grouped((task.dataset, name) for name, task in tasks.items())
    if len(datasets) > 1:
        found.append(f"Data: {_listed(datasets)}.")
    if tasks:
        names = _grouped((task.systems["baseline"].name, name) for name, task in tasks.items())
        found.append(f"Baselines: {_listed(names)}.")
    found += _further_notes(tasks)
    found += _missing_systems(tasks)
    rows = rows_of(results)
    alone = list(dict.fromkeys(row.measure.title for row in rows if row.measure.better == "neither"))
    read_together = f", except for {' and '.join(alone)}, which must be read together" if alone else ""
    found.append(
        f"↓ smaller is better; everywhere else larger is better{read_together}. "
        f"Intervals: bootstrap {_drawn(tasks)}."
    )
    fewer = sorted({row.base_n for row in rows if row.base_n is not None and row.base_n < row.n})
    if fewer:
        listed = " or ".join(f"{n:,}" for n in fewer)
        found.append(
            f"† The untuned base answered {listed} of these examples, drawn by a fixed seed; "
            "it is compared with fintune on those."
        )
    if results.model.adapter is None:
        found.append("No adapter was given: the model is the untuned base.")
    if results.split == "validation":
        found.append(
            "Validation examples: what was chosen on them, such as temperatures and TF-IDF's penalty, looks "
            "better than on new ones."
        )
    if limit := results.settings.get("max_test"):
        found.append(f"At most {limit:,} {results.split} examples per task, drawn by a fixed seed.")
    skipped = [task.bertscore["skipped"] for task in tasks.values() if "skipped" in task.bertscore]
    found += [f"BERTScore was skipped: {why}." for why in skipped[:1]]
    found += [f"{name} was skipped: {task.skipped}." for name, task in results.tasks.items() if task.skipped]
    if not results.complete:
        found.append("Incomplete: the evaluation was stopped before its last task.")
    return found


def _grouped(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for key, task in pairs:
        found.setdefault(key, []).append(task)
    return found


def _listed(groups: Mapping[str, list[str]]) -> str:
    return "; ".join(f"{name} ({', '.join(tasks)})" for name, tasks in groups.items())


def _further_notes(tasks: Mapping[str, TaskResult]) -> list[str]:
    """A sentence for each other system: its first headline metric on each task."""
    found = _grouped(
        (key, f"{name} {task.measure(metric).heading} {number(system.metrics.get(metric))}")
        for name, task in tasks.items()
        for metric in task.headline_metrics[:1]
        for key, system in task.further.items()
    )
    return [f"{key}: {', '.join(figures)}." for key, figures in found.items()]


def _missing_systems(tasks: Mapping[str, TaskResult]) -> list[str]:
    """A sentence for each system that suits a task's type but did not answer, and why."""
    found: dict[tuple[str, str], list[str]] = {}
    for name, task in tasks.items():
        for system, why in task.systems_skipped.items():
            if not why.startswith(NONE_OF_ITS_TYPE):
                found.setdefault((system, why), []).append(name)
    return [f"Without {system} ({', '.join(names)}): {why}." for (system, why), names in found.items()]


def _drawn(tasks: Mapping[str, TaskResult]) -> str:
    """What the bootstrap resamples: examples, or on some tasks groups or dates (old results do not say)."""
    parts = [
        f"{name}: over {task.clusters.n:,} {task.clusters.by}s"
        for name, task in tasks.items()
        if task.clusters and task.clusters.by != "example"
    ]
    return "; ".join([*(["over examples"] if len(parts) < len(tasks) or not tasks else []), *parts])


def title_of(results: Results) -> str:
    """The title of a table or report."""
    describes, what = results.data.describes, f"{results.split.capitalize()} results"
    title = f"{what} on the {describes}" if describes == "built-in sample" else f"{what}: {describes}"
    debugged = (results.training.get("recipe") or {}).get("debug")
    return f"{title} (--debug: these figures mean nothing)" if debugged else title


@dataclass(frozen=True)
class PublishedSystem:
    """A system published elsewhere, with its figures on one dataset."""

    dataset: str
    system: str
    source: str
    figures: list[tuple[MeasureInfo, float]]
    differs: str


def published_systems(results: Results) -> list[PublishedSystem]:
    """The published figures by dataset, one row per system."""
    groups: dict[tuple[str, str, str], list[Published]] = {}
    for row in sorted(results.published, key=lambda row: row.dataset):
        groups.setdefault((row.dataset, row.system, row.source), []).append(row)
    return [
        PublishedSystem(
            *key,
            figures=[(results.measure(row.metric), row.value) for row in group],
            differs=max((row.differs for row in group), key=len),
        )
        for key, group in groups.items()
    ]


def base_figure(row: Row) -> str:
    """The untuned base's figure, with † if it answered fewer examples."""
    fewer = row.base_n is not None and row.base_n < row.n and row.base is not None
    return number(row.base) + ("†" if fewer else "")


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def bounds(interval: tuple[float, float] | None, form: Literal["number", "percent"] = "number") -> str:
    """An interval in brackets; "" if there is none."""
    show = {"number": number, "percent": percent}[form]
    return f"[{show(interval[0])}, {show(interval[1])}]" if interval else ""


def print_table(results: Results, console: Any = None) -> None:
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
            row.measure.heading,
            number(row.baseline),
            base_figure(row),
            Text(number(row.adapter), style=style),
            bounds(row.interval),
            end_section=last,
        )
    console.print(table)
    for note in notes(results):
        console.print(Text(note, style="dim"))
    if results.model.adapter:
        console.print(Text("Green: better than every other system; yellow: not.", style="dim"))
