"""Prepare a recipe's data on disk: Parquet splits of every task, with a manifest.

    <prepared_dir>/<task>/{train,validation,test}.parquet     a record's fields except its split
    <prepared_dir>/manifest.json                              sources, checksums, counts, dropped rows

If recipe, data and code are unchanged, the manifest has the same key and preparing again does nothing.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from fintune import __version__
from fintune.config import Recipe, TaskDataConfig
from fintune.data.prepare import splits
from fintune.data.prepare.checks import Report, folded_labels, refuse_empty, refuse_unknown_labels
from fintune.data.prepare.shards import Map, Part, read_parts
from fintune.data.prepare.table import Rows
from fintune.data.raw.registry import SAMPLE, check_views
from fintune.data.raw.sources import Source, licensed_source
from fintune.data.records import Split
from fintune.data.storage import locate, refuse_full, write_parquet
from fintune.errors import DataError
from fintune.files import Lock, atomic_folder, file_sha256, read_json, write_json
from fintune.recipes import default_recipe_path, load_recipe
from fintune.tasks import task_from_dict, task_set
from fintune.tasks.base import Record, Task, TaskSet
from fintune.text.near_duplicates import frame

__all__ = ["PreparedDataset", "load_prepared", "prepare", "test_data_loading"]

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
FIT_ROWS = 100_000
"""The most training records to learn a task's levels from; a fair sample if there are more."""
FIT_CHARACTERS = 50_000_000
"""The most characters of their texts."""
SAMPLED = 5_000
"""How many different passages are searched for their common frame."""
COPY_ROWS = 100_000
"""Rows per file that `PreparedDataset.copy_to` writes."""
_FORMAT = 2
_LOCKS: WeakValueDictionary[Path, Lock] = WeakValueDictionary()
"""One lock per folder that this process uses, so that it may prepare again what only it uses."""


@dataclass(frozen=True)
class PreparedDataset:
    """Every task's records on disk, split, with the manifest of their sources."""

    folder: Path
    manifest: dict[str, Any]
    lock: Lock | None = field(default=None, repr=False, compare=False)
    """Keeps other processes from replacing the files while this object lives."""

    def records(self, task: str, split: Split) -> list[Record]:
        """The records of one split in a seeded order, so that its first n are a fair sample.

        Raises:
            DataError: the task is missing, or its file differs from the manifest.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        if task not in self.manifest["tasks"]:
            known = ", ".join(self.manifest["tasks"])
            raise DataError(
                f"There is no task {task!r} in the data prepared in {self.folder}, only: {known}."
            )
        name = f"{task}/{split}.parquet"
        try:
            content = (self.folder / name).read_bytes()
        except OSError:
            content = b""
        if hashlib.sha256(content).hexdigest() != self.manifest["files"][name]:
            raise DataError(
                f"{self.folder / name} is no longer what was prepared: another run has replaced it, or "
                "it is damaged. Run the command again, or use another data.prepared_dir."
            )
        # Single-threaded: if a thread of Arrow's pool still held these Python-owned bytes at interpreter
        # exit, the process would abort (github.com/apache/arrow/issues/36389).
        with pq.ParquetFile(pa.BufferReader(content)) as file:
            rows = file.read(use_threads=False).to_pylist()
        return [Record(**row, split=split) for row in rows]

    def copy_to(self, path: str) -> int:
        """Write every record as Parquet partitioned by task and split, at any path fsspec knows.

            <path>/task=qa/split=train/part-00000.parquet, …

        Returns:
            The number of records.

        Raises:
            DataError: the folder already holds files, or it cannot be written.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        place = locate(path)
        refuse_full(place, "--copy_to")
        count = 0
        for name in self.manifest["files"]:
            task, _, split = name.removesuffix(".parquet").partition("/")
            with pq.ParquetFile(self.folder / name) as file:
                batches = file.iter_batches(batch_size=8_192)
                tables = (pa.Table.from_batches([batch]) for batch in batches)
                part = place.child(f"task={task}").child(f"split={split}")
                count += write_parquet(part, file.schema_arrow, tables, COPY_ROWS)
        return count

    def task_set(self) -> TaskSet:
        """The tasks as fitted on the training records."""
        entries = self.manifest["tasks"].items()
        return TaskSet({name: task_from_dict(entry["task"]) for name, entry in entries})

    @property
    def describes(self) -> str:
        """This data's name in tables: `built-in sample` if any task is from it, else the datasets' names."""
        names = list(dict.fromkeys(entry["dataset"] for entry in self.manifest["tasks"].values()))
        return SAMPLE if SAMPLE in names else ", ".join(names)


