"""Defines results.json and the predictions file: `evaluate` writes them, everything else reads them.

`docs/evaluation.md` explains the keys. Adding a key keeps the version; renaming or removing one, or changing
its meaning, changes it. Reports, comparisons and uploads take these objects, never dicts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from fintune.errors import DataError
from fintune.evaluation.measure_info import MeasureInfo, column_measure, known_measure, ranking_column
from fintune.files import read_json, write_json, write_jsonl

FORMAT = 2
"""The version of results.json."""

Interval = tuple[float, float]


class _Part(BaseModel):
    model_config = ConfigDict(extra="allow", protected_namespaces=())


class Bin(_Part):
    """A group of answers with similar probability."""

    n: int
    confidence: float
    accuracy: float


class Point(_Part):
    """A point of the risk–coverage curve."""

    coverage: float
    n: int
    accuracy: float
    threshold: float
    """The lowest confidence kept."""


class Strategy(_Part):
    """What trading on the forecasts would have earned, summed by trading day, in percent."""

    label: str
    cost_bps: float
    """Cost of a trade in basis points."""
    days: int
    """With a trade."""
    dates: list[str] = []
    gross: list[float]
    """Before costs."""
    net: list[float]
    """After costs."""
    mean_net: float | None = None
    """Per day, over the days with a trade."""
    mean_net_interval: Interval | None = None


class Details(_Part):
    """Figures of a system beyond single numbers; see `scores.details_of`."""

    per_class: dict[str, dict[str, float]] = {}
    reliability: list[Bin] = []
    risk_coverage: list[Point] = []
    by_kind: dict[str, dict[str, float | None]] = {}
    strategy: Strategy | None = None


class System(_Part):
    """One system on one task."""

    name: str
    n: int
    """Examples it answered."""
    metrics: dict[str, float | None]
    """None if a metric is not defined."""
    metrics_interval: dict[str, Interval] = {}
    """95 %, bootstrap."""
    adapter_metrics: dict[str, float | None] = {}
    """If the base answered fewer examples: the adapter's metrics on the same ones."""
    details: Details = Details()
    seconds: float
    examples_per_second: float


class Neighbour(_Part):
    """A training example similar to another example."""

    id: str
    similarity: float
    """TF-IDF cosine in [0, 1]."""
    target: str | float
    question: str | None = None
    text: str


class Numbers(_Part):
    """Wrong numbers in a summary."""

    unfaithful: list[str] = []
    """In the summary but not in the text."""
    missing: list[str] = []
    """In the expected summary but not in this one."""


class Example(Numbers):
    """An example with its answer and its confidence or error."""

    id: str
    text: str
    question: str | None = None
    target: str | float
    prediction: str | float
    mistake: str
    confidence: float | None = None
    """For labels the confidence; for other answers the task's first measure."""
    absolute_error: float | None = None
    f1: float | None = None
    rougeL: float | None = None
    nearest: list[Neighbour] = []


class Disagreement(Example):
    """The model is as sure of another label as it usually is of that one."""

    gap: float
    """The answer's probability minus that of the label in the data."""
    neighbours_agree: tuple[int, int]
    """Nearest training examples with the answered label, and how many were searched."""


class Copy(Example):
    """A nearly identical training text has another label."""

    near_copy: Neighbour


class Slice(_Part):
    """Errors among the examples that share a trait."""

    trait: str
    value: str
    n: int
    errors: int
    rate: float
    interval: Interval
    """95 %, Wilson."""
    mean: float
    """The mean of the task's `measure`."""


class Confusion(_Part):
    """Counts: rows are targets, columns predictions."""

    labels: list[str]
    matrix: list[list[int]]


class LabelNoise(_Part):
    """Labels in the data that may be wrong, for a person to check."""

    confident: list[Disagreement]
    near_copies: list[Copy]
    found: dict[str, int] = {}
    """How many there are of each sort; the lists hold only the first `label_noise.CANDIDATES`."""


class Errors(_Part):
    """The error analysis of the model's own system; empty for a task type without measures."""

    measure: str = ""
    error_means: str = ""
    mistakes: dict[str, int] = {}
    slices: list[Slice] = []
    worst: list[Example] = []
    confusion: Confusion | None = None
    label_noise: LabelNoise | None = None
    largest: dict[str, list[Example]] = {}
    numbers: dict[str, int] = {}


class TaskData(_Part):
    """Where the examples come from."""

    licence: str = ""
    home: str = ""
    counts: dict[str, int] = {}
    dropped: dict[str, int] = {}


class Clusters(_Part):
    """The units that the intervals resample."""

    by: Literal["example", "group", "date"]
    n: int


class TaskResult(_Part):
    """One task; if it was not evaluated, `skipped` has the reason and there are no figures."""

    type: str
    headline_metrics: list[str]
    dataset: str = ""
    data: TaskData = TaskData()
    skipped: str | None = None
    measures: list[MeasureInfo] = []
    """Title and direction of each measure; [] in older files."""
    ranked_by: str | None = None
    """The column of `scores` that decides which of two answers is better."""
    labels: list[str] = []
    """The labels of a classification, in the order of the confusion matrix."""
    clusters: Clusters | None = None
    systems_skipped: dict[str, str] = {}
    """System → why it did not answer."""
    systems: dict[str, System] = {}
    errors: Errors = Errors()
    bertscore: dict[str, Any] = {}

    @property
    def own(self) -> System | None:
        """The model's own system: the adapter, or the untuned base if there is no adapter."""
        return self.systems.get("adapter") or self.systems.get("base")

    @property
    def further(self) -> dict[str, System]:
        """The systems besides the baseline, the untuned base and the adapter."""
        return {key: s for key, s in self.systems.items() if key not in ("baseline", "base", "adapter")}

    def measure(self, name: str) -> MeasureInfo:
        """A measure by its key in `metrics`."""
        return next((info for info in self.measures if info.name == name), None) or known_measure(name)

    def ranking(self) -> tuple[str, MeasureInfo] | None:
        """The column of `scores` that ranks two answers, and its measure; None if there is none."""
        column = self.ranked_by or ranking_column(self.type)
        if column is None:
            return None
        found = next((info for info in self.measures if column in (*info.columns, info.name)), None)
        return column, found or column_measure(column)


