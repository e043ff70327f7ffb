"""The HTML report: results and predictions in, one file out that needs no network.

The markup is in `assets/report.html`; Jinja2 escapes every text that a model, a user or a dataset wrote, and
the page's own security policy allows no script but the one that is part of it.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fintune.evaluation.analysis.errors import BROWSED, shorten
from fintune.evaluation.published import by_system
from fintune.evaluation.results import output_files, read_predictions, read_results
from fintune.files import atomic_write, writable
from fintune.reports import figures, markdown, plots, reproduce
from fintune.tasks.label_noise import CANDIDATES

ASSETS = Path(__file__).with_name("assets")
TEXT_CHARACTERS = 900
SCATTERED = 1000
"""Points of a scatter plot, at most."""
_COUNTED = {True: "an error", False: "inexact, no error"}
_TRAITS = {"length": "length of the text", "rarity": "frequency of the label", "kind": "kind of answer"}


def write_report(results_file: str | Path, output_file: str | Path | None = None) -> Path:
    """Render the reports of a results file (or its folder) again, without the model; return the page's path.

    The Markdown stands beside the page. The errors come from the predictions file beside the results;
    without one the page has none to browse.

    Raises:
        DataError: the results are missing, damaged or of another version.
        ConfigError: the output file cannot be written.
    """
    from fintune.evaluation.runs import results_file as found

    file = found(results_file)
    files = output_files(file)
    page = writable(output_file or files["page"], (".html",))
    results = read_results(file)
    rows = read_predictions(files["predictions"]) if files["predictions"].is_file() else []
    atomic_write(page.with_suffix(".md"), markdown.markdown_report(results))
    return atomic_write(page, html_report(results, rows, file))


def html_report(
    results: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], results_file: str | Path
) -> str:
    """The page of some results and their rows of predictions (which may be none)."""
    from jinja2 import Environment, FileSystemLoader
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(ASSETS),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        number=figures.number,
        metric=figures.metric_name,
        answer=figures.answer_text,
        shorten=shorten,
        percent=_percent,
    )
    style, script = ((ASSETS / name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("report.html").render(
        results=results,
        title=figures.title_of(results),
        summary=_summary(results),
        further=list(dict.fromkeys(key for row in figures.rows_of(results) for key in row.others)),
        notes=figures.notes(results),
        tasks=[_task(results, task, rows) for task in results["tasks"]],
        errors=_browsed(results, rows),
        published=by_system(results.get("published", [])),
        commands=reproduce.commands(results, results_file),
        settings=reproduce.settings_text(results),
        recipe=_yaml(results.get("training", {}).get("recipe")),
        limit=BROWSED,
        candidates=CANDIDATES,
        style=Markup(style),
        script=Markup(script),
        policy=f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; img-src data:",
    )


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _yaml(value: Any) -> str:
    import yaml

    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True) if value else ""


def _summary(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The headline metrics as rows, each with a small picture of where the systems stand."""
    from markupsafe import Markup

    rows = []
    for row in figures.rows_of(results):
        entry = results["tasks"][row.task]
        own = row.adapter if results["model"]["adapter"] is not None else row.base
        if row.metric not in entry["headline_metrics"] or own is None:
            continue
        others = [("baseline", value) for value in (row.baseline, *row.others.values())]
        others += [("base", row.base)] if row.adapter is not None else []
        marks = [(kind, value) for kind, value in others if value is not None]
        known = [own, *(row.interval or ()), *(value for _, value in marks)]
        share = min(known) >= 0 and max(known) <= 1 and row.metric not in figures.SMALLER_IS_BETTER
        scale = (0.0, 1.0) if share else (min(known), max(known))
        picture = Markup(plots.strip(own, row.interval, scale, marks))
        place = list(results["tasks"]).index(row.task) + 1
        rows.append({"row": row, "own": own, "dataset": entry["dataset"], "number": place, "strip": picture})
    return rows


def _task(results: Mapping[str, Any], task: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the page shows of one task."""
    from markupsafe import Markup

    entry = results["tasks"][task]
    pictures = []
    systems = entry.get("systems", {})
    details = (systems.get("adapter") or systems.get("base") or {}).get("details", {})
    if details.get("reliability"):
        text = "Reliability: a dot below the dashed line is more sure than it is right."
        pictures.append((Markup(plots.reliability(details["reliability"])), text))
    if details.get("risk_coverage"):
        text = "Risk–coverage: the accuracy when the least sure examples go to a person."
        pictures.append((Markup(plots.risk_coverage(details["risk_coverage"])), text))
    own = [row for row in rows if row["task"] == task]
    if entry["type"] == "regression" and own:
        shown = own[:SCATTERED]
        picture = plots.scatter([r["target"] for r in shown], [r["prediction"] for r in shown], "")
        pictures.append((Markup(picture), f"Predictions against targets, {len(shown):,} examples."))
    if details.get("strategy"):
        curve = details["strategy"]
        text = (
            f"{curve['label'].capitalize()}: long the highest and short the lowest third of the forecasts, "
            f"{curve['days']} days, before and after costs of {curve['cost_bps']:g} basis points a trade."
        )
        pictures.append((Markup(plots.earnings(curve["gross"], curve["net"])), text))
    errors = entry.get("errors", {})
    confusion = errors.get("confusion")
    return {
        "name": task,
        "entry": entry,
        "metrics": [row for row in figures.rows_of(results) if row.task == task],
        "others": {key: systems[key] for key in figures.further_systems(systems)},
        "classes": details.get("per_class", {}),
        "kinds": details.get("by_kind", {}),
        "pictures": pictures,
        "confusion": _confusion(confusion) if confusion else [],
        "slices": _slices(errors.get("slices", [])),
        "errors": errors,
    }


def _confusion(confusion: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of the matrix: label, total, and cells of `predicted`, `count` and `share` of the row."""
    rows = []
    for label, counts in zip(confusion["labels"], confusion["matrix"], strict=True):
        total = sum(counts)
        cells = [
            {"predicted": predicted, "count": count, "share": count / total if total else 0.0}
            for predicted, count in zip(confusion["labels"], counts, strict=True)
        ]
        rows.append({"label": label, "total": total, "cells": cells})
    return rows


def _slices(slices: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Slices under their trait, each with a picture on one scale."""
    from markupsafe import Markup

    top = max((part["interval"][1] for part in slices), default=1.0)
    groups: dict[str, list[dict[str, Any]]] = {}
    for part in slices:
        picture = Markup(plots.strip(part["rate"], part["interval"], (0.0, top)))
        groups.setdefault(part["trait"], []).append({**part, "strip": picture})
    return [{"name": _TRAITS.get(trait, trait), "rows": rows} for trait, rows in groups.items()]


def _browsed(results: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The worst of every task's inexact answers, as cards to filter."""
    found = []
    for task, entry in results["tasks"].items():
        wrong = [row for row in rows if row["task"] == task and row.get("error")]
        for row in sorted(wrong, key=lambda row: row["error"]["rank"])[:BROWSED]:
            error = row["error"]
            shown = {
                **row,
                **error,
                "counted": _COUNTED.get(error.get("counts"), ""),
                "label": row["target"] if entry["type"] == "classification" else "",
            }
            shown["traits"] = list(error["traits"].values())
            if entry["type"] == "classification" and row.get("probabilities"):
                shown["confidence"] = max(row["probabilities"].values())
            found.append({**shown, "text": shorten(row["text"], TEXT_CHARACTERS)})
    return found
