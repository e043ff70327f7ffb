"""Sentiment of a financial statement or news sentence: positive, negative or neutral."""

from fintune.tasks.kinds import ClassificationTask

TASK = ClassificationTask(
    name="sentiment",
    instruction=(
        "Classify the sentiment of the financial statement from an investor's point of view. "
        "Answer with one word: positive, negative or neutral."
    ),
    labels=("positive", "negative", "neutral"),
)
