"""Prints an export's agreement with its adapter (`evaluation.agreement`) as a table on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fintune.evaluation.agreement import Agreement


def print_agreement(found: Agreement) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(box=box.SIMPLE_HEAD, title=f"What {found.folder} lost", pad_edge=False)
    table.add_column("task", overflow="fold")
    for heading in ("rows", "equal", "distance", "difference", "ROUGE-L", "rows/s", "adapter's"):
        table.add_column(heading, justify="right", no_wrap=True)
    style = {"ok": "", "warn": "yellow", "refuse": "bold red"}
    for each in found.tasks:
        same = each.identical if each.equal is None else each.equal
        figures = (
            f"{same:.1%}" if same is not None else "–",
            *map(_figure, (each.distance, each.difference)),
        )
        speeds = (f"{each.rows / max(s, 1e-9):.1f}" for s in (each.seconds, each.adapter_seconds))
        table.add_row(
            each.task, str(each.rows), *figures, _figure(each.rouge), *speeds, style=style[each.verdict]
        )
    console.print(table)
    console.print(
        f"{found.bytes / 1e6:,.1f} MB; answered by {found.computed_by}; on {found.data}. Distance: of "
        "probabilities. Difference: of numbers, in their standard deviations.",
        style="dim",
    )
    for task, why in found.skipped.items():
        console.print(f"{task}: not compared: {why}.", style="dim")


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
