"""A drift report for people: Markdown, and one HTML page that needs no network."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from fintune.errors import ConfigError
from fintune.files import atomic_write, write_json

_STYLE = (
    ":root{color-scheme:light dark}body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;"
    "padding:0 1rem}div{overflow-x:auto}table{border-collapse:collapse;width:100%}"
    "th,td{padding:.35rem .6rem;text-align:left;border-bottom:1px solid #8886}"
    "td.n{text-align:right;font-variant-numeric:tabular-nums}"
    ".drift{color:#c62828;font-weight:700}.watch{color:#b26a00;font-weight:700}.stable{color:#2e7d32}"
    "@media(prefers-color-scheme:dark){.drift{color:#ff8a80}.watch{color:#ffd180}.stable{color:#a5d6a7}}"
)
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


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _about(task: str, entry: Mapping[str, Any], report: Mapping[str, Any]) -> str:
    text = f"{entry['n']:,} answers against {entry['reference_n']:,} of the reference."
    if entry["status"] == "too few":
        text += f" Fewer than {report['thresholds']['min_answers']} of either are not judged."
    live = report.get("live_scores", {}).get(task)
    if live and live["accuracy"] is not None:
        text += f" Live accuracy {live['accuracy']:.1%} of {live['feedback']:,} answers with feedback."
    if live and live["mae"] is not None:
        text += f" Live mean absolute error {live['mae']:.3f}, {live['feedback']:,} answers with feedback."
    return text


def _note(report: Mapping[str, Any]) -> str:
    limits = report["thresholds"]
    (watch, drift), (watch_words, drift_words) = limits["psi"], limits["words_js"]
    return (
        f"PSI from {watch} on asks for a look and from {drift} on means drift, if the test's p is below "
        f"{limits['p_value']}; for words, a Jensen-Shannon divergence from {watch_words} bits and from "
        f"{drift_words} bits on. Reference: {report['reference'] or 'unknown'}. Made {report['created']}."
    )


def markdown(report: Mapping[str, Any]) -> str:
    """The report as Markdown."""
    lines = [f"# Drift: {report['status']}", ""]
    for task, entry in report["tasks"].items():
        lines += [f"## {task}: {entry['status']}", "", _about(task, entry, report), ""]
        if rows := _rows(entry):
            lines += [" | ".join(["", *_HEAD, ""]).strip(), "|---|---:|---:|---|---:|---|"]
            lines += ["| " + " | ".join(row) + " |" for row in rows] + [""]
    return "\n".join([*lines, _note(report), ""])


def html(report: Mapping[str, Any]) -> str:
    """The report as one page; every text is escaped."""
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        "<meta name=viewport content='width=device-width,initial-scale=1'>",
        "<meta http-equiv=Content-Security-Policy content=\"default-src 'none';style-src 'unsafe-inline'\">",
        f"<title>Drift: {escape(report['status'])}</title><style>{_STYLE}</style>",
        f"<h1>Drift: {_status(report['status'])}</h1>",
    ]
    for task, entry in report["tasks"].items():
        parts.append(f"<h2>{escape(task)}: {_status(entry['status'])}</h2>")
        parts.append(f"<p>{escape(_about(task, entry, report))}</p>")
        if rows := _rows(entry):
            head = "".join(f"<th scope=col>{escape(name)}</th>" for name in _HEAD)
            parts.append(f"<div><table><thead><tr>{head}</tr></thead><tbody>")
            for name, psi, js, test, p_value, status in rows:
                numbers = f"<td class=n>{psi}</td><td class=n>{js}</td><td>{escape(test)}</td>"
                parts.append(
                    f"<tr><th scope=row>{escape(name)}</th>{numbers}<td class=n>{p_value}</td>"
                    f"<td>{_status(status)}</td></tr>"
                )
            parts.append("</tbody></table></div>")
    parts.append(f"<p>{escape(_note(report))}</p></html>")
    return "\n".join(parts) + "\n"


def _status(status: str) -> str:
    return f'<span class="{escape(status.replace(" ", "-"))}">{escape(status)}</span>'