def prepare(
    recipe: Recipe,
    *,
    force: bool = False,
    say: Callable[[str], None] = print,
    workers: int | None = None,
    mapper: Map | None = None,
) -> PreparedDataset:
    """Read, check, split and store the data of every task of a recipe.

    Rows stream from the sources to disk, so memory does not grow with their number. `workers` and `mapper`
    do not change a byte of the output.

    Args:
        force: prepare again even if nothing changed.
        say: called with one line per task, after lines on rules that drop many rows.
        workers: processes that read; None is one per core, or a single one if there is little to read.
        mapper: reads elsewhere, such as on a Ray cluster.

    Raises:
        DataError: a source is missing or unusable; the message names task, file and fix. Or another run uses
            other data in the same folder.
    """
    folder = Path(recipe.data.prepared_dir)
    writing = Lock(folder, "lock")
    if not writing.take():
        say(f"Waiting for another run that prepares {folder} ({writing.holder}) …")
        writing.take(wait=True)
    try:
        return _prepare(recipe, folder, force, say, workers, mapper)
    finally:
        writing.release()


def _prepare(
    recipe: Recipe,
    folder: Path,
    force: bool,
    say: Callable[[str], None],
    workers: int | None,
    mapper: Map | None,
) -> PreparedDataset:
    tasks = task_set(recipe)
    configs = {task.name: recipe.data.tasks.get(task.name, TaskDataConfig()) for task in tasks}
    sources = _sources(recipe, tasks, configs, say)
    tasks = TaskSet({task.name: task for task in tasks if task.name in sources})
    sums = {name: source.sha256() for name, source in sources.items()}
    key = _key(recipe, tasks, sources, sums)
    lock = _LOCKS.setdefault(folder.resolve(), Lock(folder, "in-use"))
    if not force and (current := _current(folder, key)) is not None:
        say(f"Data in {folder} is up to date ({current.describes}).")
        lock.take(shared=True)
        return replace(current, lock=lock)
    _refuse_foreign(folder)
    if not lock.take():
        raise DataError(
            f"Another run uses the data in {folder}, and this recipe needs other data there: wait for that "
            f"run, or give this one its own folder, such as  --set data.prepared_dir={folder}-2"
        )

    manifest: dict[str, Any] = {"format": _FORMAT, "key": key, "fintune": __version__}
    manifest.update(seed=recipe.data_seed, tasks={}, files={})
    with (
        atomic_folder(folder) as staging,
        tempfile.TemporaryDirectory(prefix=".rows-", dir=staging) as scratch,
    ):
        parts = _parts(tasks, sources, configs, Path(scratch).resolve())
        reports = read_parts(parts, workers, mapper)
        for task in tasks:
            source, config, report = sources[task.name], configs[task.name], Report()
            paths = []
            for part, dropped in zip(parts, reports, strict=True):
                if part.task is task:
                    paths.append(part.path)
                    report.merge(dropped)
            refuse_unknown_labels(task, report)
            if line := folded_labels(task, report):
                say(line)
            home = Path(scratch) / task.name
            with Rows(paths, home, task.numeric, report, turns=task.takes_turns) as rows:
                labels = _splits(rows, task, source, config, recipe, report)
                clipped = splits.bounds(rows, config.winsorize) if task.numeric else None
                for split in SPLITS:
                    path = staging / task.name / f"{split}.parquet"
                    rows.write(split, path, recipe.data_seed, clipped if split == "train" else None)
                    manifest["files"][f"{task.name}/{split}.parquet"] = file_sha256(path)
            shutil.rmtree(home)
            task.fit(_read(staging / task.name / "train.parquet", "train", FIT_ROWS))
            manifest["tasks"][task.name] = _entry(task, source, sums[task.name], labels, report, clipped)
        write_json(staging / "manifest.json", manifest)
    lock.take(shared=True)
    for entry in manifest["tasks"].values():  # important lines first
        for note in entry["notes"]:
            say(note)
    for name, entry in manifest["tasks"].items():
        say(_line(name, entry, sources[name].note))
    return PreparedDataset(folder, manifest, lock)


