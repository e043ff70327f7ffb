"""One task of an evaluation: its held-out records answered by every system, and scored."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fintune.errors import DataError
from fintune.evaluation.analysis.errors import analyse, shorten
from fintune.evaluation.intervals import bootstrap_intervals, cluster_of
from fintune.evaluation.scores import Scores, details_of, example_scores, interval_of, metrics_of
from fintune.evaluation.systems.baselines import baseline_predictions
from fintune.evaluation.systems.references import lexicon_system, tfidf_system
from fintune.inference.engine import configure
from fintune.metrics.bertscore import bertscore_examples
from fintune.tasks import Prediction, Record, Task

if TYPE_CHECKING:
    from fintune.config import EvaluationConfig
    from fintune.data.prepare.dataset import PreparedDataset
    from fintune.evaluation.systems.other_models import OtherModel
    from fintune.inference.engine import Engine

HeldOut = Literal["test", "validation"]
SEED = 0
"""Draws the examples of a smaller evaluation and the bootstrap resamples."""
JSONL_TEXT_CHARACTERS = 2000


@dataclass
class _Answers:
    """What one system answered, and everything that is computed of it by example."""

    records: Sequence[Record]
    predictions: Sequence[Prediction]
    seconds: float
    scores: Scores


class TaskRun:
    """One task of one evaluation.

    Raises:
        DataError: the split has no records of the task.
    """

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
        self.validation = partial(prepared.records, task.name, "validation")
        test = prepared.records(task.name, split)
        if not test:
            raise DataError(f"Task {task.name} has no {split} records: prepare the data again.")
        self.test = drawn(test, max_test)

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
            wanted.append(("tfidf", lambda: tfidf_system(task, self.train, self.validation(), test)))
        if "lexicon" in self.config.baselines:
            wanted.append(("lexicon", lambda: lexicon_system(task, self.train, test)))
        if "zero" in self.config.baselines and task.type == "regression":
            wanted.append(("zero", lambda: ("zero", [Prediction(0.0)] * len(test))))
        for other in self.others:
            wanted.append((other.name, partial(self._ask, other)))
        for key, answer in wanted:
            begun = time.perf_counter()
            try:
                system = answer()
            except (ValueError, RuntimeError) as error:  # what stands beside costs no answers of the model
                system = f"it failed: {' '.join(str(error).split())}"
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


def drawn(records: Sequence[Record], limit: int | None) -> list[Record]:
    """The records of an evaluation of at most `limit`, drawn by the fixed seed, in order."""
    return [records[i] for i in _draw(len(records), limit)]


def _draw(count: int, limit: int | None) -> list[int]:
    """At most `limit` of `count` indices, drawn by the fixed seed, in order."""
    if limit is None or limit >= count:
        return list(range(count))
    return sorted(random.Random(SEED).sample(range(count), limit))
