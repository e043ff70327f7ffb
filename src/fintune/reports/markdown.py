"""Writes results as Markdown: the table with notes, `evaluate`'s report, and the model card's section.

Takes the `Results` of `evaluation.results`, so results.json alone is enough to make a report again.
"""

from __future__ import annotations

from typing import Any

from fintune.evaluation.analysis.errors import shorten
from fintune.evaluation.results import Results, TaskResult
from fintune.reports.figures import (
    answer_text,
    base_figure,
    bounds,
    notes,
    number,
    published_systems,
    rows_of,
    title_of,
)
from fintune.text.markdown import cell

_WORST_SHOWN = 3
_ANSWER_CHARACTERS = 160


def results_table(results: Results) -> str:
    """The table as Markdown, with notes."""
    rows = rows_of(results)
    further = list(dict.fromkeys(key for row in rows for key in row.others))
    names = [*map(cell, further), "untuned base", "fintune", "95 % interval"]
    lines = [
        f"**{cell(title_of(results))}**",
        "",
        f"| task | data | metric | n | baseline | {' | '.join(names)} |",
        f"|---|---|---|---:|---:|{'---:|' * len(names)}",
    ]
    for row in rows:
        own = number(row.adapter)
        cells = [
            row.task,
            results.tasks[row.task].dataset,
            row.measure.heading,
            f"{row.n:,}",
            number(row.baseline),
            *(number(row.others.get(key)) for key in further),
            base_figure(row),
            f"**{own}**" if row.verdict else own,
            bounds(row.interval),
        ]
        lines.append("| " + " | ".join(cell(text) for text in cells) + " |")
    bold = ["Bold: better than every other system."] if results.model.adapter else []
    return "\n".join([*lines, "", *(f"- {cell(note)}" for note in [*notes(results), *bold])]) + "\n"


def card_section(results: Results) -> str:
    """The headline figures, for the adapter's model card."""
    lines = [
        "## On test examples",
        "",
        "| task | data | metric | n | baseline | untuned base | this adapter | 95 % interval |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows_of(results):
        task = results.tasks[row.task]
        if row.measure.name in task.headline_metrics:
            about = (row.task, task.dataset, row.measure.heading, f"{row.n:,}")
            own = (number(row.baseline), number(row.base), number(row.adapter), bounds(row.interval))
            lines.append(f"| {' | '.join(map(cell, (*about, *own)))} |")
    lines += ["", *(f"- {cell(note)}" for note in notes(results)), ""]
    return "\n".join([*lines, f"Measured {results.created} by fintune {results.fintune}."])


def _errors(name: str, task: TaskResult) -> list[str]:
    """The error analysis of one task as Markdown lines."""
    errors, lines = task.errors, [f"### {name}", ""]
    if errors.confusion:
        labels = [cell(label) for label in errors.confusion.labels]
        lines += [f"| target ↓, predicted → | {' | '.join(labels)} |", "|---|" + "---:|" * len(labels)]
        for label, counts in zip(labels, errors.confusion.matrix, strict=True):
            lines.append(f"| {label} | {' | '.join(map(str, counts))} |")
        lines.append("")
    elif errors.mistakes:
        listed = ", ".join(f"{mistake} {count:,}" for mistake, count in errors.mistakes.items())
        lines += [f"Inexact answers, by what is wrong: {cell(listed)}.", ""]
    lines += [
        f"An error is {errors.error_means}.",
        "",
        f"| examples | n | errors | 95 % interval | {task.measure(errors.measure).heading} |",
        "|---|---:|---:|---:|---:|",
    ]
    for part in errors.slices:
        low, high = part.interval
        lines.append(
            f"| {cell(part.value)} | {part.n:,} | {part.rate:.1%} | [{low:.1%}, {high:.1%}] "
            f"| {number(part.mean)} |"
        )
    lines.append("")
    if errors.worst:
        lines += ["Worst examples (more in the results file):", ""]
    for row in errors.worst[:_WORST_SHOWN]:
        question = f" Question: {cell(row.question)}" if row.question else ""
        sure = "" if row.confidence is None else f" ({row.confidence:.0%} sure)"
        lines.append(
            f"- “{cell(row.text)}”{question} Expected **{_answer(row.target)}**, "
            f"got **{_answer(row.prediction)}**{sure}."
        )
    return [*lines, ""]


def _answer(value: Any) -> str:
    return cell(shorten(answer_text(value), _ANSWER_CHARACTERS))


def _published(results: Results) -> list[str]:
    """Figures published elsewhere, apart from ours; empty if there are none."""
    lines = [
        "## Published figures",
        "",
        "From other people's papers and pages, not measured here; each line says what differs.",
        "",
        "| data | system | figures | source; what differs |",
        "|---|---|---|---|",
    ]
    for row in published_systems(results):
        figures = ", ".join(f"{measure.heading} {number(value)}" for measure, value in row.figures)
        about = (row.dataset, row.system, figures, f"{row.source}; {row.differs}")
        lines.append(f"| {' | '.join(map(cell, about))} |")
    return [*lines, ""] if results.published else []


def markdown_report(results: Results) -> str:
    """The table, the settings, the speed, the error analysis, and published figures."""
    model, machine, data = results.model, results.machine, results.data
    versions = ", ".join(f"{name} {value}" for name, value in results.versions.items() if value)
    commit = f" (commit {results.git_commit})" if results.git_commit else ""
    speed = [
        f"| {name} | {key} | {system.n:,} | {system.seconds:.1f} | {system.examples_per_second:,.1f} |"
        for name, task in results.tasks.items()
        for key, system in task.systems.items()
        if key != "baseline"
    ]
    lines = [
        "# Evaluation",
        "",
        results_table(results),
        "## How it was made",
        "",
        f"- Date: {results.created}, fintune {results.fintune}{commit}, {results.seconds:.0f} s in all",
        f"- Model: base {cell(model.base)}, adapter {cell(model.adapter or 'none')}",
        f"- Data: {cell(data.describes)}, prepared in {cell(data.folder)} (key {data.key})",
        f"- Machine: {cell(machine['processor'])}, {machine['cores']} cores; GPU: {machine['gpu']}",
        f"- Versions: {versions}",
        "",
        "| task | system | n | seconds | examples/s |",
        "|---|---|---:|---:|---:|",
        *speed,
        "",
        "## Where it goes wrong",
        "",
    ]
    for name, task in results.tasks.items():
        if task.errors.measure:
            lines += _errors(name, task)
    lines += _published(results)
    return "\n".join(lines).rstrip() + "\n"
