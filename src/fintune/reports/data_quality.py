"""Writes the quality report of prepared data as Markdown, and as a page (`assets/quality.html`).

Takes the result of `data.quality.measured.build`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from fintune.data.prepare.dataset import SPLITS
from fintune.data.quality.measured import leaks
from fintune.files import atomic_write, write_json
from fintune.reports import plots
from fintune.reports.page import make_page
from fintune.text.markdown import cell

Grid = tuple[list[str], list[list[str]]]
"""A table: its column names and its rows."""


# What both show -------------------------------------------------------------------------------------


def _overview(report: dict[str, Any]) -> Grid:
    head = ["task", "dataset", "licence", *SPLITS, "cut", "left out", "repeated", "conflicts", "encoding"]
    rows = []
    for name, task in report["tasks"].items():
        splits = task["splits"]
        cut = [split["truncated"]["examples"] for split in splits.values() if "truncated" in split]
        repeated = [split["duplicates"] for split in splits.values()]
        damaged = [split["encoding"] for split in splits.values()]
        rows.append(
            [
                name,
                task["dataset"],
                task["licence"],
                *(f"{splits[split]['rows']:,}" for split in SPLITS),
                f"{sum(cut):,}" if cut else "–",
                f"{sum(task['dropped'].values()):,}",
                f"{sum(d['exact'] for d in repeated):,} + {sum(d['near'] for d in repeated):,}",
                f"{sum(split['conflicts']['texts'] for split in splits.values()):,}",
                f"{sum(d['repairable'] + d['lost'] for d in damaged):,}",
            ]
        )
    return head, rows


_OVERVIEW = (
    "Rows after preparation. Cut: examples longer than {max_length} tokens. Left out: rows that preparation "
    "dropped. Repeated: texts that repeat another of their split exactly + nearly. Conflicts: texts with "
    "several targets. Encoding: records with damaged characters."
)
_MATRIX = (
    "Training records (rows) that repeat a text of a test set (columns), exactly + nearly (three-word "
    "shingles, Jaccard ≥ {threshold}). FiQA is compared by sentence, StockNet tweet by tweet. A dataset "
    "without an official test split that this recipe does not use is compared as a whole."
)


def _matrix(report: dict[str, Any]) -> Grid:
    sets = report["across"]["test_sets"]
    head = ["train \\ test", *(f"{name} ({count:,})" for name, count in sets.items())]
    rows = []
    for row in report["across"]["train"]:
        cells = []
        for name in sets:
            found = row["found"].get(name)
            cells.append(f"{found['exact']:,} + {found['near']:,}" if found else "0")
        rows.append([f"{row['task']}: {row['dataset']}", *cells])
    return head, rows


def _lengths(task: dict[str, Any]) -> Grid:
    head = ["split", "measure", "min", "median", "mean", "p95", "p99", "max"]
    rows = []
    for split, values in task["splits"].items():
        for measure in ("characters", "words", "tokens", "targets"):
            if values.get(measure):
                d = values[measure]
                rows.append([split, measure, *(_number(d[key]) for key in head[2:])])
    return head, rows


def _cut(task: dict[str, Any], max_length: int) -> list[str]:
    sentences = []
    for split, values in task["splits"].items():
        cut = values.get("truncated")
        if cut and cut["examples"]:
            examples = f"{cut['examples']:,} of {values['rows']:,} examples ({cut['share']:.1%})"
            beyond = f"{cut['tokens_cut']:,} ({cut['share_of_tokens']:.1%} of all)"
            sentences.append(
                f"{split}: {examples} have more than {max_length:,} tokens; beyond lie {beyond}."
            )
    return sentences


def _labels(task: dict[str, Any]) -> Grid:
    names = sorted({label for split in task["splits"].values() for label in split.get("labels", {})})
    rows = []
    for name in names:
        cells = []
        for split in SPLITS:
            labels = task["splits"][split]["labels"]
            count = labels.get(name, 0)
            cells.append(f"{count:,} ({count / max(1, sum(labels.values())):.1%})")
        rows.append([name, *cells])
    return ["label", *SPLITS], rows


def _findings(task: dict[str, Any]) -> Iterable[tuple[str, list[str]]]:
    """(heading, examples) for everything found in a task."""
    if task["dropped"]:
        counts = [f"{count:,} {reason}" for reason, count in task["dropped"].items()]
        yield "Left out by preparation: " + "; ".join(counts), task["dropped_examples"]
    for leak in task["leaks"]:
        if leak["exact"] or leak["near"]:
            title = f"{leak['from']} repeats {leak['to']}: {leak['exact']:,} exactly, {leak['near']:,} nearly"
            yield title, [_match(example) for example in leak["examples"]]
    for split, values in task["splits"].items():
        found = values["duplicates"]
        if found["exact"] or found["near"]:
            lines = [
                f"{' = '.join(pair['ids'])} ({pair['similarity']:.2f}): {pair['text']}"
                for pair in found["examples"]
            ]
            within = found["near_looked_for_in"]
            limit = f" (near ones among the first {within:,} rows)" if within < values["rows"] else ""
            yield f"Repeated in {split}: {found['exact']:,} exactly, {found['near']:,} nearly{limit}", lines
        found = values["conflicts"]
        if found["texts"]:
            lines = [
                ", ".join(
                    f"{id} → {target}" for id, target in zip(example["ids"], example["targets"], strict=True)
                )
                + f": {example['text']}"
                for example in found["examples"]
            ]
            yield f"Texts with several targets in {split}: {found['texts']:,}", lines
        found = values["encoding"]
        if found["repairable"] or found["lost"]:
            lines = [
                f"{example['id']} ({example['problem']}): {example['text']}" for example in found["examples"]
            ]
            yield (
                (
                    f"Damaged characters in {split}: {found['repairable']:,} records that "
                    f"data.repair_encoding would repair, {found['lost']:,} with characters lost for good"
                ),
                lines,
            )


def _match(example: dict[str, Any]) -> str:
    how = "exact" if example["exact"] else f"{example['similarity']:.2f}"
    return f"{example['id']} = {example['test_id']} ({how}): {example['text']}"


def _crossings(report: dict[str, Any]) -> Iterable[tuple[str, list[str]]]:
    for row in report["across"]["train"]:
        for name, found in row["found"].items():
            title = f"{row['task']} ({row['dataset']}) repeats {name}: {found['exact']:,} + {found['near']:,}"
            yield title, [_match(example) for example in found["examples"]]


def _number(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() or abs(value) >= 100 else f"{value:,.2f}"


# Markdown -------------------------------------------------------------------------------------------


def markdown(report: dict[str, Any]) -> str:
    """The report as Markdown: the figures, and examples by id and beginning of the text."""
    lines = [f"# Data quality: {cell(report['data'])}", "", "## Leaks", ""]
    lines += [f"- {cell(sentence)}" for sentence in leaks(report)] or ["None."]
    lines += ["", "## Overview", "", *_table(*_overview(report)), "", _OVERVIEW.format(**report), ""]
    lines += ["## Across datasets", "", *_table(*_matrix(report)), "", _MATRIX.format(**report), ""]
    for title, examples in _crossings(report):
        lines += [f"### {title}", "", *(f"- {cell(example)}" for example in examples), ""]
    for name, task in report["tasks"].items():
        lines += [
            f"## {name}: {cell(task['dataset'])}",
            "",
            f"Licence: {cell(task['licence'])}. Home: {cell(task['source'])}",
            "",
        ]
        if "labels" in task["splits"]["train"]:
            lines += [*_table(*_labels(task)), ""]
        lines += [*_table(*_lengths(task)), ""]
        lines += [f"- {cell(sentence)}" for sentence in _cut(task, report["max_length"])]
        for title, examples in _findings(task):
            lines += ["", f"### {title}", "", *(f"- {cell(example)}" for example in examples)]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    body = [" | ".join(map(cell, row)) for row in rows]
    return [f"| {' | '.join(map(cell, head))} |", "|---" * len(head) + "|", *(f"| {row} |" for row in body)]


# HTML -----------------------------------------------------------------------------------------------


def html(report: dict[str, Any]) -> str:
    """The report as one page."""
    tasks = report["tasks"]
    return make_page(
        "quality.html",
        f"Data quality: {report['data']}",
        [("leaks", "Leaks"), ("overview", "Overview"), ("across", "Across datasets")]
        + [(f"task-{i}", name) for i, name in enumerate(tasks, 1)],
        report=report,
        leaks=leaks(report),
        overview=_overview(report),
        overview_note=_OVERVIEW.format(**report),
        matrix=_matrix(report),
        matrix_note=_MATRIX.format(**report),
        crossings=list(_crossings(report)),
        plots={name: list(_plots(task, report["max_length"])) for name, task in tasks.items()},
        cut={name: _cut(task, report["max_length"]) for name, task in tasks.items()},
        labels={name: _labels(task) for name, task in tasks.items() if "labels" in task["splits"]["train"]},
        lengths={name: _lengths(task) for name, task in tasks.items()},
        findings={name: list(_findings(task)) for name, task in tasks.items()},
    )


def _plots(task: dict[str, Any], max_length: int) -> Iterable[tuple[Markup, str]]:
    """(histogram, caption) of each distribution of the training split."""
    train = task["splits"]["train"]
    for key, unit, limit in (
        ("targets", "target", None),
        ("tokens", "tokens of prompt and answer", max_length),
        ("words", "words of the text", None),
    ):
        if found := train.get(key):
            counts, edges = found["histogram"]["counts"], found["histogram"]["edges"]
            beyond = (
                f" The last bar holds all from {_number(edges[-2])} on." if found["max"] >= edges[-1] else ""
            )
            caption = f"Train: {unit}, median {_number(found['median'])}.{beyond}"
            yield plots.histogram(counts, edges, unit, limit), caption


def write(folder: str | Path, report: dict[str, Any]) -> list[Path]:
    """Write `quality.json`, `quality.md` and `quality.html` into a folder; return their paths."""
    folder = Path(folder)
    return [
        write_json(folder / "quality.json", report),
        atomic_write(folder / "quality.md", markdown(report)),
        atomic_write(folder / "quality.html", html(report)),
    ]
