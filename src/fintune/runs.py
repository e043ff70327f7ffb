"""The training runs on disk: found below a folder, read from what they wrote, and what may be removed."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from fintune.config import Recipe, TaskDataConfig, TextFormatConfig
from fintune.errors import ConfigError, DataError, FintuneError
from fintune.evaluation.measure_info import MeasureInfo, known_measure
from fintune.evaluation.results import TaskResult, read_results
from fintune.files import Lock, abandoned
from fintune.models import manifest
from fintune.models.adapter_files import WEIGHTS
from fintune.tasks.types import task_type
from fintune.training.checkpoints import checkpoints

OUTPUT = Path("output")
State = Literal["complete", "unfinished", "training"]


@dataclass(frozen=True)
class Figure:
    """A metric of a task."""

    task: str
    measure: MeasureInfo
    value: float | None


@dataclass(frozen=True)
class TrainingRun:
    """A folder that `fintune train` or `run` wrote to.

    Attributes:
        state: unfinished where its newest checkpoint is newer than its adapter, or it has no adapter.
        trained: when its adapter, or its newest checkpoint, was written.
        step, steps: of the weights that are there, and of the whole run; None where it is not known.
        split: where the figures come from: results.json's split, else validation during training.
        bytes: of the whole folder; `checkpoint_bytes` is the part of its checkpoints.
        facts: the manifest beside the weights; {} where it is missing or damaged.
    """

    folder: Path
    state: State
    has_adapter: bool
    trained: datetime
    step: int | None
    steps: int | None
    seconds: float | None
    split: str | None
    figures: list[Figure]
    bytes: int
    checkpoints: list[Path]
    checkpoint_bytes: int
    facts: dict[str, Any] = field(repr=False)

    @property
    def base(self) -> str | None:
        base = self.facts.get("base_model")
        return base if isinstance(base, str) else None

    @property
    def tasks(self) -> list[str]:
        return [str(task["name"]) for task in _tasks(self.facts)]

    @property
    def recipe(self) -> dict[str, Any]:
        """The recipe's keys, as `training.learning_rate`."""
        return dict(_flat(manifest.part(self.facts, "recipe")))

    def as_dict(self) -> dict[str, Any]:
        """The run as `--json` prints it."""
        figures = [
            {"task": f.task, "metric": f.measure.name, "better": f.measure.better, "value": f.value}
            for f in self.figures
        ]
        return {
            "folder": self.folder,
            "state": self.state,
            "has_adapter": self.has_adapter,
            "trained": self.trained.astimezone().isoformat(timespec="seconds"),
            "base_model": self.base,
            "tasks": self.tasks,
            "step": self.step,
            "steps": self.steps,
            "seconds": self.seconds,
            "split": self.split,
            "figures": figures,
            "bytes": self.bytes,
            "checkpoints": [path.name for path in self.checkpoints],
            "checkpoint_bytes": self.checkpoint_bytes,
            "recipe": self.recipe,
        }


def find(root: Path) -> list[TrainingRun]:
    """Every run in a folder and below it, the newest first; exported models are none.

    Raises:
        DataError: there is no such folder.
    """
    if not root.is_dir():
        raise DataError(
            f"There is no folder {root}: name one that holds runs, or train one with  fintune train."
        )
    found = []
    for place, folders, files in os.walk(root):
        if WEIGHTS in files or checkpoints(place):
            found.append(read(Path(place)))
        folders[:] = [name for name in folders if not name.startswith((".", "checkpoint-"))]
    return sorted((run for run in found if not run.facts.get("exported")), key=lambda run: run.trained)[::-1]


def named(name: str) -> TrainingRun:
    """The run in a folder, which is a path or a name below output/.

    Raises:
        DataError: there is none.
    """
    for folder in (Path(name), OUTPUT / name):
        if (folder / WEIGHTS).is_file() or checkpoints(folder):
            return read(folder)
    raise DataError(
        f"There is no run {name}, and none at {OUTPUT / name}:  fintune runs  lists what there is."
    )


