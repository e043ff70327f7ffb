"""Renders predictions as HTML: the parts of the page that Gradio has no component for.

All text from a model or a user is escaped here. Knows neither Gradio nor the engine.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from fintune.errors import FintuneError
from fintune.inference.documents import NOT_FOUND, DocumentAnswer, Source
from fintune.inference.grounding import Span, answer_spans, bullet_sources
from fintune.reports import plots
from fintune.tasks.base import Prediction, Record, Task
from fintune.text.numbers import unsupported_figures
from fintune.text.sentences import bullet_lines, without_bullet

logger = logging.getLogger(__name__)

FRAME_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
"""What a report in a frame may load: nothing from elsewhere."""


UNEXPECTED = "Something unexpected went wrong; the terminal that runs the demo has the details."


# Sentences ------------------------------------------------------------------------------------------


def notice(sentence: str) -> str:
    """A sentence that the reader should not miss."""
    return f'<div class="ft-notice" role="note">{escape(sentence)}</div>'


def remark(sentence: str) -> str:
    """A sentence that explains what is shown."""
    return f'<div class="ft-notice ft-remark" role="status">{escape(sentence)}</div>'


def failure(sentence: str) -> str:
    """Why there is no answer."""
    return f'<div class="ft-notice ft-failure" role="alert">{escape(sentence)}</div>'


def unanswered(error: Exception, log: str) -> str:
    """Why there is no answer, while the error is handled; one that nobody expected goes to the log."""
    if isinstance(error, FintuneError):
        return failure(error.plain)
    logger.exception(log)
    return failure(UNEXPECTED)


def empty(sentence: str) -> str:
    """The placeholder for an answer."""
    return f'<div class="ft-card ft-empty">{escape(sentence)}</div>'


def missing(sentence: str, command: str = "") -> str:
    """What a tab shows when it has no content yet, and the command that changes that."""
    code = f"<p><code>{escape(command)}</code></p>" if command else ""
    return f'<div class="ft-card ft-empty ft-missing"><p>{escape(sentence)}</p>{code}</div>'


def progress(done: int, total: int, failed: int, seconds_left: float | None) -> str:
    """A batch's progress."""
    whole = f"All {total:,} rows are done" if total > 1 else "The row is done"
    text = f"{done:,} of {total:,} rows" if done < total else whole
    if failed:
        text += f", {failed:,} without an answer"
    if seconds_left is not None and done < total:
        text += f", about {max(1, round(seconds_left)):,} s left"
    bar = f'<progress max="{total}" value="{done}" aria-label="rows done"></progress>'
    return f'<div class="ft-progress" role="status">{bar}<p>{escape(text)}.</p></div>'


# Answers --------------------------------------------------------------------------------------------


def answer(task: Task, record: Record, prediction: Prediction) -> str:
    """The answer to a record, as its task shows it."""
    if task.numeric:
        return number_answer(task, prediction)
    if task.decoding == "candidates":
        return label_answer(prediction)
    if task.grounded == "bullets":
        return summary_answer(task.name, record.text, str(prediction.value))
    if task.grounded == "passage":
        return passage_answer(record.text, str(prediction.value))
    return text_answer(str(prediction.value))


def label_answer(prediction: Prediction) -> str:
    """The label in large type, and a bar for each label's probability."""
    label = escape(str(prediction.value))
    html = f'<div class="ft-number">{label}</div>'
    if prediction.probabilities:
        rows = "".join(
            f"<li{' class=ft-best' if name == prediction.value else ''}><span>{escape(name)}</span>"
            f'<i><b style="width:{100 * share:.1f}%"></b></i><em>{share:.0%}</em></li>'
            for name, share in sorted(prediction.probabilities.items(), key=lambda item: -item[1])
        )
        html += f'<ul class="ft-bars">{rows}</ul>'
    return f'<div class="ft-card ft-answer">{html}</div>'


def text_answer(text: str) -> str:
    """A text as generated; lines that begin with a dash become bullet points."""
    parts: list[str] = []
    for line in filter(None, (line.strip() for line in text.splitlines())):
        point = without_bullet(line)
        if point in ("", line):
            parts.append(f"<p>{escape(line)}</p>")
        elif parts and parts[-1].endswith("</ul>"):
            parts[-1] = f"{parts[-1].removesuffix('</ul>')}<li>{escape(point)}</li></ul>"
        else:
            parts.append(f"<ul><li>{escape(point)}</li></ul>")
    if not parts:
        return empty("The model gave an empty answer.")
    return f'<div class="ft-card ft-answer">{"".join(parts)}</div>'


