"""Earnings-call transcript in, bullet-point summary out."""

from fintune.tasks.kinds import SummarizationTask

TASK = SummarizationTask(
    name="summarization",
    instruction=(
        "Summarize the earnings call transcript in a few short bullet points that give the key figures: "
        "earnings per share, revenue and guidance. Start each point with a dash."
    ),
)