def read(folder: Path) -> TrainingRun:
    """What is known of a run's folder; what is missing or damaged in it is unknown."""
    kept, weights = checkpoints(folder), folder / WEIGHTS
    written = weights.stat().st_mtime if weights.is_file() else None
    newest = kept[-1].stat().st_mtime if kept else None
    unfinished = written is None or (newest is not None and newest > written)
    facts: dict[str, Any] = {}
    with contextlib.suppress(FintuneError):
        facts = manifest.read_raw(kept[-1] if unfinished and kept else folder)
    lock = Lock(folder, "lock").path
    training = lock.exists() and not abandoned(lock)
    split, figures = _figures(folder, facts) if written is not None else (None, [])
    step = (
        int(kept[-1].name.rpartition("-")[2])
        if unfinished and kept
        else manifest.part(facts, "kept").get("step")
    )
    return TrainingRun(
        folder=folder,
        state="training" if training else "unfinished" if unfinished else "complete",
        has_adapter=written is not None,
        trained=datetime.fromtimestamp((newest if unfinished else written) or 0),
        step=_number(step),
        steps=_number(facts.get("optimizer_steps")),
        seconds=_number(manifest.part(facts, "training").get("seconds")),
        split=split,
        figures=figures,
        bytes=size(folder),
        checkpoints=kept,
        checkpoint_bytes=sum(map(size, kept)),
        facts=facts,
    )


def size(path: Path) -> int:
    """Bytes of a file, or of all files below a folder; links count as nothing."""
    if path.is_symlink():
        return 0
    if path.is_dir():
        return sum(map(size, path.iterdir()))
    return path.stat().st_size


def _tasks(facts: dict[str, Any]) -> list[dict[str, Any]]:
    tasks = facts.get("tasks")
    return [t for t in tasks if isinstance(t, dict) and "name" in t] if isinstance(tasks, list) else []


def _number(value: Any) -> Any:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _figures(folder: Path, facts: dict[str, Any]) -> tuple[str | None, list[Figure]]:
    """Each task's headline metrics: those of results.json, else of validation; the first is the main one."""
    try:
        results = read_results(folder / "results.json")
    except FintuneError:  # never evaluated, or by another version
        validated = manifest.part(facts, "validation")
        found = [
            Figure(task["name"], known_measure(metric), validated[key])
            for task in _tasks(facts)
            for metric in getattr(task_type(str(task.get("type"))), "headline_metrics", ())
            if _number(validated.get(key := f"eval_{task['name']}_{metric}")) is not None
        ]
        return ("validation" if found else None), found
    return results.split, [
        Figure(name, task.measure(metric), task.own.metrics.get(metric))
        for name, task in results.tasks.items()
        if isinstance(task, TaskResult) and task.own
        for metric in task.headline_metrics
    ]


def _flat(value: dict[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for key, each in value.items():
        if isinstance(each, dict) and each:
            yield from _flat(each, f"{before}{key}.")
        else:
            yield f"{before}{key}", each


def differences(runs: Sequence[TrainingRun]) -> dict[str, list[Any]]:
    """The recipe's keys that are not the same in all runs, each with its value in every run."""
    recipes = [run.recipe for run in runs]
    keys = dict.fromkeys(key for recipe in recipes for key in recipe)
    values = {key: [recipe.get(key, _default(key)) for recipe in recipes] for key in keys}
    return {key: each for key, each in values.items() if any(value != each[0] for value in each)}


@functools.cache
def _defaults() -> dict[str, Any]:
    return dict(_flat(Recipe().model_dump()))


def _default(key: str) -> Any:
    """What a recipe that lacks a key has there."""
    for part, config in (("data.tasks.", TaskDataConfig), ("evaluation.formats.", TextFormatConfig)):
        if key.startswith(part):
            return config().model_dump().get(key.rpartition(".")[2])
    return _defaults().get(key)


# Cleaning up ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Removal:
    """A folder that may go, how large it is, and what it is."""

    path: Path
    bytes: int
    what: str


def removable(runs: Sequence[TrainingRun], *, unfinished: bool = False, whole: bool = False) -> list[Removal]:
    """The checkpoints of finished runs; with `unfinished` those of others; with `whole` the runs themselves.

    Nothing of a run that trains now.

    Raises:
        ConfigError: with `whole`, a run's folder holds another run, or is the working folder.
    """
    found = []
    for run in runs:
        if run.state == "training":
            continue
        if whole:
            _refuse_more(run.folder)
            what = "the whole run, with its adapter" if run.has_adapter else "the whole unfinished run"
            found.append(Removal(run.folder, run.bytes, what))
        elif run.state == "complete" or unfinished:
            what = f"checkpoint of {'a finished' if run.state == 'complete' else 'an unfinished'} run"
            real = [path for path in run.checkpoints if not path.is_symlink()]
            found += [Removal(path, size(path), what) for path in real]
    return found


def _refuse_more(folder: Path) -> None:
    if folder.is_symlink() or Path.cwd().is_relative_to(folder.resolve()):
        raise ConfigError(f"{folder} is a link or the working folder: remove it yourself.")
    if inner := next((run for run in find(folder) if run.folder != folder), None):
        raise ConfigError(
            f"{folder} holds another run, {inner.folder}: --whole removes one run, so move that first."
        )
