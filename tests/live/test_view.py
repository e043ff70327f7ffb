"""The terminal view: foreign text is shown as it is and never obeyed."""

import io

from rich.console import Console

from fintune.live.view import View


def row(id, title, task="headline", **changes):
    base = {"id": id, "seen": "2026-03-02T15:04:05+00:00", "source": "Wire", "title": title, "task": task}
    base |= {"prediction": "bearish", "value": None, "confidence": 0.93, "low": None, "high": None}
    return base | {"alert": "", "error": None} | changes


def shown(live, rows):
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=live, width=140, color_system="standard" if live else None)
    with View(["headline", "regression"], live=True, console=console) as view:
        view.add(rows)
        view.alerted(0, "HTTP 503")
    return stream.getvalue()


ROWS = [
    row("a", "Acme [red]falls[/red] :smile:", alert="headline = bearish, p >= 0.9"),
    row("a", "Acme [red]falls[/red] :smile:", "regression", value=-1.25, low=-3.0, high=0.5, prediction=None),
    row("b", "Bolt", error="the text is empty"),
]


def test_without_a_terminal_each_item_is_a_line():
    lines = shown(False, ROWS).splitlines()
    assert lines[0] == (
        "15:04:05 Wire: Acme [red]falls[/red] :smile: "
        "| headline bearish 0.93 !, regression -1.25 [-3.00, +0.50]"
    )
    assert lines[1] == "15:04:05 Wire: Bolt | headline no answer"
    assert lines[2] == "Alerts are not delivered: HTTP 503"


def test_on_a_terminal_a_table_shows_the_newest_first():
    last = shown(True, ROWS)[-2500:]
    assert last.index("Bolt") < last.index("Acme [red]falls[/red] :smile:")
    assert "-1.25 [-3.00, +0.50]" in last
    assert "Alerts are not delivered: HTTP 503" in last
