"""A drift report as Markdown, and as a page (`assets/drift.html`).

Takes what `monitoring.drift.compare` returns.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fintune.errors import ConfigError
from fintune.files import atomic_write, write_json
from fintune.reports.page import make_page
from fintune.text.markdown import cell

_HEAD = ("signal", "PSI", "JS, bits", "test", "p", "status")


def write_report(report: Mapping[str, Any], output_file: str | Path) -> Path:
    """Write a report of `drift.compare` as .json, .md or .html, by the file's ending.

    Raises:
        ConfigError: another ending.
    """
    path = Path(output_file)
    if path.suffix == ".json":
        return write_json(path, report)
    if path.suffix not in (".md", ".html"):
        raise ConfigError(f"output_file must end in .json, .md or .html, got {output_file}")
    return atomic_write(path, markdown(report) if path.suffix == ".md" else html(report))


def _rows(entry: Mapping[str, Any]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for name, found in entry["signals"].items():
        test = found["test"]
        rows.append(
            (
                name,
                _number(found["psi"]),
                _number(found["js"]),
                test["name"] if test else "–",
                f"{test['p_value']:.2g}" if test else "–",
                found["status"],
            )
        )
    return rows


def _changes(entry: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """The share of each label and the median of each number, in the reference and now."""
    shares = entry["signals"].get("labels", {}).get("shares", {})
    rows = [(label, f"{then:.1%}", f"{now:.1%}") for label, (then, now) in shares.items()]
    medians = {name: found["medians"] for name, found in entry["signals"].items() if "medians" in found}
    return rows + [(f"median {name}", f"{then:.4g}", f"{now:.4g}") for name, (then, now) in medians.items()]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _about(task: str, entry: Mapping[str, Any], report: Mapping[str, Any]) -> str:
    text = f"{entry['n']:,} answers, compared with {entry['reference_n']:,} of the reference."
    if entry["status"] == "too few":
        text += f" A verdict needs at least {report['thresholds']['min_answers']} of each."
    live = report.get("live_scores", {}).get(task)
    if live and live["accuracy"] is not None:
        text += f" Live accuracy {live['accuracy']:.1%} of {live['feedback']:,} answers with feedback."
    if live and live["mae"] is not None:
        text += f" Live mean absolute error {live['mae']:.3f}, {live['feedback']:,} answers with feedback."
    return text


def _title(report: Mapping[str, Any]) -> str:
    found = {"drift": "drift found", "watch": "something to watch", "stable": "no drift"}
    return f"Drift report: {found.get(report['status'], 'too few answers to judge')}"


def _verdict(report: Mapping[str, Any]) -> str:
    """What was found, and what to do about it."""
    status = report["status"]
    names = ", ".join(name for name, entry in report["tasks"].items() if entry["status"] == status)
    if status == "drift":
        return f"Texts or answers of {names} have changed: check some answers; train again if they got worse."
    if status == "watch":
        return f"Texts or answers of {names} have changed a little: look again soon."
    if status == "stable":
        return "The newest answers are like the reference, in every task that has enough of them."
    return f"No task has the {report['thresholds']['min_answers']} answers that a verdict needs."


def _reading(report: Mapping[str, Any]) -> list[str]:
    """How to read the figures, a sentence or two each."""
    limits = report["thresholds"]
    (watch, drift), (watch_words, drift_words) = limits["psi"], limits["words_js"]
    return [
        f"Labels, confidence, length and value are compared by the population stability index (PSI): watch "
        f"from {watch}, drift from {drift}, and only if the test's p is below {limits['p_value']}.",
        f"Words are compared by the Jensen-Shannon divergence (JS): watch from {watch_words} bits, "
        f"drift from {drift_words}.",
    ]


def _origin(report: Mapping[str, Any]) -> str:
    return f"Reference: {report['reference'] or 'unknown'} · {report['created']}"


def markdown(report: Mapping[str, Any]) -> str:
    """The report as Markdown."""
    lines = [f"# {_title(report)}", "", cell(_origin(report)), "", cell(_verdict(report)), ""]
    for task, entry in report["tasks"].items():
        lines += [f"## {cell(task)}: {entry['status']}", "", _about(task, entry, report), ""]
        if rows := _rows(entry):
            lines += [" | ".join(["", *_HEAD, ""]).strip(), "|---|---:|---:|---|---:|---|"]
            lines += ["| " + " | ".join(map(cell, row)) + " |" for row in rows] + [""]
    return "\n".join([*lines, *(f"- {line}" for line in _reading(report)), ""])


def html(report: Mapping[str, Any]) -> str:
    """The report as one page."""
    tasks = report["tasks"]
    return make_page(
        "drift.html",
        _title(report),
        [("summary", "Summary"), *((f"task-{i}", name) for i, name in enumerate(tasks, 1))],
        report=report,
        origin=_origin(report),
        verdict=_verdict(report),
        reading=_reading(report),
        about={name: _about(name, entry, report) for name, entry in tasks.items()},
        rows={name: _rows(entry) for name, entry in tasks.items()},
        changes={name: _changes(entry) for name, entry in tasks.items()},
    )
