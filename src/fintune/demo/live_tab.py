"""What `fintune live` has scored so far: the newest items of its output folder, read again now and then."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from fintune.demo import render
from fintune.errors import FintuneError

SECONDS = 10
"""Between two looks at the folder, while the tab is open."""
SHOWN = 50
TAIL_BYTES = 2**20
"""Of a JSON lines file that are read, from its end."""
PARTS_READ = 20
"""Files that are read at most, newest first."""
_TIMES = ("seen", "time", "scored", "published")
_FIRST = (*_TIMES, "source", "symbols", "title", "text")
_ASIDE = ("id", "summary", "link", "model", "adapter")


def add(gr: Any, tab: Any, folder: Path) -> None:
    """Fill the tab that is open; the folder is read when a reader opens the tab, and every few seconds after."""
    gr.HTML('<p class="ft-about">News as it comes, scored by <code>fintune live</code>.</p>')
    html = gr.HTML(render.empty("Loading …"), elem_id="live-items")
    timer = gr.Timer(SECONDS)
    quiet: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
    for event in (tab.select, timer.tick):
        event(lambda: page(folder), None, html, **quiet)


def page(folder: Path) -> str:
    """The newest items as a table, or what to do where there are none."""
    try:
        rows = latest(folder)
    except (FintuneError, OSError, ValueError) as error:
        return render.failure(f"The live items in {folder} cannot be read: {error}")
    if not rows:
        sentence = f"There are no live items in {folder} yet. They appear here while this runs:"
        return render.missing(sentence, f"fintune live --feed URL --output {folder}")
    names = dict.fromkeys(name for row in rows for name in row)
    known = [name for name in _FIRST if name in names]
    shown = [*known, *(n for n in names if n not in known and n not in _ASIDE)]
    count = f"The newest {len(rows):,} items" if len(rows) > 1 else "The newest item"
    return f'<p class="ft-quiet" role="status">{count}.</p>{render.table(rows, shown)}'


def latest(folder: Path) -> list[dict[str, Any]]:
    """The newest rows of the folder's Parquet parts and JSON lines, newest first, at most `SHOWN`."""
    if not folder.is_dir():
        return []
    files = [p for p in folder.rglob("*") if p.suffix in (".parquet", ".jsonl") and p.is_file()]
    files = [p for p in files if not any(part.startswith(".") for part in p.relative_to(folder).parts)]
    files.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    rows = [row for path in files[:PARTS_READ] for row in _tail(path)]
    key = next((name for name in _TIMES if any(row.get(name) for row in rows)), None)
    if key:
        rows.sort(key=lambda row: str(row.get(key) or ""), reverse=True)
    return [_plain(row) for row in rows[:SHOWN]]


def _tail(path: Path) -> Iterator[dict[str, Any]]:
    """A file's last rows, the last one first."""
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        table = pq.read_table(path)
        yield from reversed(table.slice(max(0, table.num_rows - SHOWN)).to_pylist())
        return
    with path.open("rb") as stream:
        size = stream.seek(0, 2)
        stream.seek(max(0, size - TAIL_BYTES))
        lines = stream.read().decode("utf-8", "replace").splitlines()
    yield from islice((row for row in map(_object, reversed(lines)) if row), SHOWN)


def _object(line: str) -> dict[str, Any] | None:
    """A line's object; None of a line that is cut or is being written."""
    try:
        value = json.loads(line)
    except json.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """Lists and objects of a row as text."""
    return {
        name: ", ".join(map(str, value))
        if isinstance(value, list | tuple)
        else ", ".join(f"{k} {v:.0%}" if isinstance(v, float) else f"{k} {v}" for k, v in value.items())
        if isinstance(value, dict)
        else value
        for name, value in row.items()
    }
