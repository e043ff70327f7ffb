"""What the page calls things, and the texts to try a task with."""

from __future__ import annotations

import textwrap

from fintune.errors import DataError
from fintune.tasks.base import Record, Task

TITLES = {
    "sentiment": "Sentiment",
    "headline": "Headline",
    "summarization": "Summary",
    "qa": "Q&A",
    "regression": "Price move",
}
ABOUT = {
    "sentiment": "Is a statement good or bad news for an investor: positive, negative or neutral?",
    "headline": "Which way does a headline point for the asset it names: bullish, bearish or neutral?",
    "summarization": "The key figures of an earnings call as a few bullet points, with the sentences they "
    "come from.",
    "qa": "A question about a passage of a financial report, answered from that passage alone.",
    "regression": "The change in a stock's price on the next trading day, in percent, as its news suggests. "
    "A research exercise, not investment advice.",
}
LABELS = {
    "sentiment": "Financial statement",
    "headline": "Headline",
    "summarization": "Earnings call transcript",
    "qa": "Passage of a report",
    "regression": "News about a stock",
}


def title(task: Task) -> str:
    """A task's name on its tab."""
    return TITLES.get(task.name, task.name.replace("_", " ").capitalize())


def examples(task: Task) -> list[Record]:
    """A few texts of our own writing to try a built-in task with: one of each label, or three."""
    from fintune.data.raw.sample import sample_records

    try:
        records = sample_records(task.name, sizes=(0, 0, 12))
    except DataError:  # a custom task
        return []
    labels = {record.target: record for record in reversed(records)}
    return list(labels.values())[::-1] if task.name in ("sentiment", "headline") else records[:3]


def example_label(task: Task, record: Record) -> str:
    """What an example's button says."""
    if task.grounded == "bullets":
        return f"A call of {record.group}"
    return textwrap.shorten(record.question or record.text, 58, placeholder=" …")
