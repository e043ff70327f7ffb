"""Held-out texts, which nobody may train on: test sets of every public dataset found and of prepared data.

Statements are compared without a dataset's own framing (a line `Target: …`, several tweets in one text), so
that one sentence is the same in every dataset.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fintune.config import DataConfig
from fintune.data.prepare.dataset import SPLITS, PreparedDataset
from fintune.data.raw.registry import DATASETS, Dataset
from fintune.data.raw.sources import data_folders, whole_in
from fintune.data.records import text_key
from fintune.tasks.base import Record, Task
from fintune.text.near_duplicates import THRESHOLD, Index, frame, without_links

FRAME_TEXTS = 5_000
"""Texts of each split of a task that are searched for its frame."""
WORDS_IN_TWEET = 4
"""A tweet with fewer words says too little to count as a duplicate."""


def statements(record: Record) -> list[str]:
    """A record's text as statements that other datasets may also contain; usually the text alone."""
    if record.source.startswith("fiqa"):
        return [record.text.rpartition("\nTarget: ")[0] or record.text]
    if record.source.startswith("stocknet"):
        tweets = [line[2:] for line in record.text.splitlines() if line.startswith("- ")]
        return [tweet for tweet in tweets if len(tweet.split()) >= WORDS_IN_TWEET]
    return [record.text]


@dataclass(frozen=True)
class Found:
    """The held-out text that a text duplicates."""

    id: str
    exact: bool
    """The same text, ignoring case, spacing and links."""
    similarity: float

    @property
    def rank(self) -> tuple[bool, float]:
        """Larger for a closer match."""
        return self.exact, self.similarity


class HeldOut:
    """An index of named test sets that finds which of their texts another text duplicates or nearly does."""

    def __init__(self, threshold: float = THRESHOLD, whole: bool = False, frame: Any = ()) -> None:
        """
        Args:
            whole: compare texts as they are in the dataset, not statement by statement.
            frame: boilerplate that does not count (`near_duplicates.frame`).
        """
        self._parts = (lambda record: [record.text]) if whole else statements
        self.records: Counter[str] = Counter()
        """Test set → its number of records."""
        self._exact: dict[str, dict[str, str]] = {}
        self._index = Index(threshold, frame)

    def add(self, name: str, record: Record) -> None:
        """Add a record to a test set: its statements, and its whole text."""
        self.records[name] += 1
        for statement in dict.fromkeys([*self._parts(record), record.text]):
            self._exact.setdefault(_key(statement), {}).setdefault(name, record.id)
            self._index.add((name, record.id), statement)

    def find(self, text: str) -> dict[str, Found]:
        """By test set, the most similar text; empty if there is none."""
        key = _key(text)
        exact = self._exact.get(key, {}) if key else {}
        found = {name: Found(id, True, 1.0) for name, id in exact.items()}
        for (name, id), similarity in self._index.matches(text):
            found.setdefault(name, Found(id, False, similarity))
        return found

    def find_record(self, record: Record) -> dict[str, Found]:
        """The same for a record: the best match of any of its statements."""
        best: dict[str, Found] = {}
        for statement in self._parts(record):
            for name, found in self.find(statement).items():
                if name not in best or found.rank > best[name].rank:
                    best[name] = found
        return best


def _key(text: str) -> str:
    return text_key(without_links(text))


def public_and_prepared(
    data: DataConfig,
    prepared: PreparedDataset | None,
    threshold: float = THRESHOLD,
    ignore: tuple[str, ...] = (),
) -> HeldOut:
    """Every test set there is.

    A public dataset's test set is its official test split; if it has none, the prepared data's split, and if
    that does not hold the dataset, the whole dataset. Prepared tasks on other data add their own.

    Args:
        ignore: sources of prepared tasks to leave out, as named in the manifest.
    """
    folders = data_folders(data)
    entries = prepared.manifest["tasks"].items() if prepared else ()
    tasks: dict[str, list[str]] = {}
    for task, entry in entries:
        tasks.setdefault(entry["dataset"], []).append(task)
    held_out = HeldOut(threshold, frame=prepared_frame(prepared) if prepared else ())
    taken: set[tuple[str, ...]] = set()
    for dataset in DATASETS.values():
        own = tasks.pop(dataset.name, [])
        if tuple(dataset.paths) in taken:  # another view of files whose test split is already included
            continue
        if (folder := whole_in(dataset, folders)) is not None:
            for record in _test_records(dataset, folder, prepared, own[0] if own else None):
                held_out.add(dataset.name, record)
            taken.add(tuple(dataset.paths))
        elif own:
            tasks[dataset.name] = own[:1]
    for name, task in ((name, task) for name, of_it in tasks.items() for task in of_it):
        if prepared and name not in ignore:
            for record in passages(prepared.task_set()[task], prepared.records(task, "test")):
                held_out.add(name if name in DATASETS else f"{task}: {name}", record)
    return held_out


def passages(task: Task, records: Iterable[Record]) -> list[Record]:
    """A task's records, with the text to compare as their text."""
    return [replace(record, text=task.passage(record)) for record in records]


def prepared_frame(prepared: PreparedDataset) -> Any:
    """The boilerplate of every task's texts: see `near_duplicates.frame`."""
    import numpy as np

    found = [
        frame(
            record.text
            for split in SPLITS
            for record in passages(task, prepared.records(task.name, split)[:FRAME_TEXTS])
        )
        for task in prepared.task_set()
    ]
    return np.unique(np.concatenate(found))


def _test_records(
    dataset: Dataset, folder: Path, prepared: PreparedDataset | None, task: str | None
) -> Iterator[Record]:
    """The official test split, else the prepared one, else every record; reads the dataset once."""
    official = False
    others: list[Record] = []
    for item in dataset.read(folder):
        if not isinstance(item, Record):
            continue
        if item.split == "test":
            official = True
            others.clear()
            yield item
        elif not official and not task:
            others.append(item)
    if prepared and task and not official:
        yield from passages(prepared.task_set()[task], prepared.records(task, "test"))
    yield from others
