"""News about a stock in, the next trading day's price change in percent out."""

from fintune.tasks.kinds import RegressionTask

TASK = RegressionTask(
    name="regression",
    instruction=(
        "Predict the stock's price change on the next trading day from the news, in percent. "
        "Answer with a signed number."
    ),
    unit="%",
)