def summary_answer(name: str, text: str, summary: str) -> str:
    """Numbered bullets with warnings of figures missing in the transcript, beside the marked transcript."""
    lines = bullet_lines(summary)
    if not lines:
        return empty("The model gave an empty answer.")
    sources = bullet_sources(text, lines)
    items, marks = [], []
    for i, (line, spans) in enumerate(zip(lines, sources, strict=True), 1):
        marks += [(span, str(i)) for span in spans]
        link = f'<a href="#ft-{escape(name)}-{i}">source</a>' if spans else "<span>no source found</span>"
        items.append(f"<li>{escape(line)} {link}{_unsupported(line, text)}</li>")
    passage = marked(text, marks, f"ft-{name}")
    return (
        '<div class="ft-card ft-answer ft-beside"><div><h4>Summary</h4>'
        f"<ol>{''.join(items)}</ol></div>"
        f'<div><h4>Transcript</h4><div class="ft-passage" tabindex="0">{passage}</div></div></div>'
    )


def passage_answer(text: str, said: str) -> str:
    """The answer, and its passage with the answer marked in it."""
    if not said.strip():
        return empty("The model gave an empty answer.")
    spans = answer_spans(text, said)
    if not spans:
        where = "The passage does not have the words of this answer."
    elif len(spans) == 1 and spans[0][1] - spans[0][0] >= len(said.strip(" .\n")) * 0.8:
        where = "Where the answer stands:"
    else:
        where = "The parts of the answer that stand in the passage:"
    passage = marked(text, [(span, "") for span in spans])
    after = f'{_unsupported(said, text)}<h4>{where}</h4><div class="ft-passage" tabindex="0">{passage}</div>'
    return f'<div class="ft-card ft-answer"><p class="ft-said">{escape(said.strip())}</p>{after}</div>'


def document_answer(task: Task, given: DocumentAnswer) -> str:
    """An answer from documents: each source's place and passage, and how much was read."""
    extent = " ".join([given.extent, *(document.left_out for document in given.asked.documents)])
    if given.prediction is None:
        said = f'<p class="ft-said">{escape(NOT_FOUND.capitalize())}.</p>'
        return f'<div class="ft-card ft-answer">{said}<p class="ft-quiet">{escape(extent)}</p></div>'
    said = str(given.prediction.value)
    if task.grounded == "bullets":
        lines = bullet_lines(said)
        items = []
        for number, line in enumerate(lines, 1):
            own = [source for source in given.sources if source.bullet == number]
            items.append(f"<li>{escape(line)}{_unsupported(line, given.text)}{_sources(own)}</li>")
        body = f"<ol>{''.join(items)}</ol>"
    else:
        body = f'<p class="ft-said">{escape(said.strip())}</p>{_unsupported(said, given.text)}'
        if not any(source.spans for source in given.sources):
            body += "<p>The passages that were read do not have the words of this answer.</p>"
        body += _sources(given.sources)
    if not said.strip():
        return empty("The model gave an empty answer.")
    return f'<div class="ft-card ft-answer">{body}<p class="ft-quiet">{escape(extent)}</p></div>'


def _sources(sources: Sequence[Source]) -> str:
    """The places of passages, and the passages with the used parts marked."""
    return "".join(
        f'<h4>{escape(source.passage.place)}</h4><div class="ft-passage" tabindex="0">'
        f"{marked(source.passage.text, [(span, '') for span in source.spans])}</div>"
        for source in sources
    )


def _unsupported(said: str, text: str) -> str:
    """A warning of figures in an answer that the text does not have; "" if there are none."""
    wrong = list(dict.fromkeys(f"{figure.figure:g}" for figure in unsupported_figures(said, text)))
    return f'<small class="ft-warning">not in the text: {escape(", ".join(wrong))}</small>' if wrong else ""


def marked(text: str, marks: Sequence[tuple[Span, str]], anchor: str = "") -> str:
    """A text with marked spans; a labelled mark shows its label, and each label's first mark has an id.

    A span with several labels becomes one mark with all of them; one that begins inside another is skipped.
    """
    labels: dict[Span, list[str]] = {}
    for span, label in sorted(marks):
        labels.setdefault(span, []).append(label)
    html, place, seen = [], 0, set()
    for (start, end), names in labels.items():
        if start < place:
            continue
        html.append(escape(text[place:start]))
        for label in names:
            if anchor and label and label not in seen:
                seen.add(label)
                html.append(f'<span id="{escape(f"{anchor}-{label}")}"></span>')
        number = "".join(f"<sup>{escape(label)}</sup>" for label in names if label)
        html.append(f"<mark>{number}{escape(text[start:end])}</mark>")
        place = end
    return "".join(html) + escape(text[place:])


# Numbers --------------------------------------------------------------------------------------------


