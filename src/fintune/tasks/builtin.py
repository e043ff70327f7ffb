"""The five tasks that come with fintune."""

from fintune.tasks.base import Task
from fintune.tasks.types import ClassificationTask, QATask, RegressionTask, SummarizationTask


def builtin_tasks() -> dict[str, Task]:
    """The five tasks by name, as new objects."""
    tasks: list[Task] = [
        ClassificationTask(
            "sentiment",
            "Classify the sentiment of the financial statement from an investor's point of view. "
            "Answer with one word: positive, negative or neutral.",
            labels=("positive", "negative", "neutral"),
        ),
        ClassificationTask(
            "headline",
            "Classify the market direction that the financial headline suggests for the asset it names. "
            "Answer with one word: bullish, bearish or neutral.",
            labels=("bullish", "bearish", "neutral"),
        ),
        SummarizationTask(
            "summarization",
            "Summarize the earnings call transcript in a few short bullet points that give the key figures: "
            "earnings per share, revenue and guidance. Start each point with a dash.",
        ),
        QATask(
            "qa",
            "Answer the question about the financial report, using only the context. Be brief and exact.",
        ),
        RegressionTask(
            "regression",
            "Predict the stock's price change on the next trading day from the news, in percent. "
            "Answer with a signed number.",
            unit="%",
        ),
    ]
    return {task.name: task for task in tasks}
