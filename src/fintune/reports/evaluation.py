"""The HTML report of an evaluation: results and answers in, one page out (`assets/evaluation.html`)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup

from fintune.evaluation.analysis.errors import BROWSED
from fintune.evaluation.results import (
    Answer,
    Results,
    TaskResult,
    output_files,
    read_predictions,
    read_results,
)
from fintune.evaluation.runs import results_file as find_results
from fintune.files import atomic_write, writable
from fintune.reports import figures, markdown, plots, reproduce
from fintune.reports.page import make_page
from fintune.tasks.label_noise import CANDIDATES

SCATTERED = 1000
"""Points of a scatter plot, at most."""


def write_report(results_file: str | Path, output_file: str | Path | None = None) -> Path:
    """Render the reports of a results file (or its folder) again, without the model; return the page's path.

    The Markdown stands beside the page. The errors come from the predictions file beside the results;
    without one the page has none to browse.

    Raises:
        DataError: the results are missing, damaged or of another version.
        ConfigError: the output file cannot be written.
    """
    file = find_results(results_file)
    files = output_files(file)
    page = writable(output_file or files["page"], (".html",))
    results = read_results(file)
    answers = read_predictions(files["predictions"]) if files["predictions"].is_file() else []
    atomic_write(page.with_suffix(".md"), markdown.markdown_report(results))
    return atomic_write(page, html_report(results, answers, file))


def html_report(results: Results, answers: Sequence[Answer], results_file: str | Path) -> str:
    """The page of some results and their answers (which may be none)."""
    rows = figures.rows_of(results)
    errors = list(_browsed(results, answers))
    published = figures.published_systems(results)
    sections = [("summary", "Summary")]
    sections += [(f"task-{i}", name) for i, name in enumerate(results.tasks, 1)]
    sections += [("browse", "Answers")] if errors else []
    sections += [("published", "Published")] if published else []
    return make_page(
        "evaluation.html",
        figures.title_of(results),
        [*sections, ("data", "Data"), ("reproduce", "Reproduce")],
        script="report.js" if errors else "",
        results=results,
        rows=rows,
        summary=list(_summary(results, rows)),
        further=list(dict.fromkeys(key for row in rows for key in row.others)),
        notes=figures.notes(results),
        pictures={
            name: list(_pictures(task, [answer for answer in answers if answer.task == name]))
            for name, task in results.tasks.items()
        },
        errors=errors,
        published=published,
        commands=reproduce.commands(results, results_file),
        settings=reproduce.settings_text(results),
        recipe=_yaml(results.training.get("recipe")),
        limit=BROWSED,
        candidates=CANDIDATES,
    )


def _yaml(value: Any) -> str:
    import yaml

    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True) if value else ""


class _Line(NamedTuple):
    """A headline metric of the summary, and where the systems stand on its strip plot."""

    row: figures.Row
    number: int
    """The task's place on the page, from 1."""
    own: float
    scale: tuple[float, float]
    marks: list[tuple[str, float]]
    """(class, value) of each other system."""


def _summary(results: Results, rows: Iterable[figures.Row]) -> Iterable[_Line]:
    places = {name: i for i, name in enumerate(results.tasks, 1)}
    for row in rows:
        own = row.adapter if results.model.adapter is not None else row.base
        if row.measure.name not in results.tasks[row.task].headline_metrics or own is None:
            continue
        others = [("baseline", value) for value in (row.baseline, *row.others.values())]
        others += [("base", row.base)] if row.adapter is not None else []
        marks = [(kind, value) for kind, value in others if value is not None]
        known = [own, *(row.interval or ()), *(value for _, value in marks)]
        share = min(known) >= 0 and max(known) <= 1 and row.measure.better != "lower"
        yield _Line(row, places[row.task], own, (0.0, 1.0) if share else (min(known), max(known)), marks)


def _pictures(task: TaskResult, answers: Sequence[Answer]) -> Iterable[tuple[Markup, str]]:
    """(plot, caption) of each plot there are figures for."""
    details = task.own.details if task.own else None
    if details and details.reliability:
        text = "Reliability: a dot below the dashed line has more confidence than accuracy."
        yield plots.reliability(details.reliability), text
        if start := plots.crowded_from(details.reliability):
            near = [b.n for b in details.reliability if b.confidence >= start]
            text = (
                f"The same from {100 * start:g} % confidence on, which {sum(near):,} of "
                f"{sum(b.n for b in details.reliability):,} answers have."
            )
            yield plots.reliability(details.reliability, start), text
    if details and details.risk_coverage:
        text = (
            "Risk–coverage: the accuracy when the least confident answers are left to a person. The dashed "
            "line is the accuracy of all."
        )
        yield plots.risk_coverage(details.risk_coverage), text
    pairs = [(a.target, a.prediction) for a in answers[:SCATTERED]]
    numbers = [(x, y) for x, y in pairs if isinstance(x, float) and isinstance(y, float)]
    if numbers:
        text = f"Predictions against targets, {len(numbers):,} examples. On the dashed line both are equal."
        yield plots.scatter(numbers), text
    if details and (curve := details.strategy):
        text = (
            f"{curve.label.capitalize()}: long the highest and short the lowest third of the forecasts, "
            f"{curve.days} days, before (dashed) and after costs of {curve.cost_bps:g} basis points a trade."
        )
        yield plots.earnings(curve.gross, curve.net), text


def _browsed(results: Results, answers: Iterable[Answer]) -> Iterable[tuple[Answer, str]]:
    """The worst of every task's inexact answers, the worst first; each with its expected label or ""."""
    for name, task in results.tasks.items():
        wrong = [(answer.error.rank, answer) for answer in answers if answer.task == name and answer.error]
        labels = {*task.labels, *(task.errors.confusion.labels if task.errors.confusion else ())}
        for _, answer in sorted(wrong, key=lambda pair: pair[0])[:BROWSED]:
            yield answer, str(answer.target) if answer.target in labels else ""
