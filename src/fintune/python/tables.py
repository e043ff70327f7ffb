"""The results of the Python API: tables, shown as HTML in a notebook and as text elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fintune.config import Recipe

if TYPE_CHECKING:
    from fintune.data.prepare.dataset import PreparedDataset
    from fintune.evaluation.results import Results
    from fintune.tasks import Prediction, Record


class _Table:
    """A result that is a table: HTML in a notebook, text elsewhere."""

    def title(self) -> str:
        raise NotImplementedError

    def notes(self) -> list[str]:
        return []

    def to_pandas(self) -> Any:
        raise NotImplementedError

    def __repr__(self) -> str:
        table = self.to_pandas().to_string(max_rows=20, max_colwidth=48, float_format="%.3f", na_rep="–")
        return "\n".join([self.title(), table, *self.notes()])

    def _repr_html_(self) -> str:
        table = self.to_pandas().to_html(max_rows=60, float_format="%.3f", na_rep="–", border=0)
        notes = "".join(f"<p>{escape(note)}</p>" for note in self.notes())
        return f"<p><b>{escape(self.title())}</b></p>{table}{notes}"


@dataclass(repr=False)
class Prepared(_Table):
    """Prepared data: one row per task, with the examples of each split and what was left out."""

    recipe: Recipe
    dataset: PreparedDataset

    def title(self) -> str:
        return f"Data in {self.dataset.folder}"

    def notes(self) -> list[str]:
        return [note for entry in self.dataset.manifest["tasks"].values() for note in entry["notes"]]

    def to_pandas(self) -> Any:
        import pandas as pd

        rows = [
            {"task": name, "dataset": entry["dataset"], **entry["counts"], "left out": entry["dropped"] or ""}
            for name, entry in self.dataset.manifest["tasks"].items()
        ]
        return pd.DataFrame(rows).set_index("task")


@dataclass(repr=False)
class Evaluation(_Table):
    """An evaluation's figures: one row per metric of each task."""

    results: Results
    path: Path
    """The path of results.json; the reports are beside it, as .html and .md."""

    def title(self) -> str:
        from fintune.reports.figures import title_of

        return title_of(self.results)

    def notes(self) -> list[str]:
        from fintune.reports.figures import notes

        return [*notes(self.results), f"Report: {self.path.with_suffix('.html')}"]

    def to_pandas(self) -> Any:
        import pandas as pd

        from fintune.reports.figures import rows_of

        rows = [
            {
                **{"task": row.task, "metric": row.measure.heading, "n": row.n},
                **{"baseline": row.baseline, "base": row.base, "fintune": row.adapter},
                **dict(zip(("low", "high"), row.interval or (None, None), strict=True)),
            }
            for row in rows_of(self.results)
        ]
        frame = pd.DataFrame(rows).set_index(["task", "metric"])
        figures = ["baseline", "base", "fintune", "low", "high"]
        return frame.astype(dict.fromkeys(figures, float))


@dataclass(repr=False)
class Predictions(_Table, Sequence["Prediction | None"]):
    """One task's answers, in the order of the texts: each has `value`, and `probabilities` (labels),
    `interval` (numbers) or `token_probability` (texts)."""

    task: str
    records: list[Record]
    answers: list[Prediction | None]
    errors: dict[int, str]
    """Index → why there is no answer; {} unless called with `errors="keep"`."""
    index: Any = None
    """The index of the Series or DataFrame with the texts."""

    def title(self) -> str:
        return f"{len(self.answers):,} answers of {self.task}"

    @property
    def values(self) -> list[str | float | None]:
        return [answer.value if answer else None for answer in self.answers]

    def __len__(self) -> int:
        return len(self.answers)

    def __getitem__(self, place: Any) -> Any:
        return self.answers[place]

    def to_pandas(self) -> Any:
        """Columns `text`, `question`, `value`, and depending on the task `p(LABEL)`, `low` and `high` of the
        central 80 %, `set_probability`, `token_probability`; `error` if there is any."""
        import pandas as pd

        rows = []
        for place, (record, answer) in enumerate(zip(self.records, self.answers, strict=True)):
            row: dict[str, Any] = {"text": record.text}
            if record.question is not None:
                row["question"] = record.question
            row["value"] = answer.value if answer else None
            if answer:
                row |= {f"p({label})": p for label, p in (answer.probabilities or {}).items()}
                row |= zip(("low", "high"), answer.interval or (), strict=False)
                more = {name: getattr(answer, name) for name in ("set_probability", "token_probability")}
                row |= {name: value for name, value in more.items() if value is not None}
            else:
                row["error"] = self.errors[place]
            rows.append(row)
        columns = None if rows else ["text", "value"]
        return pd.DataFrame(rows, index=self.index, columns=columns)
