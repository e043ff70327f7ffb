"""The quality report as Markdown, and as one HTML file that needs no network and no script."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from fintune.data.quality.measured import leaks
from fintune.files import atomic_write, write_json

SPLITS = ("train", "validation", "test")


# What both show -------------------------------------------------------------------------------------


def _overview(report: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
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


def _matrix(report: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
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


def _lengths(task: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
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


def _labels(task: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
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
    """(a heading, its examples) for all that was found in a task."""
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
    """The report as Markdown: the figures, and the examples by id and beginning."""
    lines = [f"# Data quality: {report['data']}", "", "## Leaks", ""]
    lines += [f"- {sentence}" for sentence in leaks(report)] or ["None."]
    lines += ["", "## Overview", "", *_table(*_overview(report)), "", _OVERVIEW.format(**report), ""]
    lines += ["## Across datasets", "", *_table(*_matrix(report)), "", _MATRIX.format(**report), ""]
    for title, examples in _crossings(report):
        lines += [f"### {title}", "", *(f"- {_line(example)}" for example in examples), ""]
    for name, task in report["tasks"].items():
        lines += [
            f"## {name}: {task['dataset']}",
            "",
            f"Licence: {task['licence']}. Home: {task['source']}",
            "",
        ]
        if task["type"] == "classification":
            lines += [*_table(*_labels(task)), ""]
        lines += [*_table(*_lengths(task)), ""]
        lines += [f"- {sentence}" for sentence in _cut(task, report["max_length"])]
        for title, examples in _findings(task):
            lines += ["", f"### {title}", "", *(f"- {_line(example)}" for example in examples)]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    body = [" | ".join(cell.replace("|", "\\|") for cell in row) for row in rows]
    return [f"| {' | '.join(head)} |", "|---" * len(head) + "|", *(f"| {row} |" for row in body)]


def _line(text: str) -> str:
    """Text of a dataset that shall not act as Markdown or HTML."""
    for sign in "\\`*_[]<>|#":
        text = text.replace(sign, f"\\{sign}")
    return text


# HTML -----------------------------------------------------------------------------------------------

_STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #fff; --ink: #1c2430; --soft: #5b6675;
  --line: #dfe3e8; --bar: #3b6fd4; --warn: #9a5b00; --warn-page: #fff4e0; --good: #17693a;
  --good-page: #e6f5ec; }
@media (prefers-color-scheme: dark) { :root { --page: #12161c; --card: #1b212a; --ink: #e6eaf0;
  --soft: #9aa6b5; --line: #303945; --bar: #7aa5ff; --warn: #ffc46b; --warn-page: #33270f; --good: #7fd6a2;
  --good-page: #12301f; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1080px; padding: 24px 16px 64px; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 4px; } h2 { font-size: 1.2rem; margin: 0 0 12px; }
p { margin: 8px 0; }
h1, h2, p, summary { overflow-wrap: anywhere; } .soft { color: var(--soft); font-size: .875rem; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 18px;
  margin-top: 18px; }
.warn { background: var(--warn-page); } .warn h2 { color: var(--warn); }
.good { background: var(--good-page); } .good h2 { color: var(--good); margin: 0; }
.wide { overflow-x: auto; } ul { margin: 6px 0; padding-left: 20px; } li { overflow-wrap: anywhere; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; min-width: 100%; }
th, td { padding: 6px 10px; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th { color: var(--soft); font-weight: 600; vertical-align: bottom; } th, .left { white-space: normal; }
th:first-child, td:first-child, .left { text-align: left; }
td.hit { background: var(--warn-page); color: var(--warn); font-weight: 600; }
details { border-top: 1px solid var(--line); padding: 8px 0; } summary { cursor: pointer; }
details li { font-size: .875rem; } .plots { display: grid; gap: 16px; margin: 14px 0;
  grid-template-columns: repeat(auto-fill, minmax(280px, 1fr)); }
figure { margin: 0; min-width: 0; } figcaption { font-size: .875rem; color: var(--soft); margin-bottom: 4px; }
svg { display: block; width: 100%; height: auto; } svg rect { fill: var(--bar); }
svg text { fill: var(--soft); font: 12px system-ui, sans-serif; }
svg .axis { stroke: var(--line); } svg .limit { stroke: var(--warn); stroke-dasharray: 4 3; }
svg .limit-text { fill: var(--warn); }
"""


def html(report: dict[str, Any]) -> str:
    """The report as one page: plots as inline SVG, light or dark as the reader's system is."""
    found = leaks(report)
    body = [f"<h1>Data quality: {escape(report['data'])}</h1>"]
    body.append(f'<p class="soft">fintune {escape(report["fintune"])}, data {escape(report["key"][:12])}</p>')
    if found:
        items = "".join(f"<li>{escape(sentence)}</li>" for sentence in found)
        body.append(f'<section class="warn"><h2>{len(found)} kinds of leaks</h2><ul>{items}</ul></section>')
    else:
        body.append('<section class="good"><h2>No leaks found</h2></section>')
    head, rows = _overview(report)
    body.append(_section("Overview", _grid(head, rows, left=3), _OVERVIEW.format(**report)))
    crossings = "".join(_details(title, examples) for title, examples in _crossings(report))
    head, rows = _matrix(report)
    matrix = _grid(head, rows, mark=True)
    body.append(_section("Across datasets", matrix, _MATRIX.format(**report), crossings))
    for name, task in report["tasks"].items():
        body.append(_task(name, task, report["max_length"]))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Data quality</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def _section(title: str, content: str, note: str = "", after: str = "") -> str:
    soft = f'<p class="soft">{escape(note)}</p>' if note else ""
    return f"<section><h2>{escape(title)}</h2>{content}{soft}{after}</section>"


