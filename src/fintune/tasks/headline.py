"""Market direction that a financial headline suggests: bullish, bearish or neutral."""

from fintune.tasks.kinds import ClassificationTask

TASK = ClassificationTask(
    name="headline",
    instruction=(
        "Classify the market direction that the financial headline suggests for the asset it names. "
        "Answer with one word: bullish, bearish or neutral."
    ),
    labels=("bullish", "bearish", "neutral"),
)
