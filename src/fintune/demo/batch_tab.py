"""The batch tab: a file in, a CSV of answers out, with progress and the rows without an answer."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

from fintune.data.raw.readers.own_file import usual_column
from fintune.data.raw.readers.row_files import KINDS, open_rows, row_files
from fintune.data.raw.readers.streams import PACKED
from fintune.demo import batch, render, scratch, texts
from fintune.errors import FintuneError
from fintune.inference.engine import Engine
from fintune.tasks import Task

ERRORS_SHOWN = 10


def add(gr: Any, engine: Engine) -> None:
    """Fill the open tab."""
    tasks = {texts.title(task): task for task in engine.tasks if not task.obstacle()}
    gr.HTML(
        '<p class="ft-about">Upload a CSV, TSV, JSON, Parquet or Excel file with a column of texts (for '
        f"Q&amp;A also one of questions) and at most {batch.MAX_ROWS:,} rows, packed as <code>.gz</code> or "
        "<code>.zst</code> if you like. You get a CSV: the file's own columns, then the answers.</p>"
    )
    with gr.Row():
        with gr.Column(min_width=300):
            first = next(iter(tasks))
            choice = gr.Radio(list(tasks), value=first, label="Task", elem_id="batch-task")
            file = gr.File(
                label="File",
                file_types=[*KINDS, *PACKED],
                height=140,
                elem_id="batch-file",
            )
            pickers = _pickers(gr, engine, tasks, choice, file)
            button = gr.Button("Answer all rows", variant="primary", elem_id="batch-run")
            stop = gr.Button("Stop", visible=False, elem_id="batch-stop")
        with gr.Column(min_width=300):
            status = gr.HTML(
                render.empty("Progress and the first answers will appear here."),
                label="Progress",
                show_label=True,
                container=True,
                elem_id="batch-status",
            )
            result = gr.File(label="Answers", visible=False, interactive=False, elem_id="batch-result")
    preview = gr.HTML(visible=False, elem_id="batch-preview")

    def run(name: str, path: str | None, *picked: str | None) -> Iterator[tuple[Any, Any, Any, Any]]:
        hidden = gr.update(visible=False)
        if not path:
            yield render.notice("There is no file yet: choose one above."), hidden, hidden, hidden
            return
        folder = Path(tempfile.mkdtemp(dir=scratch.folder()))
        target = folder / f"{Path(path).stem}-{tasks[name].name}.csv"
        progress = None
        try:
            chosen = {f: column for f, column in zip(pickers, picked, strict=True) if column}
            chosen = {f: column for f, column in chosen.items() if f in tasks[name].inputs}
            for progress in batch.run(engine, tasks[name], path, target, chosen):
                shown = gr.update(value=_preview(progress), visible=bool(progress.rows))
                yield _status(progress), hidden, shown, gr.update(visible=True)
        except Exception as error:
            why = render.unanswered(error, "The batch failed")
            yield why.replace(escape(str(path)), escape(Path(path).name)), hidden, hidden, hidden
            return
        if progress is not None:
            yield _status(progress), gr.update(value=str(target), visible=True), gr.skip(), hidden

    running = button.click(
        run,
        [choice, file, *pickers.values()],
        [status, result, preview, stop],
        show_progress="hidden",  # the page has its own bar
        concurrency_id="batch",
        concurrency_limit=2,
        api_visibility="private",
    )
    stop.click(
        lambda: (render.notice("Stopped: nothing was kept."), gr.update(visible=False)),
        None,
        [status, stop],
        cancels=[running],
        queue=False,
        api_visibility="private",
    )


def _pickers(gr: Any, engine: Engine, tasks: dict[str, Task], choice: Any, file: Any) -> dict[str, Any]:
    """Field → the drop-down for its column, which follows the chosen task and file."""
    pickers = {
        name: gr.Dropdown(label=f"Column of the {name}", visible=False, elem_id=f"batch-{name}")
        for name in ("text", "question")
    }

    def columns(name: str, path: str | None) -> list[Any]:
        """Drop-downs for the columns that the task needs, with the likeliest chosen."""
        task = tasks[name]
        try:
            names = open_rows(row_files(path, "the file")[0])[0] if path else []
        except FintuneError:
            names = []  # answering the file reports why
        trained = engine.columns(task.name)
        likely = {f: trained[f] if trained.get(f) in names else usual_column(f, names) for f in pickers}
        return [
            gr.update(choices=names, value=likely[field], visible=bool(names) and field in task.inputs)
            for field in pickers
        ]

    for changed in (choice.change, file.change):
        changed(columns, [choice, file], list(pickers.values()), api_visibility="private")
    return pickers


def _status(progress: batch.Progress) -> str:
    bar = render.progress(progress.done, progress.total, len(progress.errors), progress.seconds_left)
    bar += "".join(map(render.remark, progress.notes))
    if not progress.errors:
        return f'<div class="ft-card">{bar}</div>'
    shown = progress.errors[:ERRORS_SHOWN]
    errors = render.table([{"row": row, "why": why} for row, why in shown], ["row", "why"])
    more = len(progress.errors) - len(shown)
    rest = f'<p class="ft-quiet">… and {more:,} more, in the file.</p>' if more else ""
    return f'<div class="ft-card">{bar}<h4>Rows without an answer</h4>{errors}{rest}</div>'


def _preview(progress: batch.Progress) -> str:
    names = progress.columns[:-1]  # errors stand beside the bar
    heads = {name: name.removeprefix("probability_") for name in names if name.startswith("probability_")}
    return f"<h4>The first {len(progress.rows)} rows</h4>{render.table(progress.rows, names, names=heads)}"