def number(value: float, unit: str) -> str:
    """A predicted number with its unit; a percentage has a sign, because it is a change."""
    value = round(value, 2) or 0.0  # never -0
    return f"{value:+.2f} %" if unit == "%" and value else f"{value:.2f} {unit}".rstrip()


def number_answer(task: Task, prediction: Prediction) -> str:
    """The expected number, with its interval and the levels' probabilities on one scale."""
    unit = getattr(task, "unit", "")
    value = number(float(prediction.value), unit)
    what = "change in price on the next trading day" if task.name == "regression" else "value"
    html = f'<div class="ft-number">{escape(value)}</div><p>Expected {what}: {escape(value)}.'
    interval = prediction.interval
    if interval is None or not prediction.probabilities:
        return f'<div class="ft-card ft-answer">{html}</p></div>'
    low, high = (number(bound, unit) for bound in interval)
    where = f"at {low}" if low == high else f"between {low} and {high}"
    html += f" The model puts 80 % of its probability {escape(where)}.</p>"
    levels = {float(level): share for level, share in prediction.probabilities.items()}
    picture = plots.distribution(levels, float(prediction.value), interval, unit)
    caption = (
        f"Each bar is one of the {len(levels)} levels the model can choose; its area is the level's "
        "probability. The shaded band holds 80 % of it, and the line with the dot is the expected value."
    )
    return f'<div class="ft-card ft-answer">{html}{picture}<p class="ft-quiet">{caption}</p></div>'


HINT = '<p class="ft-hint">Scroll sideways to see the whole table.</p>'
"""On top of a table's box; the style shows it if the table is wider than the box."""


# Files ----------------------------------------------------------------------------------------------


LONGEST_CELL = 160
"""Characters of a cell that a table shows."""


class Html(str):
    """Our own markup with foreign text escaped: a cell that is shown unchanged."""


def table(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[str], names: Mapping[str, str] | None = None
) -> str:
    """Rows as a table; a long cell is shortened, with the full text as its tooltip."""
    head = "".join(
        f"<th{_right(rows, name)}>{escape((names or {}).get(name, name.replace('_', ' ')))}</th>"
        for name in columns
    )
    body = "".join(f"<tr>{''.join(_cell(row.get(name)) for name in columns)}</tr>" for row in rows)
    inner = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="ft-scroll" tabindex="0">{HINT}{inner}</div>'


def _right(rows: Sequence[Mapping[str, Any]], name: str) -> str:
    """The CSS class for the header of a column of numbers."""
    first = next((row[name] for row in rows if row.get(name) is not None), None)
    return " class=ft-n" if isinstance(first, int | float) and not isinstance(first, bool) else ""


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f'<td class="ft-n">{value:.3f}</td>'
    if isinstance(value, int) and not isinstance(value, bool):
        return f'<td class="ft-n">{value:,}</td>'
    if isinstance(value, Html):
        return f'<td class="ft-long">{value}</td>'
    text = "" if value is None else str(value)
    if len(text) <= LONGEST_CELL:
        return f"<td{' class=ft-long' if len(text) > 32 else ''}>{escape(text)}</td>"
    return f'<td class="ft-long" title="{escape(text)}">{escape(text[:LONGEST_CELL].rstrip())} …</td>'


def frame(page: str, title: str) -> str:
    """A complete HTML page in a frame that can reach neither this page nor a network.

    The policy stands before everything else: a browser's parser creates the `<head>` at the first tag, and
    nothing before it can run. The surrounding page's policy (`origins.OwnPagesOnly`) keeps the frame from
    showing another page.
    """
    # Links within the page resolve against the base; a srcdoc's default is this page's address.
    head = f'<meta http-equiv="Content-Security-Policy" content="{FRAME_POLICY}"><base href="about:srcdoc">'
    held = f"<!doctype html>{head}{page}"
    return (
        f'<iframe class="ft-frame" title="{escape(title)}" sandbox="allow-scripts" '
        f'referrerpolicy="no-referrer" srcdoc="{escape(held)}"></iframe>'
    )


def markdown(text: str) -> str:
    """Markdown as HTML without front matter; its own tags are shown as text, and images never load."""
    from markdown_it import MarkdownIt

    if text.startswith("---\n"):
        text = text.partition("\n---\n")[2] or text
    text = "\n".join(line for line in text.splitlines() if not line.startswith("<!--"))
    parser = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")
    html = parser.render(text).replace("<a href=", '<a target="_blank" rel="noopener noreferrer" href=')
    html = html.replace("<table>", f'<div class="ft-scroll" tabindex="0">{HINT}<table>').replace(
        "</table>", "</table></div>"
    )
    return f'<div class="ft-markdown">{html}</div>'
