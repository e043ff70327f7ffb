"""Describes measures in results: the title, and which direction is better.

Results describe each of their measures. For older files, and for figures published elsewhere, the measures
of the known task types are used.
"""

from __future__ import annotations

import functools
from typing import Literal

from pydantic import BaseModel, ConfigDict

from fintune.metrics.measure import Measure
from fintune.tasks.types import task_type, type_names

Better = Literal["higher", "lower", "neither"]


class MeasureInfo(BaseModel):
    """A task's measure: its key in `metrics` and how reports show it."""

    model_config = ConfigDict(extra="allow")

    name: str
    title: str
    better: Better
    """`neither`: the figure alone says nothing, such as the width of an interval."""
    columns: list[str] = []
    """The keys of `scores` in the predictions file from which it is computed."""

    @property
    def heading(self) -> str:
        """The title in a table; an arrow marks a measure for which smaller is better."""
        return self.title + (" ↓" if self.better == "lower" else "")

    def improves(self, difference: float | None) -> bool | None:
        """Whether a difference (new - old) is an improvement; None if there is none or neither is better."""
        if not difference or self.better == "neither":
            return None
        return (difference > 0) == (self.better == "higher")


_ELSEWHERE = {
    "bertscore_f1": MeasureInfo(name="bertscore_f1", title="BERTScore", better="higher"),
    "error_rate": MeasureInfo(name="error_rate", title="error rate", better="lower"),
    "execution_accuracy": MeasureInfo(name="execution_accuracy", title="execution accuracy", better="higher"),
    "f1_as_published": MeasureInfo(name="f1_as_published", title="F1 (as published)", better="higher"),
}
"""Measures of no task type: of an encoder, of error slices, of published figures."""


@functools.cache
def _measures() -> dict[str, MeasureInfo]:
    """Every measure of the known task types, by name."""
    kinds = (task_type(name) for name in type_names())
    return {m.name: info_of(m) for kind in kinds if kind for m in kind.measures} | _ELSEWHERE


def info_of(measure: Measure) -> MeasureInfo:
    """The description of a measure for results."""
    return MeasureInfo(
        name=measure.name, title=measure.title, better=measure.better, columns=list(measure.kept)
    )


def known_measure(name: str) -> MeasureInfo:
    """A measure that results name but do not describe; an unknown one is titled by its name, and larger is
    better."""
    return _measures().get(name) or MeasureInfo(name=name, title=name, better="higher", columns=[name])


def column_measure(column: str) -> MeasureInfo:
    """The measure that a column of `scores` belongs to."""
    found = (info for info in _measures().values() if info.columns == [column])
    return next(found, None) or known_measure(column)


def ranking_column(kind: str) -> str | None:
    """The column of `scores` that ranks a task type's answers; None for an unknown type."""
    known = task_type(kind)
    ranking = known.stand_in("").ranking if known else None
    return ranking.column if ranking else None
