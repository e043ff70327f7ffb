"""Measures what an export lost: compares its answers to held-out rows with those of its adapter.

The same engine runs both. llama.cpp computes a GGUF if its bindings are installed; otherwise Transformers
computes it in 32 bit after dequantization.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any, Literal

from fintune.config import BUILT_IN_TASKS, Recipe
from fintune.data.prepare.dataset import PreparedDataset, load_prepared, prepare
from fintune.errors import DataError
from fintune.files import write_json
from fintune.inference.engine import Engine
from fintune.models.source import Source
from fintune.tasks import Prediction, Record, Task, TaskSet
from fintune.text.answers import rouge

NAME = "export.json"
WARN = {"equal": 0.98, "rouge": 0.9, "distance": 0.02, "difference": 0.1}
REFUSE = {"equal": 0.9, "rouge": 0.5, "distance": 0.1, "difference": 0.5}
AT_LEAST = ("equal", "rouge")
"""Lower bounds; bounds on distances are upper bounds."""
Verdict = Literal["ok", "warn", "refuse"]


@dataclass(frozen=True)
class TaskAgreement:
    """One task's rows, answered by both models; figures that the task's type lacks are None."""

    task: str
    rows: int
    equal: float | None
    """Labels: the share of rows with the same answer."""
    distance: float | None
    """Probabilities: the mean absolute difference."""
    difference: float | None
    """Numbers: the mean absolute difference, in standard deviations of the adapter's answers."""
    rouge: float | None
    """Texts: mean ROUGE-L between the two."""
    identical: float | None
    """Texts: the share of rows with the same text."""
    seconds: float
    adapter_seconds: float

    @property
    def verdict(self) -> Verdict:
        return "refuse" if self._beyond(REFUSE) else "warn" if self._beyond(WARN) else "ok"

    def _beyond(self, bounds: dict[str, float]) -> bool:
        figures = {key: value for key in bounds if (value := getattr(self, key)) is not None}
        return any(
            value < bounds[key] if key in AT_LEAST else value > bounds[key] for key, value in figures.items()
        )


@dataclass(frozen=True)
class Agreement:
    """An export's tasks; `skipped` says why other tasks have no figures."""

    folder: Path
    bytes: int
    data: str
    computed_by: str
    tasks: tuple[TaskAgreement, ...]
    skipped: dict[str, str]

    @property
    def verdict(self) -> Verdict:
        found = [task.verdict for task in self.tasks]
        return "refuse" if "refuse" in found else "warn" if "warn" in found else "ok"

    def write(self) -> Path:
        tasks = [asdict(task) | {"verdict": task.verdict} for task in self.tasks]
        fields = {"bytes": self.bytes, "data": self.data, "computed_by": self.computed_by}
        bounds = {"warn": WARN, "refuse": REFUSE}
        content = {
            **fields,
            "verdict": self.verdict,
            "bounds": bounds,
            "tasks": tasks,
            "skipped": self.skipped,
        }
        return write_json(self.folder / NAME, content)


def measure(model_path: str | Path | None, folder: Path, rows: int, recipe: Recipe | None) -> Agreement:
    """Give the adapter (None: the untuned base) and its export the same rows, `rows` per task.

    Raises:
        ModelError: one of the two cannot be loaded.
    """
    source = Source.read(model_path, recipe)
    size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    with _held_out(source, rows) as (data, records, skipped):
        print(f"Comparing with {model_path or 'the untuned base'} on {data} …")
        # One after the other: two models at once would need twice the memory.
        wanted = _answers(Engine.load(model_path, recipe), records)
        engine, computed_by = exported_engine(folder)
        found = _answers(engine, records)
    tasks = tuple(
        compare(source.tasks[name], *wanted[name], *found[name]) for name in records if name in found
    )
    return Agreement(folder, size, data, computed_by, tasks, skipped)