def _sources(
    recipe: Recipe, tasks: TaskSet, configs: dict[str, TaskDataConfig], say: Callable[[str], None]
) -> dict[str, Source]:
    """Each task's source; `data.commercial_only` may replace it or leave the task out."""
    sources = {}
    for task in tasks:
        source, line = licensed_source(task, configs[task.name], recipe.data)
        if line:
            say(line)
        if source is not None:
            sources[task.name] = source
            for remark in source.remarks:
                say(remark)
    if not sources:
        raise DataError(
            "data.commercial_only leaves no task: give one your own data, or a dataset whose licence allows "
            "commercial use (fintune data list)."
        )
    check_views(source.dataset for source in sources.values())
    return sources


def _parts(
    tasks: TaskSet, sources: dict[str, Source], configs: dict[str, TaskDataConfig], scratch: Path
) -> list[Part]:
    """The parts in which each task's source is read."""
    parts = []
    for task in tasks:
        home = scratch / task.name
        home.mkdir()
        for number, (read, size) in enumerate(sources[task.name].parts()):
            path = home / f"part-{number:05}.parquet"
            parts.append(Part(task, read, configs[task.name].labels, path, size))
    return parts


def load_prepared(folder: str | Path) -> PreparedDataset:
    """Load the dataset that `prepare` wrote.

    Raises:
        DataError: there is none, or one of its files is missing or was changed.
    """
    folder = Path(folder)
    if not (folder / "manifest.json").is_file():
        raise DataError(f"There is no prepared data in {folder}: run  fintune data prepare.")
    manifest = read_json(folder / "manifest.json")
    if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
        raise DataError(_damaged(folder, "its manifest.json is not of this version's format"))
    for name, expected in manifest["files"].items():
        try:
            actual = file_sha256(folder / name)
        except OSError:
            raise DataError(_damaged(folder, f"{name} is missing")) from None
        if actual != expected:
            raise DataError(_damaged(folder, f"{name} is not as it was written"))
    return PreparedDataset(folder, manifest)


def first_held_out(folder: str | Path, key: str, task: str, count: int) -> list[Record]:
    """The first test records of a task; [] if the folder does not hold the data with this key.

    Reads only these rows, so it does not verify the file's checksum.
    """
    place, name = Path(folder), f"{task}/test.parquet"
    if not (place / "manifest.json").is_file():
        return []
    manifest = read_json(place / "manifest.json")
    if not isinstance(manifest, dict) or manifest.get("key") != key or name not in manifest["files"]:
        return []
    return _read(place / name, "test", count)


def test_data_loading() -> None:
    """Prepare the default recipe's data, or find it prepared, and print a summary."""
    prepared = prepare(load_recipe(default_recipe_path()))
    print(f"\n{'task':<14} {'dataset':<23} {'train':>7} {'valid.':>7} {'test':>7}  example")
    for name, entry in prepared.manifest["tasks"].items():
        counts = " ".join(f"{entry['counts'][split]:>7,}" for split in SPLITS)
        text = " ".join(prepared.records(name, "train")[0].text.split())
        print(f"{name:<14} {entry['dataset']:<23} {counts}  {text[:59] + '…' if len(text) > 60 else text}")
    print(f"\nThe data is in {prepared.folder} (source: {prepared.describes}).")


