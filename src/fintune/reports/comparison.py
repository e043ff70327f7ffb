"""Shows the result of `evaluation.compare`: a table on the terminal, Markdown, or JSON."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fintune.evaluation.analysis.errors import shorten
from fintune.evaluation.compare import Comparison, Spread, Values, WonOrLost
from fintune.files import atomic_write, write_json
from fintune.reports.figures import answer_text, number
from fintune.text.markdown import cell

_HEADINGS = ("task", "metric", "A", "B", "B − A", "95 % interval", "p")
_SEED_HEADINGS = ("task", "metric", "mean ± sd", "range", "runs")


def write(path: Path, compared: Comparison | Spread) -> None:
    """The comparison as JSON or Markdown, by the file's ending."""
    if path.suffix == ".json":
        write_json(path, compared.model_dump(mode="json", exclude_unset=True))
    else:
        atomic_write(path, markdown(compared))


def rows(compared: Comparison | Spread) -> list[tuple[tuple[str, ...], bool | None]]:
    """The cells of each line, and whether B is significantly better there (its interval excludes 0)."""
    found: list[tuple[tuple[str, ...], bool | None]] = []
    for task, entry in compared.tasks.items():
        for row in entry.metrics.values():
            about = (task, row.measure.heading)
            if isinstance(row, Values):
                figures = (f"{number(row.mean)} ± {number(row.sd)}", f"{number(row.low)}–{number(row.high)}")
                found.append(((*about, *figures, str(row.n)), None))
                continue
            clear = row.interval is not None and (row.interval[0] > 0 or row.interval[1] < 0)
            gap = "–" if row.difference is None else f"{row.difference:+.3f}"
            interval = "[{:+.3f}, {:+.3f}]".format(*row.interval) if row.interval else "–"
            p = "–" if row.p_value is None else f"{row.p_value:.3f}" if row.p_value >= 0.001 else "<0.001"
            cells = (*about, number(row.a), number(row.b), gap, interval, p)
            found.append((cells, row.measure.improves(row.difference) if clear else None))
    return found


def notes(compared: Comparison | Spread) -> list[str]:
    """Notes that a reader must know, one sentence each."""
    if isinstance(compared, Spread):
        n = len(compared.runs)
        return [
            f"Mean ± standard deviation over {n} runs (n − 1 in the denominator), on the same test examples."
        ]
    a, b, settings = compared.a, compared.b, compared.settings
    clustered = [task for task, entry in compared.tasks.items() if entry.clusters.by != "example"]
    found = [
        f"A is {a.model} ({a.path}); B is {b.model} ({b.path}).",
        f"Intervals: paired bootstrap, {settings.resamples:,} resamples. p: McNemar's exact test for "
        f"accuracy of independent examples, else {settings.permutations:,} paired permutations; "
        "not corrected for the number of comparisons.",
    ]
    if clustered:
        found.append(f"Drawn and swapped by date or group, not by example: {', '.join(clustered)}.")
    for task, entry in compared.tasks.items():
        if entry.measure is not None:
            found.append(
                f"{task}: of {entry.n:,} examples B wins {entry.won:,}, loses {entry.lost:,} "
                f"and ties {entry.tied:,} (by {entry.measure.replace('_', ' ')})."
            )
    return found


def _examples(compared: Comparison | Spread) -> Iterator[tuple[str, str, list[WonOrLost]]]:
    """(task, `won` or `lost`, the examples) wherever there are some."""
    for task, entry in compared.tasks.items() if isinstance(compared, Comparison) else ():
        for title, examples in (("won", entry.won_examples), ("lost", entry.lost_examples)):
            if examples:
                yield task, title, examples


def markdown(compared: Comparison | Spread) -> str:
    """The table, its notes, and examples won and lost."""
    headings = _SEED_HEADINGS if isinstance(compared, Spread) else _HEADINGS
    lines = ["# Comparison", "", f"| {' | '.join(headings)} |"]
    lines.append("|---|---|" + "---:|" * (len(headings) - 2))
    for cells, good in rows(compared):
        shown = [cell(text) for text in cells]
        if good:
            shown[4] = f"**{shown[4]}**"
        lines.append(f"| {' | '.join(shown)} |")
    lines += ["", *(f"- {cell(note)}" for note in notes(compared))]
    if isinstance(compared, Spread):
        lines += ["", *(f"- {cell(run.path)}: {cell(run.model)}" for run in compared.runs)]
    else:
        lines.append("- Bold: B is better, and the interval excludes 0.")
    for task, title, examples in _examples(compared):
        lines += ["", f"## {task}: examples B {title}", "", *(f"- {_example(row)}" for row in examples)]
    return "\n".join(lines) + "\n"


def _example(row: WonOrLost) -> str:
    question = f" Question: {cell(row.question)}" if row.question else ""
    target, a, b = (cell(answer_text(value)) for value in (row.target, row.a, row.b))
    return f"{cell(row.id)}: “{cell(row.text)}”{question} Expected **{target}**, A said {a}, B said {b}."


def _line(text: str, limit: int = 50) -> str:
    return shorten(" ".join(text.split()), limit)


def print_comparison(compared: Comparison | Spread, console: Any = None) -> None:
    """The table, its notes and examples on `console` (a rich Console) or standard output."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = console or Console()
    seeds = isinstance(compared, Spread)
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
    for task, title, examples in _examples(compared):
        for row in examples:
            target, a, b = (_line(answer_text(value)) for value in (row.target, row.a, row.b))
            console.print(Text(f"{task}, {title}: {row.id}: “{_line(row.text, 100)}”", style="dim"))
            console.print(Text(f"  expected {target}; A: {a}; B: {b}", style="dim"))
    if not seeds:
        console.print(Text("Green: B is better, red: A is; elsewhere the interval holds 0.", style="dim"))
