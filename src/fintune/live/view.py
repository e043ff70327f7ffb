"""Shows a live run in a terminal: a growing table and a line per source; elsewhere a line per item."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from fintune.live.store import Row

if TYPE_CHECKING:
    from fintune.live.items import SourceState

_SHOWN = 20
_COLORS = {
    "positive": "green",
    "bullish": "green",
    "negative": "red",
    "bearish": "red",
}


class View:
    """The latest items; use as a context manager."""

    def __init__(self, tasks: Sequence[str], *, live: bool, console: Any = None) -> None:
        """Args: live: redraw one table if the console is a terminal; else print a line per item."""
        from rich.console import Console

        self.tasks = list(tasks)
        self.console = console or Console(file=sys.stdout)
        self._items: deque[list[Row]] = deque(maxlen=_SHOWN)
        self._footer: list[str] = []
        self._note = ""
        self._live: Any = None
        self._wanted = live and self.console.is_terminal

    def __enter__(self) -> View:
        if self._wanted:
            from rich.live import Live

            self._live = Live(self.table(), console=self.console, auto_refresh=False, screen=False)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def add(self, rows: Sequence[Row]) -> None:
        """Show new answers; an item's rows appear together."""
        items: dict[str, list[Row]] = {}
        for row in rows:
            items.setdefault(row["id"], []).append(row)
        for item in items.values():
            self._items.appendleft(item)
            if not self._live:
                self.note(_line(item))
        self._draw()

    def note(self, text: str) -> None:
        """Say something."""
        if self._live:
            self._note = text
            self._draw()
        else:
            self.console.print(text, markup=False, emoji=False, highlight=False, soft_wrap=True)

    def alerted(self, arrived: int, why: str) -> None:
        """Show the outcome of the last alerts."""
        if why:
            self.note(f"Alerts are not delivered: {why}")
        elif arrived:
            self.note(f"{arrived} alert{'s' if arrived > 1 else ''} delivered")

    def refresh(self, states: Iterable[SourceState], pending: int) -> None:
        """Show the state of the sources."""
        self._footer = [
            f"{state.title}: {state.items} items, {state.repeated} repeated"
            + (f", {state.problem}" if state.problem else "")
            for state in states
        ]
        if pending:
            self._footer.append(f"{pending} alerts wait")
        self._draw()

    def table(self) -> Any:
        """The table as Rich draws it."""
        from rich.table import Table
        from rich.text import Text

        caption = "\n".join([*self._footer, *([self._note] if self._note else [])])
        table = Table(
            title="fintune live (Ctrl+C stops it)",
            caption=Text(caption or "Waiting for the first items …"),
            caption_justify="left",
            expand=True,
        )
        table.add_column("seen (UTC)", no_wrap=True)
        table.add_column("source", max_width=18, no_wrap=True)
        table.add_column("headline", ratio=1)
        for task in self.tasks:
            table.add_column(task, no_wrap=True)
        for item in self._items:
            by_task = {row["task"]: row for row in item}
            cells = [_cell(by_task[task]) if task in by_task else "" for task in self.tasks]
            first = item[0]
            words = [
                Text(cell, style=_COLORS.get(cell.split(" ")[0], "")) for cell in cells
            ]  # never as markup: it is untrusted text
            table.add_row(Text(first["seen"][11:19]), Text(first["source"]), Text(first["title"]), *words)
        return table

    def _draw(self) -> None:
        if self._live:
            self._live.update(self.table(), refresh=True)


def _cell(row: Row) -> str:
    mark = " !" if row["alert"] else ""
    if row["error"]:
        return "no answer"
    if row["value"] is not None:
        bounds = f" [{row['low']:+.2f}, {row['high']:+.2f}]" if row["low"] is not None else ""
        return f"{row['value']:+.2f}{bounds}{mark}"
    share = f" {row['confidence']:.2f}" if row["confidence"] is not None else ""
    return f"{(row['prediction'] or '')[:60]}{share}{mark}".replace("\n", " ")


def _line(item: list[Row]) -> str:
    parts = ", ".join(f"{row['task']} {_cell(row)}" for row in item)
    return f"{item[0]['seen'][11:19]} {item[0]['source']}: {item[0]['title']} | {parts}"