test_data_loading.__test__ = False  # type: ignore[attr-defined]  # its name is the guide's; it is no test


def _damaged(folder: Path, why: str) -> str:
    return f"The prepared data in {folder} is damaged ({why}): run  fintune data prepare --force."


def _splits(
    rows: Rows, task: Task, source: Source, config: TaskDataConfig, recipe: Recipe, report: Report
) -> dict[Split, dict[str, int]]:
    """Give every row its split; keep official splits, and carve missing ones from the training rows.

    If training rows have times, the latest become the missing splits.

    Returns:
        Split → label → its number of records, before any limit.
    """
    seed, near = recipe.data_seed, recipe.data.near_duplicates
    total = rows.value("SELECT count(*) FROM r") + sum(report.dropped.values())
    missing = [split for split in ("test", "validation") if not rows.count(split)]
    timely = _plan(rows, task, len(missing), report)

    random: list[Split] = []

    def carve(into: Split, fraction: float) -> None:
        if timely:
            splits.carve_by_time(rows, into, fraction, seed)
        else:
            splits.carve(rows, into, fraction, seed)
            random.append(into)

    if "test" in missing:
        carve("test", recipe.data.test_fraction)
    splits.remove_leaks(rows, "validation", "test")
    splits.remove_leaks(rows, "train", "test")
    splits.remove_leaks(rows, "train", "validation")
    splits.remove_duplicates(rows)
    common = frame(rows.sample(SAMPLED)) if near else None
    if near:
        splits.remove_near_leaks(rows, ("validation", "train"), "test", near, common)
    if not rows.count("validation"):
        carve("validation", recipe.data.validation_fraction)
        splits.remove_leaks(rows, "train", "validation")
    if near:
        splits.remove_near_leaks(rows, ("train",), "validation", near, common)
    if rows.count("more"):
        for held_out in ("test", "validation"):
            splits.remove_leaks(rows, "more", held_out)
            if near:
                splits.remove_near_leaks(rows, ("more",), held_out, near, common)
        splits.join_more(rows)
    pairs: list[tuple[Split, Split]] = [("validation", "test"), ("train", "test"), ("train", "validation")]
    for split, held_out in pairs:
        if held_out not in random:  # a random split has no before and after
            splits.embargo(rows, split, held_out, recipe.data.embargo_days)
    if not timely and len(random) < 2 and (note := splits.undated(rows)):
        report.notes.append(f"{task.name}: {note}.")
    report.conflicting = splits.count_conflicts(rows)
    whole = {split: rows.labels(split) for split in SPLITS}
    losses = rows.losses(task.name, total)
    refuse_empty(task, whole, source.dataset, report, losses)
    report.notes = [*losses, *report.notes]
    for split, limit in zip(SPLITS, (config.max_train, config.max_validation, config.max_test), strict=True):
        splits.cap(rows, split, limit, seed)
    return {split: rows.labels(split) for split in SPLITS}


def _plan(rows: Rows, task: Task, missing: int, report: Report) -> bool:
    """Whether missing splits are carved by time; notes anything unusual about them.

    Raises:
        DataError: all rows are in fewer groups than there are splits to fill.
    """
    fill = missing + 1
    if splits.divide_by_question(rows, fill):
        report.notes.append(
            f"{task.name}: its questions are on too few texts to divide the texts, so they are split by "
            "question: the model trains on texts of the test split, with other questions."
        )
    groups, loose = rows.query(
        "SELECT count(DISTINCT grp), count(*) - count(grp) FROM r WHERE gone IS NULL AND split = 'train'"
    )[0]
    if not loose and 0 < groups < fill:
        raise DataError(
            f"Task {task.name}: the group column puts all rows into {groups} groups, and no group is divided "
            f"between splits: {fill} groups are needed. Map another column with "
            f"data.tasks.{task.name}.columns.group, or set validation_file and test_file."
        )
    timely, why = splits.by_time(rows, fill)
    if why and missing:
        report.notes.append(f"{task.name}: {why}.")
    return timely


