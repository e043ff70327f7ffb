"""What `fintune live` has scored so far: the newest items of its output folder, read again now and then."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from fintune.demo import render, texts
from fintune.errors import FintuneError

logger = logging.getLogger(__name__)

SECONDS = 10
"""Between two looks at the folder."""
SHOWN = 50


def add(gr: Any, tab: Any, folder: Path) -> None:
    """Fill the tab that is open; the folder is read when the tab is opened, and every few seconds after."""
    gr.HTML('<p class="ft-about">The newest items that <code>fintune live</code> has scored.</p>')
    html = gr.HTML(render.empty("Loading …"), elem_id="live-items")
    timer = gr.Timer(SECONDS)
    quiet: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
    for event in (tab.select, timer.tick):
        event(lambda: page(folder), None, html, **quiet)


def page(folder: Path) -> str:
    """The newest items as a table, or what to do where there are none."""
    rows: list[dict[str, Any]] = []
    if folder.is_dir():
        try:
            from fintune.live import page as live

            rows, sources = live.rows(folder, SHOWN), live.sources(folder)
            card = live.scorecard(folder)
        except FintuneError as error:
            return render.failure(f"The live items in {folder} cannot be read: {error.plain}")
        except Exception:  # another process writes there
            logger.exception("The live items cannot be read")
            return render.failure(f"The live items in {folder} cannot be read. {render.UNEXPECTED}")
    if not rows:
        sentence = f"There are no live items in {folder} yet. They appear here while this runs:"
        return render.missing(sentence, f"fintune live --feed URL --output {folder}")
    troubles = [f"{source['title']}: {source['problem']}" for source in sources if source.get("problem")]
    return "".join(map(render.notice, troubles)) + (scorecard(card) if card else "") + items(rows)


def scorecard(card: Mapping[str, Any]) -> str:
    """How the numbers did against the moves that followed (see `fintune.live.scorecard.score`)."""
    figures = [
        {
            "figure": name.replace("_", " "),
            "value": figure["value"],
            "95 % interval": "[{:.3f}, {:.3f}]".format(*figure["interval"]) if figure["interval"] else "",
            "answers": figure["n"],
        }
        for name, figure in card["figures"].items()
    ]
    if not figures:
        return ""
    table = render.table(figures, list(figures[0]))
    return f'<details class="ft-details"><summary>Against the moves that followed</summary>{table}</details>'


def items(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of `fintune.live.page.rows` as a table with a column for each task that answered."""
    order = [*texts.TITLES]
    tasks = list(dict.fromkeys(task for row in rows for task in row["answers"]))
    tasks.sort(key=lambda task: order.index(task) if task in order else len(order))
    shown = [
        {
            "news": _news(row),
            **{task: _answer(row["answers"][task]) for task in tasks if task in row["answers"]},
            "source": row["source"],
            "seen": f"{row['seen'][:10]} {row['seen'][11:16]}",
        }
        for row in rows
    ]
    count = f"The newest {len(rows):,} items" if len(rows) > 1 else "The newest item"
    names = {"seen": "seen (UTC)", **{task: texts.TITLES.get(task, task) for task in tasks}}
    table = render.table(shown, ["news", *tasks, "source", "seen"], names=names)
    return f'<p class="ft-quiet" role="status">{count}.</p>{table}'


def _news(row: Mapping[str, Any]) -> render.Html:
    """The title, linked to the article, with its stocks and its alert."""
    title = escape(row["title"])
    if str(row["link"]).startswith(("https://", "http://")):
        title = f'<a href="{escape(row["link"])}" target="_blank" rel="noopener noreferrer">{title}</a>'
    symbols = f"<small>{escape(', '.join(row['symbols']))}</small>" if row["symbols"] else ""
    alert = f'<small class="ft-warning">{escape(row["alert"])}</small>' if row["alert"] else ""
    return render.Html(f"{title} {symbols}{alert}")


def _answer(answer: Mapping[str, Any]) -> str:
    """An answer in a few words."""
    if "label" in answer:
        return f"{answer['label']} {answer['confidence']:.0%}"
    if "value" in answer:
        own = f"{answer['value']:+.2f}"
        known = answer.get("low") is not None and answer.get("high") is not None
        return f"{own} [{answer['low']:+.2f}, {answer['high']:+.2f}]" if known else own
    return str(answer.get("text") or answer.get("error") or "")
