"""The results tab: the adapter's evaluation, its model card, and its training data."""

from __future__ import annotations

import logging
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

from fintune.data.raw.licences import commercial_use
from fintune.demo import about, render
from fintune.errors import FintuneError
from fintune.models import manifest

logger = logging.getLogger(__name__)


def add(gr: Any, tab: Any, folder: Path | None) -> None:
    """Fill the open tab; files are read when a reader opens their part."""
    if folder is None:
        sentence = "The untuned base model has no results here. Train an adapter, and start the demo again."
        gr.HTML(render.missing(sentence, "fintune run"))
        return
    quiet: dict[str, Any] = {"show_progress": "minimal", "api_visibility": "private", "queue": False}
    with gr.Tabs(elem_id="results-parts", overflow_behavior="wrap"):
        for i, (key, title, make) in enumerate(PARTS):
            with gr.Tab(title, id=key) as part:
                html = gr.HTML(render.empty("Loading …"), elem_id=f"results-{key}")
            for event in (part.select, *([tab.select] if i == 0 else [])):
                event(_loader(make, folder), None, html, **quiet)


def _loader(make: Callable[[Path], str], folder: Path) -> Callable[[], str]:
    def load() -> str:
        try:
            return make(folder)
        except FintuneError as error:
            return render.failure(f"This cannot be shown: {error.plain}")
        except Exception:  # a folder from elsewhere may hold anything
            logger.exception("A part of the results cannot be shown")
            return render.failure(render.UNEXPECTED)

    return load


def evaluation(folder: Path) -> str:
    """The evaluation's report: the page, else the Markdown, else how to create one."""
    page, text = folder / "results.html", folder / "results.md"
    for path, show in ((page, lambda t: render.frame(t, "Evaluation report")), (text, render.markdown)):
        if path.is_file():
            if path.stat().st_size > about.LARGEST:
                return render.missing("The report is too large to be shown here: open the file.", str(path))
            where = f'<p class="ft-quiet">From <code>{escape(str(path))}</code>.</p>'
            return where + show(path.read_text(encoding="utf-8", errors="replace"))
    return render.missing(
        "This adapter has not been evaluated yet. Its figures appear here after",
        f"fintune evaluate --model_path {folder} --output_file {folder / 'results.json'}",
    )


def card(folder: Path) -> str:
    """The model card."""
    path = folder / "README.md"
    if not path.is_file():
        return render.missing("This adapter's folder has no model card (README.md).")
    with path.open(encoding="utf-8", errors="replace") as stream:
        return render.markdown(stream.read(about.LARGEST))


def training_data(folder: Path) -> str:
    """What `fintune.json` says about data and training."""
    facts = manifest.read_raw(folder)
    if not facts:
        return render.missing("This adapter's folder has no fintune.json, so nothing is known of its data.")
    tasks = (facts.get("data") or {}).get("tasks") or {}
    rows = [_row(name, entry) for name, entry in tasks.items()]
    names = ["task", "dataset", "licence", "commercial_use", "train", "validation", "test", "left_out"]
    html = "<h2>Data</h2>" + render.table(rows, names) if rows else ""
    html += "".join(_provenance(name, entry) for name, entry in tasks.items())
    return f'<div class="ft-markdown">{html}<h2>Training</h2>{_facts(facts)}{_recipe(facts)}</div>'


def _row(name: str, entry: dict[str, Any]) -> dict[str, Any]:
    dataset = str(entry.get("dataset", ""))
    return {
        "task": name,
        "dataset": dataset,
        "licence": entry.get("licence") or "not stated",
        "commercial_use": commercial_use(dataset),
        **entry.get("counts", {}),
        "left_out": sum(entry.get("dropped", {}).values()),
    }


def _provenance(name: str, entry: dict[str, Any]) -> str:
    """Where a task's data comes from, what was left out and why, and the checksums."""
    lines = [("source", str(entry.get("source", "")))]
    lines += [(why, f"{count:,} left out") for why, count in entry.get("dropped", {}).items()]
    lines += [(f"SHA-256 of {file}", digest) for file, digest in entry.get("sha256", {}).items()]
    title = escape(f"{name}: source, what was left out, checksums")
    return f'<details class="ft-details"><summary>{title}</summary>{_list(lines)}</details>'


def _facts(facts: dict[str, Any]) -> str:
    training, machine = facts.get("training") or {}, facts.get("machine") or {}
    lines = [
        ("created", facts.get("created")),
        ("base model", facts.get("base_model")),
        ("trained parameters", _count(facts.get("trainable_parameters"))),
        ("optimizer steps", _count(facts.get("optimizer_steps"))),
        ("examples", _count(training.get("examples"))),
        ("minutes", f"{training['seconds'] / 60:.1f}" if training.get("seconds") else None),
        ("machine", machine.get("gpu") or machine.get("processor")),
        ("seed", facts.get("seed")),
        ("number format", facts.get("dtype")),
        ("commit", facts.get("git_commit")),
        ("versions", ", ".join(f"{k} {v}" for k, v in (facts.get("versions") or {}).items())),
    ]
    return f'<div class="ft-details">{_list([(k, str(v)) for k, v in lines if v not in (None, "")])}</div>'


def _recipe(facts: dict[str, Any]) -> str:
    import yaml

    text = yaml.safe_dump(facts.get("recipe", {}), sort_keys=False, allow_unicode=True)
    return f'<details class="ft-details"><summary>Recipe</summary><pre>{escape(text)}</pre></details>'


def _list(lines: list[tuple[str, str]]) -> str:
    return f"<dl>{''.join(f'<dt>{escape(k)}</dt><dd>{escape(v)}</dd>' for k, v in lines)}</dl>"


def _count(value: Any) -> str | None:
    return f"{value:,}" if isinstance(value, int) else None


PARTS = (
    ("evaluation", "Evaluation", evaluation),
    ("card", "Model card", card),
    ("data", "Data and training", training_data),
)
