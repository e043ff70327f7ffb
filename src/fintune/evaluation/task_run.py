"""Runs one task of an evaluation: every system answers its held-out records, and is scored."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fintune.errors import DataError
from fintune.evaluation.analysis.errors import analyse, shorten
from fintune.evaluation.measure_info import info_of
from fintune.evaluation.results import Answer, TaskResult
from fintune.evaluation.scores import Scored, cluster_names
from fintune.metrics.bertscore import bertscore_measure
from fintune.progress import progress_bar
from fintune.tasks import Prediction, Record, Task
from fintune.tasks.base import NONE_OF_ITS_TYPE, Answers

if TYPE_CHECKING:
    from fintune.config import EvaluationConfig
    from fintune.data.prepare.dataset import PreparedDataset
    from fintune.evaluation.other_models import OtherModel
    from fintune.inference.engine import Engine

HeldOut = Literal["test", "validation"]
SEED = 0
"""Seed for the examples of a smaller evaluation and the bootstrap resamples."""
JSONL_TEXT_CHARACTERS = 2000


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

    def run(self, encoder: Path | None, skipped: str) -> tuple[TaskResult, list[Answer]]:
        """The task's entry in the results, and its rows of predictions."""
        task, test = self.task, self.test
        entry: dict[str, Any] = {"type": task.type, "headline_metrics": list(task.headline_metrics)}
        if self.engine.adapter is not None and task.name not in self.engine.tasks.names():
            entry["skipped"] = "the adapter was not trained on this task"
            return TaskResult.model_validate(entry), []
        self._lend_learnt()
        self.encoder = encoder if task.semantic else None
        if task.semantic:
            entry["bertscore"] = (
                {"encoder": encoder.name, "layer": "last"} if encoder else {"skipped": skipped}
            )
        own = "base" if self.engine.adapter is None else "adapter"
        predictions, seconds = self._predict(own, test)
        scored = self._scored(test, predictions)
        entry |= self._type_facts(scored)
        begun = time.perf_counter()
        name, plain = task.baseline(self.train, test)
        systems = {"baseline": self._system(name, self._scored(test, plain), time.perf_counter() - begun)}
        more, entry["systems_skipped"] = self._references()
        for key, (name, found, taken) in more.items():
            systems[key] = self._system(name, self._scored(test, found), taken)
        untuned: dict[int, Prediction] = {}
        if own == "adapter" and self.config.base_model:
            if why := self.engine.no_untuned_base:
                entry["systems_skipped"]["base"] = why
            else:
                systems["base"], untuned = self._untuned(scored)
        systems[own] = self._system(own, scored, seconds)
        entry |= {"clusters": self._clusters(), "systems": systems}
        analysis = analyse(scored, self.train)
        entry["errors"] = analysis.summary
        rows = self._rows(scored, plain, {key: found for key, (_, found, _) in more.items()}, untuned)
        answers = [
            Answer.model_validate(row | {"error": error})
            for row, error in zip(rows, analysis.examples, strict=True)
        ]
        return TaskResult.model_validate(entry), answers

    def _type_facts(self, scored: Scored) -> dict[str, Any]:
        """What readers of the results need to know about the type: its measures, its labels."""
        facts: dict[str, Any] = {"measures": [info_of(m).model_dump() for m in scored.measures]}
        if ranking := self.task.ranking:
            facts["ranked_by"] = ranking.column
        if self.task.labels:
            facts["labels"] = list(self.task.labels)
        return facts

    def _references(self) -> tuple[dict[str, tuple[str, list[Prediction], float]], dict[str, str]]:
        """The classical systems and the other models by key: name, answers, seconds; and why some were
        skipped."""
        found: dict[str, tuple[str, list[Prediction], float]] = {}
        skipped: dict[str, str] = {}
        known = self.task.references()
        wanted: list[tuple[str, Callable[[], Any]]] = []
        for name in self.config.baselines:
            key = str(name)
            if key in known:
                wanted.append((key, partial(self._refer, known[key])))
            else:
                skipped[key] = f"{NONE_OF_ITS_TYPE} {self.task.type or 'unknown'}"
        wanted += [(other.name, partial(self._ask, other)) for other in self.others]
        for key, answer in wanted:
            begun = time.perf_counter()
            try:
                system = answer()
            except (ValueError, RuntimeError) as error:  # a failing reference costs no answers of the model
                system = f"it failed: {' '.join(str(error).split())}"
            if isinstance(system, str):
                skipped[key] = system
            else:
                found[key] = (*system, time.perf_counter() - begun)
        return found, skipped

    def _refer(self, make: Callable[..., Answers | str]) -> Answers | str:
        return make(self.train, self.validation(), self.test)

    def _ask(self, other: OtherModel) -> tuple[str, list[Prediction]] | str:
        with self._bar(other.name, len(self.test)) as bar:
            answers = other.predict(self.task, self.test, self.config.batch_size, bar.update)
        return answers if isinstance(answers, str) else (other.name, answers)

    def _clusters(self) -> dict[str, Any]:
        """What the intervals resample: `by` date, group or example, and how many there are."""
        names = set(cluster_names(self.task, self.test))
        by = "group" if len(names) < len(self.test) else "example"
        if self.task.numeric and any(r.time for r in self.test):
            by = "date"
        return {"by": by, "n": len(names)}

    def _lend_learnt(self) -> None:
        """Give an engine that never saw training data what this data's tasks learned from theirs."""
        known = self.engine.tasks.tasks.get(self.task.name)
        if self.engine.adapter is None or (known is not None and known.obstacle()):
            self.engine.tasks.tasks[self.task.name] = self.task
        for task in self.engine.tasks:
            task.configure(self.config)

    def _bar(self, what: str, total: int) -> Any:
        return progress_bar(
            self.progress, total=total, desc=f"{self.task.name}, {what}", unit="ex", leave=False
        )

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

    def _untuned(self, scored: Scored) -> tuple[dict[str, Any], dict[int, Prediction]]:
        chosen = _draw(len(self.test), self.config.base_model_max_test)
        records = [self.test[i] for i in chosen]
        answers, seconds = self._predict("base", records)
        system = self._system("base", self._scored(records, answers), seconds)
        if len(chosen) < len(self.test):
            system["adapter_metrics"] = _finite_values(scored.subset(chosen).metrics())
        return system, dict(zip(chosen, answers, strict=True))

    def _scored(self, records: Sequence[Record], predictions: Sequence[Prediction]) -> Scored:
        if self.encoder is None:
            return Scored.of(self.task, records, predictions)
        with self._bar("BERTScore", len(records)) as bar:
            measure = bertscore_measure(self.encoder, bar.update)
            return Scored.of(self.task, records, predictions, [measure])

    def _system(self, name: str, scored: Scored, seconds: float) -> dict[str, Any]:
        n = len(scored.records)
        intervals = scored.intervals(seed=SEED)
        return {
            "name": {"base": self.engine.base_name, "adapter": str(self.engine.adapter)}.get(name, name),
            "n": n,
            "metrics": _finite_values(scored.metrics()),
            "metrics_interval": {metric: list(bounds) for metric, bounds in intervals.items()},
            "details": scored.details(),
            "seconds": round(seconds, 3),
            "examples_per_second": round(n / max(seconds, 1e-9), 2),
        }

    def _rows(
        self,
        scored: Scored,
        plain: Sequence[Prediction],
        more: Mapping[str, Sequence[Prediction]],
        untuned: Mapping[int, Prediction],
    ) -> list[dict[str, Any]]:
        rows = []
        for i, (record, answer) in enumerate(zip(self.test, scored.predictions, strict=True)):
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
                "interval": answer.interval,
                "token_probability": answer.token_probability,
                "scores": {name: _finite(values[i]) for name, values in scored.columns.items()},
                "baseline_prediction": plain[i].value,
                "other_predictions": {key: predictions[i].value for key, predictions in more.items()},
            }
            if i in untuned:
                row["base_prediction"] = untuned[i].value
            rows.append(row)
        return rows


def _finite(value: float) -> float | None:
    """Replace nan, which JSON lacks, by null: the value is undefined."""
    return value if math.isfinite(value) else None


def _finite_values(metrics: Mapping[str, float]) -> dict[str, float | None]:
    return {name: _finite(float(value)) for name, value in metrics.items()}


def drawn(records: Sequence[Record], limit: int | None) -> list[Record]:
    """At most `limit` records for an evaluation, drawn with the fixed seed, in order."""
    return [records[i] for i in _draw(len(records), limit)]


def _draw(count: int, limit: int | None) -> list[int]:
    """At most `limit` of `count` indices, drawn with the fixed seed, in order."""
    if limit is None or limit >= count:
        return list(range(count))
    return sorted(random.Random(SEED).sample(range(count), limit))