def _entry(
    task: Task,
    source: Source,
    sums: dict[str, str],
    labels: dict[Split, dict[str, int]],
    report: Report,
    clipped: tuple[float, float] | None,
) -> dict[str, Any]:
    return {
        "task": task.to_dict(),
        "dataset": source.dataset,
        "source": source.home,
        "licence": source.licence,
        "sha256": sums,
        "counts": {split: sum(counts.values()) for split, counts in labels.items()},
        "labels": labels if task.one_of else {},
        "dropped": dict(report.dropped),
        "dropped_examples": report.named,
        "notes": report.notes,
        "remarks": [*source.remarks, *filter(None, [folded_labels(task, report)])],
        "conflicting_targets_in_train": report.conflicting,
        "training_targets_clipped_to": list(clipped) if clipped else None,
    }


def _line(name: str, entry: dict[str, Any], note: str) -> str:
    counts = ", ".join(f"{count:,} {split}" for split, count in entry["counts"].items())
    left_out = [f"{count:,} {reason}" for reason, count in entry["dropped"].items()]
    if entry["conflicting_targets_in_train"]:
        left_out.append(f"kept {entry['conflicting_targets_in_train']:,} texts with several targets")
    return (
        f"{name}: {entry['dataset']}{f' ({note})' if note else ''}: {counts}"
        + (f"; left out: {'; '.join(left_out)}" if left_out else "")
        + (f" (first: {entry['dropped_examples'][0]})" if entry["dropped_examples"] else "")
    )


def _key(recipe: Recipe, tasks: TaskSet, sources: dict[str, Source], sums: dict[str, dict[str, str]]) -> str:
    """A digest of everything that affects the prepared files: recipe, tasks, sources, this package's code."""
    code = hashlib.sha256()
    package = Path(__file__).parents[2]
    files = (path for part in ("data", "tasks", "text") for path in (package / part).rglob("*"))
    for path in sorted(path for path in files if path.suffix in (".py", ".yaml")):
        code.update(path.read_bytes())
    parts = {
        "format": _FORMAT,
        "code": code.hexdigest(),
        "seed": recipe.data_seed,
        "data": recipe.data.model_dump(exclude={"dir", "prepared_dir", "seed", "tasks"}),
        "tasks": [
            {
                "task": task.to_dict(),
                "config": recipe.data.tasks.get(task.name, TaskDataConfig()).model_dump(),
                "dataset": sources[task.name].dataset,
                "sha256": sums[task.name],
                "content": sources[task.name].content,
            }
            for task in tasks
        ],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _current(folder: Path, key: str) -> PreparedDataset | None:
    """The prepared dataset in `folder`, if it is complete and has this key."""
    try:
        prepared = load_prepared(folder)
    except DataError:
        return None
    return prepared if prepared.manifest["key"] == key else None


def _refuse_foreign(folder: Path) -> None:
    """Refuse a folder that holds something else, because preparing replaces the whole folder."""
    if folder.is_file() or (
        folder.is_dir() and any(folder.iterdir()) and not (folder / "manifest.json").is_file()
    ):
        raise DataError(
            f"data.prepared_dir is {folder}, which holds something other than prepared data: "
            "name another folder, or empty this one."
        )


def _read(path: Path, split: Split, limit: int) -> list[Record]:
    """The first records of a split's file, up to `FIT_CHARACTERS` of text."""
    import pyarrow.parquet as pq

    records: list[Record] = []
    characters = 0
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=min(limit, 1_024)):
            records += [Record(**row, split=split) for row in batch.to_pylist()]
            characters += sum(len(record.text) for record in records[-batch.num_rows :])
            if len(records) >= limit or characters >= FIT_CHARACTERS:
                break
    return records[:limit]