class Published(_Part):
    """A figure from elsewhere: never in one table with ours."""

    dataset: str
    """Its name in `fintune data list`."""
    system: str
    metric: str
    value: float
    """A fraction, like all shares here."""
    source: str
    differs: str
    """Why the comparison is not exact."""


class Model(_Part):
    """What answered."""

    base: str
    adapter: str | None
    """The folder of an adapter, or of a model with a merged adapter."""
    backend: str = "builtin"


class Data(_Part):
    """The prepared data that was read."""

    describes: str
    folder: str
    key: str | None
    manifest_sha256: str


class Results(_Part):
    """The whole of results.json."""

    format: int
    key: str = ""
    """What two evaluations must share for one to continue the other; see `evaluate.resume_key`."""
    fintune: str
    created: str
    git_commit: str | None = None
    """The commit of the evaluating code, with `+` for uncommitted changes; None outside git."""
    complete: bool
    """False while tasks are missing."""
    seconds: float
    model: Model
    training: dict[str, Any] = {}
    """From the adapter's manifest: its recipe, seed, commit, steps, seconds."""
    data: Data
    settings: dict[str, Any]
    versions: dict[str, str]
    machine: dict[str, Any]
    tasks: dict[str, TaskResult]
    published: list[Published] = []

    @property
    def split(self) -> str:
        """`test` or `validation`; older results are all on test examples."""
        return str(self.settings.get("split", "test"))

    def measure(self, name: str) -> MeasureInfo:
        """A measure by its key in `metrics`, as the first task that has it describes it."""
        known = (info for task in self.tasks.values() for info in task.measures if info.name == name)
        return next(known, None) or known_measure(name)


class Inexact(Numbers):
    """The predictions file's entry for an answer that does not exactly match the expected one."""

    rank: int
    """1 is the task's worst."""
    counts: bool | None = None
    """Whether it is an error by the task's `error_means`."""
    mistake: str
    traits: dict[str, str]
    nearest: list[Neighbour] = []


class Answer(_Part):
    """A line of the predictions file: one example and the systems' answers."""

    task: str
    id: str
    text: str
    question: str | None = None
    group: str
    time: str
    kind: str = ""
    target: str | float
    prediction: str | float
    probabilities: dict[str, float] | None = None
    interval: Interval | None = None
    token_probability: float | None = None
    scores: dict[str, float | None]
    baseline_prediction: str | float | None = None
    base_prediction: str | float | None = None
    other_predictions: dict[str, str | float] = {}
    error: Inexact | None = None


def output_files(output_file: str | Path) -> dict[str, Path]:
    """The four files of an evaluation: `results`, `report`, `page` and `predictions`."""
    path = Path(output_file)
    return {
        "results": path,
        "report": path.with_suffix(".md"),
        "page": path.with_suffix(".html"),
        "predictions": path.with_name(f"{path.stem}-predictions.jsonl"),
    }


def write(output_file: str | Path, results: Results, rows: Sequence[Answer]) -> None:
    """Write the results and the predictions file, each whole or not at all."""
    files = output_files(output_file)
    lines = [row.model_dump(mode="json", exclude_unset=True) for row in rows]
    write_jsonl(files["predictions"], lines)
    write_json(files["results"], results.model_dump(mode="json", exclude_unset=True))


def read_results(path: str | Path) -> Results:
    """Read the results that `evaluate` wrote.

    Raises:
        DataError: there are none, they have another version, or they are damaged.
    """
    raw = read_json(path)
    if not isinstance(raw, dict) or not {"format", "tasks", "model"} <= set(raw):
        raise DataError(f"{path} holds no results of `fintune evaluate`: give the file it wrote.")
    if raw["format"] != FORMAT:
        raise DataError(
            f"{path} has format {raw['format']}, but this version reads {FORMAT}: evaluate again."
        )
    try:
        return Results.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise DataError(f"{path} is damaged: {where}: {first['msg']}.") from None


def read_predictions(path: str | Path) -> list[Answer]:
    """Read the answers of a predictions file, one JSON object per line.

    Raises:
        DataError: there is no such file, or a line is not JSON or not an `Answer`.
    """
    answers: list[Answer] = []
    try:
        with Path(path).open(encoding="utf-8") as lines:
            for line in lines:
                answers.append(Answer.model_validate(json.loads(line)))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part not in ("str", "float")) or "it"
        raise DataError(
            f"{path} is damaged: line {len(answers) + 1}: {where}: {first['msg']}: evaluate again."
        ) from None
    except FileNotFoundError:
        raise DataError(f"The predictions file {path} does not exist: evaluate again.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is damaged: it is not JSON lines ({error}).") from None
    return answers
