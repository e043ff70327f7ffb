"""Comparisons for people: a table on the terminal, Markdown, or JSON. Reads what `comparison` returns."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fintune.evaluation.analysis.errors import shorten
from fintune.evaluation.compare import better
from fintune.files import atomic_write, write_json
from fintune.reports.figures import answer_text, metric_name, number
from fintune.reports.markdown import cell

_HEADINGS = ("task", "metric", "A", "B", "B − A", "95 % interval", "p")
_SEED_HEADINGS = ("task", "metric", "mean ± sd", "range", "runs")


def write(path: Path, compared: Mapping[str, Any]) -> None:
    """The comparison as JSON or Markdown, by the file's ending."""
    if path.suffix == ".json":
        write_json(path, compared)
    else:
        atomic_write(path, markdown(compared))


def rows(compared: Mapping[str, Any]) -> list[tuple[tuple[str, ...], bool | None]]:
    """The cells of each line, and whether B is better there beyond doubt (its interval excludes 0)."""
    found: list[tuple[tuple[str, ...], bool | None]] = []
    for task, entry in compared["tasks"].items():
        for metric, row in entry["metrics"].items():
            if "values" in row:
                figures = (
                    f"{number(row['mean'])} ± {number(row['sd'])}",
                    f"{number(row['low'])}–{number(row['high'])}",
                    str(row["n"]),
                )
                found.append(((task, metric_name(metric), *figures), None))
                continue
            bounds = row["interval"]
            clear = bool(bounds) and (bounds[0] > 0 or bounds[1] < 0)
            gap = "–" if row["difference"] is None else f"{row['difference']:+.3f}"
            interval = f"[{bounds[0]:+.3f}, {bounds[1]:+.3f}]" if bounds else "–"
            p = "–" if row["p_value"] is None else p_text(row["p_value"])
            cells = (task, metric_name(metric), number(row["a"]), number(row["b"]), gap, interval, p)
            found.append((cells, better(metric, row["difference"]) if clear else None))
    return found


def p_text(value: float) -> str:
    """Three decimals, or `<0.001`."""
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def notes(compared: Mapping[str, Any]) -> list[str]:
    """What a reader must know, one sentence each."""
    if "runs" in compared:
        n = len(compared["runs"])
        return [
            f"Mean ± standard deviation over {n} runs (n − 1 in the denominator), on the same test examples."
        ]
    settings = compared["settings"]
    clustered = [task for task, entry in compared["tasks"].items() if entry["clusters"]["by"] != "example"]
    found = [
        f"A is {compared['a']['model']} ({compared['a']['path']}); B is {compared['b']['model']} "
        f"({compared['b']['path']}).",
        f"Intervals: paired bootstrap, {settings['resamples']:,} resamples. p: McNemar's exact test for "
        f"accuracy of independent examples, else {settings['permutations']:,} paired permutations; "
        "not corrected for the number of comparisons.",
    ]
    if clustered:
        found.append(f"Drawn and swapped by date or group, not by example: {', '.join(clustered)}.")
    for task, entry in compared["tasks"].items():
        if "won" in entry:
            found.append(
                f"{task}: of {entry['n']:,} examples B wins {entry['won']:,}, loses {entry['lost']:,} "
                f"and ties {entry['tied']:,} (by {entry['measure'].replace('_', ' ')})."
            )
    return found


def markdown(compared: Mapping[str, Any]) -> str:
    """The table, its notes, and examples won and lost."""
    headings = _SEED_HEADINGS if "runs" in compared else _HEADINGS
    lines = ["# Comparison", "", f"| {' | '.join(headings)} |"]
    lines.append("|---|---|" + "---:|" * (len(headings) - 2))
    for cells, good in rows(compared):
        shown = [cell(text) for text in cells]
        if good:
            shown[4] = f"**{shown[4]}**"
        lines.append(f"| {' | '.join(shown)} |")
    lines += ["", *(f"- {cell(note)}" for note in notes(compared))]
    if "runs" in compared:
        lines += ["", *(f"- {cell(run['path'])}: {cell(run['model'])}" for run in compared["runs"])]
    else:
        lines.append("- Bold: B is better, and the interval excludes 0.")
    for task, entry in compared["tasks"].items():
        for key, title in (("won_examples", "won"), ("lost_examples", "lost")):
            if entry.get(key):
                lines += ["", f"## {task}: examples B {title}", ""]
                lines += [f"- {_example(row)}" for row in entry[key]]
    return "\n".join(lines) + "\n"


def _example(row: Mapping[str, Any]) -> str:
    question = f" Question: {cell(row['question'])}" if row.get("question") else ""
    answers = {name: cell(answer_text(row[name])) for name in ("target", "a", "b")}
    return (
        f"{cell(row['id'])}: “{cell(row['text'])}”{question} Expected **{answers['target']}**, "
        f"A said {answers['a']}, B said {answers['b']}."
    )


def _line(text: str, limit: int = 50) -> str:
    return shorten(" ".join(text.split()), limit)


def print_comparison(compared: Mapping[str, Any], console: Any = None) -> None:
    """The table, its notes and examples on `console` (a rich Console) or standard output."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = console or Console()
    seeds = "runs" in compared
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for i, heading in enumerate(_SEED_HEADINGS if seeds else _HEADINGS):
        table.add_column(heading, justify="left" if i < 2 else "right", no_wrap=i > 0, overflow="fold")
    last = ""
    for cells, good in rows(compared):
        style = {True: "bold green", False: "red", None: ""}[good]
        shown = [Text(text, style=style if i == 4 and not seeds else "") for i, text in enumerate(cells)]
        if cells[0] == last:
            shown[0] = Text("")
        last = cells[0]
        table.add_row(*shown)
    console.print(table)
    for note in notes(compared):
        console.print(Text(note, style="dim"))
    for task, entry in compared["tasks"].items():
        for key, title in (("won_examples", "won"), ("lost_examples", "lost")):
            for row in entry.get(key, []):
                answers = [_line(answer_text(row[name])) for name in ("target", "a", "b")]
                console.print(Text(f"{task}, {title}: {row['id']}: “{_line(row['text'], 100)}”", style="dim"))
                console.print(Text("  expected {}; A: {}; B: {}".format(*answers), style="dim"))
    if not seeds:
        console.print(Text("Green: B is better, red: A is; elsewhere the interval holds 0.", style="dim"))
