"""What the page calls things, and the texts to try a task with."""

from __future__ import annotations

import logging
import textwrap
from pathlib import Path

from fintune.config import Recipe
from fintune.data.prepare.dataset import first_held_out
from fintune.errors import DataError
from fintune.models import manifest
from fintune.tasks.base import Record, Task

logger = logging.getLogger(__name__)

EXAMPLES = 3
"""Texts to try a task with."""
LOOKED_AT = 50
"""Rows of a test set among which they are chosen."""
LONGEST = 5_000
"""Characters of a text that is offered."""
ON_A_BUTTON = 220
"""Characters on a button: no text of the built-in sample but a transcript is longer."""

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
    return list(labels.values())[::-1] if task.name in ("sentiment", "headline") else records[:EXAMPLES]


def held_out(adapter: Path | None, recipe: Recipe | None, task: Task) -> list[Record]:
    """Up to three texts of the test set of a user's own task, of different labels where it has labels.

    They come from the prepared data that the adapter was trained on; [] where that is not there any more.
    """
    if adapter is None or recipe is None:
        return []
    try:
        key = manifest.read_raw(adapter).get("data", {}).get("key")
        found = first_held_out(recipe.data.prepared_dir, key, task.name, LOOKED_AT) if key else []
    except Exception:  # of a damaged file; the demo works without examples
        logger.warning("The test set of %s cannot be read", task.name, exc_info=True)
        return []
    short = [r for r in found if len(r.text) <= LONGEST and not r.turns and not task.input_problem(r)]
    by_label = {str(record.target): record for record in reversed(short)} if task.labels else {}
    chosen = {record.text: record for record in [*reversed(by_label.values()), *short]}
    return list(chosen.values())[:EXAMPLES]


def example_label(task: Task, record: Record) -> str:
    """What an example's button says: the whole of a question or a short text, else how the text begins."""
    if task.grounded == "bullets" and record.group:
        return f"A call of {record.group}"
    return textwrap.shorten(record.question or record.text, ON_A_BUTTON, placeholder=" …")
