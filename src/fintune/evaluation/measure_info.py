"""What results say of a measure: its title and which direction is better.

The table here is for results files written before `tasks.T.measures` stood in them, and for figures published
elsewhere. Newer results carry the title and direction of each measure themselves.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

Better = Literal["higher", "lower", "neither"]


class MeasureInfo(BaseModel):
    """A measure of a task, as a key of `metrics` and as reports show it."""

    model_config = ConfigDict(extra="allow")

    name: str
    title: str
    better: Better
    """`neither`: the figure says nothing alone, such as the width of an interval."""
    columns: list[str] = []
    """The keys of `scores` in the predictions file that it is computed from."""

    @property
    def heading(self) -> str:
        """The title in a table; an arrow marks a measure where smaller is better."""
        return self.title + (" ↓" if self.better == "lower" else "")

    def improves(self, difference: float | None) -> bool | None:
        """Whether a difference (new - old) is an improvement; None where there is none or neither is."""
        if not difference or self.better == "neither":
            return None
        return (difference > 0) == (self.better == "higher")


_TITLES = {
    "macro_f1": "F1 (macro)",
    "weighted_f1": "F1 (weighted)",
    "f1": "F1 (tokens)",
    "exact_match": "exact match",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "bertscore_f1": "BERTScore",
    "mse": "MSE",
    "mae": "MAE",
    "r2": "R²",
    "error_rate": "error rate",
    "mcc": "MCC",
    "brier": "Brier",
    "ece": "ECE",
    "aurc": "AURC",
    "missing_rate": "missing",
    "spearman": "Spearman",
    "directional_accuracy": "direction",
    "interval_coverage": "coverage (80 %)",
    "mean_interval_width": "width (80 %)",
    "numeric_exact_match": "number match",
    "tatqa_exact_match": "TAT-QA EM",
    "tatqa_f1": "TAT-QA F1",
    "number_faithfulness": "true numbers",
    "execution_accuracy": "execution accuracy",
    "f1_as_published": "F1 (as published)",
}
_BETTER: dict[str, Better] = {
    **dict.fromkeys(("mse", "mae", "brier", "ece", "aurc", "missing_rate", "error_rate"), "lower"),
    **dict.fromkeys(("interval_coverage", "mean_interval_width"), "neither"),
}
_COLUMN_OF = {"accuracy": "correct", "mae": "absolute_error", "mse": "squared_error"}
_RANKED_BY = {
    "classification": "correct",
    "regression": "absolute_error",
    "qa": "f1",
    "summarization": "rougeL",
    "instruction": "f1",
}


def known_measure(name: str) -> MeasureInfo:
    """A measure of the table; one that it lacks has its name as title, and larger is better."""
    column = _COLUMN_OF.get(name, name)
    return MeasureInfo(
        name=name, title=_TITLES.get(name, name), better=_BETTER.get(name, "higher"), columns=[column]
    )


def column_measure(column: str) -> MeasureInfo:
    """The measure that a column of `scores` belongs to, by the table."""
    names = {own: name for name, own in _COLUMN_OF.items()}
    return known_measure(names.get(column, column))


def ranking_column(task_type: str) -> str | None:
    """The column of `scores` that ranked the answers of a built-in type; None for another type."""
    return _RANKED_BY.get(task_type)
