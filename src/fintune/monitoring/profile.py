"""Makes the reference profile: statistics of a model's inputs and answers at evaluation time.

It holds only counts and numbers, no texts or words: words are counted in hashed buckets. It is stored as
`profile.json` in the adapter's folder, and `drift` compares live traffic with it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from fintune.errors import DataError
from fintune.files import known_sha256, read_json, write_json
from fintune.models.adapter_files import WEIGHTS
from fintune.tasks import Prediction, Record, Task

if TYPE_CHECKING:
    from fintune.data.prepare.dataset import PreparedDataset
    from fintune.data.prepare.splits import Split
    from fintune.inference.engine import Engine

NAME = "profile.json"
FORMAT = 1
BUCKETS = 256
"""Of hashed words."""
KEPT = 1000
"""Values kept per numeric signal, evenly spaced in sorted order: enough for a two-sample test."""
READ_WORDS = 400
"""The most words of a text whose buckets are counted; its length counts all words."""
_WORD = re.compile(r"[^\W\d_]+")


@dataclass(frozen=True)
class Observation:
    """What drift needs from one answered text."""

    length: int
    """Number of words in the text and its question."""
    buckets: tuple[int, ...]
    """The hashed buckets of its first words, ignoring case."""
    label: str | None = None
    confidence: float | None = None
    """The probability of the chosen candidate."""
    value: float | None = None
    """The answer, if it is a number."""

    @classmethod
    def of(
        cls, text: str, question: str | None, value: str | float, probabilities: Mapping[str, float] | None
    ) -> Observation:
        """The observation of one text and its answer."""
        import xxhash

        words = _WORD.findall(f"{text} {question or ''}".lower())
        labelled = bool(probabilities) and value in (probabilities or {})
        return cls(
            len(words),
            tuple(
                xxhash.xxh32_intdigest(word.encode("utf-8", "replace")) % BUCKETS
                for word in words[:READ_WORDS]
            ),
            str(value) if labelled else None,
            max(probabilities.values()) if probabilities else None,
            float(value) if isinstance(value, int | float) else None,
        )


@dataclass
class TaskProfile:
    """The signals of many observations of one task."""

    n: int = 0
    labels: dict[str, int] = field(default_factory=dict)
    words: list[int] = field(default_factory=lambda: [0] * BUCKETS)
    """Number of texts with a word in each bucket: shape (BUCKETS,)."""
    numbers: dict[str, list[float]] = field(default_factory=dict)
    """Sorted values of `confidence`, `length` and `value`, at most KEPT of each."""

    @classmethod
    def of(cls, observations: Iterable[Observation], labels: Sequence[str] = ()) -> TaskProfile:
        """The profile of some observations; `labels` lists all possible labels, even unseen ones."""
        profile = cls(labels={label: 0 for label in labels})
        numbers: dict[str, list[float]] = {}
        for seen in observations:
            profile.n += 1
            if seen.label is not None:
                profile.labels[seen.label] = profile.labels.get(seen.label, 0) + 1
            for bucket in set(seen.buckets):
                profile.words[bucket] += 1
            for name in ("confidence", "length", "value"):
                if (number := getattr(seen, name)) is not None:
                    numbers.setdefault(name, []).append(number)
        profile.numbers = {name: _spaced(values) for name, values in numbers.items()}
        return profile


def _spaced(values: list[float]) -> list[float]:
    """At most KEPT of the sorted values, evenly spaced."""
    ordered = sorted(values)
    if len(ordered) > KEPT:
        ordered = [ordered[(2 * i + 1) * len(ordered) // (2 * KEPT)] for i in range(KEPT)]
    return [round(value, 5) for value in ordered]


@dataclass
class Profile:
    """The reference of one adapter."""

    tasks: dict[str, TaskProfile]
    source: str = ""
    """The data it was made from."""
    weights: str = ""
    """The SHA-256 of the adapter's weights; "" if unknown."""

    def save(self, folder: str | Path) -> Path:
        """Write `profile.json` into a folder."""
        tasks = {name: asdict(task) for name, task in self.tasks.items()}
        facts = {"format": FORMAT, "buckets": BUCKETS, "source": self.source, "weights": self.weights}
        return write_json(Path(folder) / NAME, {**facts, "tasks": tasks})

    def beside(self, old: Profile) -> Profile:
        """This profile, plus the tasks that `old` has more examples of, for the same weights and data."""
        if (self.weights, self.source) != (old.weights, old.source):
            return self
        none = TaskProfile()
        better = {name: task for name, task in old.tasks.items() if task.n > self.tasks.get(name, none).n}
        return Profile({**self.tasks, **better}, self.source, self.weights)

    @classmethod
    def load(cls, folder: str | Path) -> Profile:
        """Read the profile from an adapter's folder.

        Raises:
            DataError: there is none, or it is damaged or has another version.
        """
        path, command = Path(folder) / NAME, f"fintune monitor profile --model_path {folder}"
        if not path.is_file():
            raise DataError(f"{folder} has no reference profile ({NAME}): make one with  {command}")
        raw = read_json(path)
        try:
            if (raw["format"], raw["buckets"]) != (FORMAT, BUCKETS):
                raise ValueError(f"format {raw['format']}, {raw['buckets']} buckets")
            tasks = {name: TaskProfile(**fields) for name, fields in raw["tasks"].items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(
                f"{path} cannot be read by this version of fintune ({error}): make it again with  {command}"
            ) from None
        found, weights = str(raw.get("weights", "")), Path(folder) / WEIGHTS
        if found and weights.is_file() and known_sha256(weights) != found:
            raise DataError(
                f"{path} belongs to other weights than the adapter's: make it again with  {command}"
            )
        return cls(tasks, str(raw.get("source", "")), found)


def profile_of(task: Task, records: Sequence[Record], answers: Sequence[Prediction]) -> TaskProfile:
    """The profile of records and their answers (`value`, `probabilities`), in the same order."""
    return TaskProfile.of(
        (
            Observation.of(record.text, record.question, answer.value, answer.probabilities)
            for record, answer in zip(records, answers, strict=True)
        ),
        task.one_of,
    )


def make_profile(
    engine: Engine, prepared: PreparedDataset, split: Split = "test", limit: int | None = None
) -> Profile:
    """Answer a split of the prepared data and make its profile.

    Args:
        limit: the most examples per task, from the start; None is all.

    Raises:
        DataError: the split has no records of a task that the model answers.
    """
    tasks = {}
    for task in prepared.task_set():
        records = prepared.records(task.name, split)[:limit]
        if records and task.name in engine.tasks.names():
            answers = engine.predict(task.name, records)
            tasks[task.name] = profile_of(engine.tasks[task.name], records, answers)
    if not tasks:
        raise DataError(f"{prepared.folder} has no {split} records for a task that this model answers.")
    return Profile(tasks, f"{split} split of {prepared.folder.name}")
