"""Question about a passage of a financial report in, answer out."""

from fintune.tasks.kinds import QATask

TASK = QATask(
    name="qa",
    instruction="Answer the question about the financial report, using only the context. Be brief and exact.",
)