def exported_engine(folder: Path) -> tuple[Engine, str]:
    """The engine of an export written by `fintune export`, and the name of the library that runs it here."""
    source = Source.read(folder)
    if source.kind != "gguf":
        return Engine.load(folder), "Transformers"
    if find_spec("llama_cpp"):
        return Engine.load(folder, backend="llama.cpp"), "llama.cpp"
    return Engine.load(folder), "Transformers, of the dequantized GGUF"


def _answers(engine: Engine, records: dict[str, list[Record]]) -> dict[str, tuple[list[Prediction], float]]:
    found = {}
    for name, rows in records.items():
        begun = time.perf_counter()
        answers = engine.predict(name, rows)
        found[name] = (answers, time.perf_counter() - begun)
    return found


@contextmanager
def _held_out(source: Source, rows: int) -> Iterator[tuple[str, dict[str, list[Record]], dict[str, str]]]:
    """What the rows are, each task's rows, and why a task has none: the recipe's data, else the sample."""
    names = source.tasks.names()
    try:
        prepared = load_prepared(source.recipe.data.prepared_dir)
        if not set(names) & set(prepared.manifest["tasks"]):
            raise DataError("of other tasks")
        yield _read(prepared, f"the test rows in {prepared.folder}", source.tasks, rows)
    except DataError:
        known = [name for name in names if name in BUILT_IN_TASKS]
        if not known:
            why = f"there is no prepared data in {source.recipe.data.prepared_dir}, and no sample of it"
            yield "no data", {}, dict.fromkeys(names, why)
            return
        with tempfile.TemporaryDirectory(prefix="fintune-export-") as scratch:
            sample = Recipe.model_validate(
                {
                    "multi_task": {"task_weights": dict.fromkeys(known, 1.0)},
                    "data": {
                        "prepared_dir": f"{scratch}/sample",
                        "tasks": {name: {"dataset": "sample"} for name in known},
                    },
                }
            )
            yield _read(prepare(sample, say=lambda line: None), "the built-in sample", source.tasks, rows)


def _read(
    prepared: PreparedDataset, what: str, tasks: TaskSet, rows: int
) -> tuple[str, dict[str, list[Record]], dict[str, str]]:
    records, skipped = {}, {}
    for task in tasks:
        if task.name not in prepared.manifest["tasks"]:
            skipped[task.name] = f"{what} have none for it"
        elif why := task.obstacle():
            skipped[task.name] = why
        elif found := prepared.records(task.name, "test")[:rows]:
            records[task.name] = found
        else:
            skipped[task.name] = "it has no test rows"
    return what, records, skipped


def compare(
    task: Task,
    wanted: Sequence[Prediction],
    adapter_seconds: float,
    found: Sequence[Prediction],
    seconds: float,
) -> TaskAgreement:
    """Compare two systems' answers to the same rows."""
    pairs = list(zip(wanted, found, strict=True))
    figures: dict[str, Any] = dict.fromkeys(("equal", "distance", "difference", "rouge", "identical"))
    distances = [
        abs(value - b.probabilities[label])
        for a, b in pairs
        if a.probabilities and b.probabilities
        for label, value in a.probabilities.items()
    ]
    if distances:
        figures["distance"] = fmean(distances)
    if task.numeric:
        values = [(float(a.value), float(b.value)) for a, b in pairs]
        spread = pstdev([a for a, _ in values]) or 1.0
        figures["difference"] = fmean(abs(a - b) for a, b in values) / spread
    elif task.one_of or distances:
        figures["equal"] = fmean(a.value == b.value for a, b in pairs)
    else:
        texts = [(str(a.value), str(b.value)) for a, b in pairs]
        figures["rouge"] = fmean(1.0 if a == b else rouge(a, b)["rougeL"] for a, b in texts)
        figures["identical"] = fmean(a == b for a, b in texts)
    return TaskAgreement(task.name, len(pairs), **figures, seconds=seconds, adapter_seconds=adapter_seconds)