def _task(name: str, task: dict[str, Any], max_length: int) -> str:
    train = task["splits"]["train"]
    plots = []
    if task["type"] == "classification":
        plots.append(_bars("Labels of train", train["labels"]))
    elif train.get("targets"):
        plots.append(_histogram("Targets of train", train["targets"]))
    if train.get("tokens"):
        plots.append(_histogram("Tokens of prompt and answer, train", train["tokens"], max_length))
    plots.append(_histogram("Words of the text, train", train["words"]))
    parts = [f'<p class="soft">Licence: {escape(task["licence"])}. Home: {escape(task["source"])}</p>']
    parts.append(f'<div class="plots">{"".join(plots)}</div>')
    if sentences := _cut(task, max_length):
        parts.append(f"<ul>{''.join(f'<li>{escape(sentence)}</li>' for sentence in sentences)}</ul>")
    if task["type"] == "classification":
        parts.append(_grid(*_labels(task)))
    tables = _details("Lengths", [], _grid(*_lengths(task), left=2))
    parts.append(tables + "".join(_details(title, examples) for title, examples in _findings(task)))
    return _section(f"{name}: {task['dataset']}", "".join(parts))


def _grid(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1, mark: bool = False) -> str:
    def cell(tag: str, i: int, text: str) -> str:
        kind = "left" if i < left else "hit" if mark and tag == "td" and text != "0" else ""
        content = escape(text).replace("_", "_<wbr>")  # a long name may break there
        return f"<{tag}{f' class={kind}' if kind else ''}>{content}</{tag}>"

    def row(tag: str, cells: Sequence[str]) -> str:
        return f"<tr>{''.join(cell(tag, i, text) for i, text in enumerate(cells))}</tr>"

    body = "".join(row("td", cells) for cells in rows)
    return f'<div class="wide"><table><thead>{row("th", head)}</thead><tbody>{body}</tbody></table></div>'


def _details(title: str, examples: Sequence[str], content: str = "") -> str:
    items = "".join(f"<li>{escape(example)}</li>" for example in examples)
    inside = content + (f"<ul>{items}</ul>" if items else "")
    return f"<details><summary>{escape(title)}</summary>{inside}</details>"


def _bars(title: str, counts: dict[str, int]) -> str:
    """Horizontal bars, one a label, with its count and share."""
    total, top = max(1, sum(counts.values())), max(counts.values(), default=1)
    parts = []
    for i, (label, count) in enumerate(counts.items()):
        y = 8 + i * 34
        shown = label if len(label) <= 14 else f"{label[:13]}…"
        width = 120 * count / top
        parts.append(f'<text x="92" y="{y + 16}" text-anchor="end">{escape(shown)}</text>')
        parts.append(f'<rect x="98" y="{y}" width="{width:.1f}" height="24" rx="3"/>')
        parts.append(f'<text x="{104 + width:.1f}" y="{y + 16}">{count:,} ({count / total:.0%})</text>')
    return _figure(title, 320, 16 + 34 * len(counts), "".join(parts))


def _histogram(title: str, distribution: dict[str, Any], limit: float | None = None) -> str:
    """Vertical bars; the last holds all from the 99th percentile on. `limit` is drawn as a dashed line."""
    if not distribution:
        return ""
    counts, edges = distribution["histogram"]["counts"], distribution["histogram"]["edges"]
    width, height, bottom = 320, 170, 140
    top, step = max(counts), (width - 16) / len(counts)
    parts = []
    for i, count in enumerate(counts):
        tall = (bottom - 24) * count / top
        box = f'x="{8.5 + i * step:.1f}" y="{bottom - tall:.1f}" width="{step - 1:.1f}" height="{tall:.1f}"'
        parts.append(f"<rect {box}/>")
    parts.append(f'<line class="axis" x1="8" x2="{width - 8}" y1="{bottom}" y2="{bottom}"/>')
    places = (
        ("start", 8, edges[0]),
        ("middle", width / 2, (edges[0] + edges[-1]) / 2),
        ("end", width - 8, edges[-1]),
    )
    for anchor, x, value in places:
        sign = "≥ " if anchor == "end" and distribution["max"] > edges[-1] else ""
        parts.append(
            f'<text x="{x}" y="{bottom + 18}" text-anchor="{anchor}">{sign}{_rounded(value, edges)}</text>'
        )
    if limit is not None and edges[0] <= limit <= edges[-1] and edges[-1] > edges[0]:
        x = 8 + (width - 16) * (limit - edges[0]) / (edges[-1] - edges[0])
        anchor = "end" if x > width / 2 else "start"
        parts.append(f'<line class="limit" x1="{x:.1f}" x2="{x:.1f}" y1="6" y2="{bottom}"/>')
        parts.append(
            f'<text class="limit-text" x="{x + (-5 if anchor == "end" else 5):.1f}" y="14" '
            f'text-anchor="{anchor}">max_length {limit:,.0f}</text>'
        )
    return _figure(title, width, height, "".join(parts))


def _rounded(value: float, edges: Sequence[float]) -> str:
    """A value of an axis: whole where the axis is long."""
    return _number(round(value) if edges[-1] - edges[0] > 20 else value)


def _figure(title: str, width: int, height: int, content: str) -> str:
    return (
        f'<figure><figcaption>{escape(title)}</figcaption><svg viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(title)}">{content}</svg></figure>'
    )


def write(folder: str | Path, report: dict[str, Any]) -> list[Path]:
    """Write `quality.json`, `quality.md` and `quality.html` into a folder; returns their paths."""
    folder = Path(folder)
    return [
        write_json(folder / "quality.json", report),
        atomic_write(folder / "quality.md", markdown(report)),
        atomic_write(folder / "quality.html", html(report)),
    ]
