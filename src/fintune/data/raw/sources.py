"""Find a task's raw records: in a public dataset, a user's file, a plug-in, or the built-in sample.

`find_source` decides; nothing is read before `Source.parts` is called. A public dataset is searched in
`data.dir`, then FINTUNE_DATA_DIR, then the download folder, to which `fetch_missing` downloads missing ones.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fintune.config import BUILT_IN_TASKS, DataConfig, Recipe, TaskDataConfig
from fintune.data.raw.download import DEFAULT_DIR, QUICK, get, is_set
from fintune.data.raw.licences import commercial_dataset
from fintune.data.raw.readers.row_files import RowFile
from fintune.data.raw.registry import DATASETS, DEFAULTS, SAMPLE, Dataset
from fintune.data.records import Dropped, Read
from fintune.data.storage import Location, locate
from fintune.errors import ConfigError, DataError, hint
from fintune.tasks.base import Record, Task
from fintune.text.encoding import repair

Folders = list[tuple[Path, str]]


@dataclass(frozen=True)
class Source:
    """The source of one task's records."""

    dataset: str
    """Its name in tables: a dataset's name, `built-in sample`, a file, or the plug-in."""
    home: str
    licence: str
    pieces: Callable[[], list[tuple[Read, int]]]
    """What to read its records from, in order, each with its size in bytes."""
    files: Mapping[str, Location] = field(default_factory=dict)
    content: str = ""
    """Identifies the content if there is no file."""
    note: str = ""
    """Why this source, if that is not obvious."""
    remarks: tuple[str, ...] = ()
    """Sentences on how its files are read, where that is not obvious."""
    repair: bool = False
    """Whether to repair records' texts that were decoded with the wrong encoding."""

    def parts(self) -> list[tuple[Read, int]]:
        """`pieces`, with repaired texts where these are wanted."""
        parts = self.pieces()
        return [(functools.partial(repaired, read), size) for read, size in parts] if self.repair else parts

    def sha256(self) -> dict[str, str]:
        """The checksum of each file that is read.

        Raises:
            DataError: a file is missing or cannot be read.
        """
        return {name: file.sha256() for name, file in self.files.items()}


def find_source(task: Task, config: TaskDataConfig, data: DataConfig) -> Source:
    """The source of a task's records: its file, else its dataset, else the default.

    A built-in task without a setting uses its public dataset if the data folders have it, else the built-in
    sample. Other tasks use their `load_custom_dataset`. With `data.repair_encoding`, texts are repaired.

    Raises:
        ConfigError: the dataset's name is unknown, or its type is not the task's.
        DataError: a file or the data folder is missing, or the task has no data at all.
    """
    source = _found(task, config, data)
    if config.more_train:
        source = _with_more(source, task, config)
    return replace(source, repair=data.repair_encoding)


def licensed_source(task: Task, config: TaskDataConfig, data: DataConfig) -> tuple[Source | None, str]:
    """`find_source` under `data.commercial_only`, and a line on what that changed; "" if nothing.

    If the dataset's licence does not allow commercial use: its stand-in's source, or None if the task is to
    be left out. A default that no folder holds is the built-in sample, unless its stand-in is available.

    Raises:
        ConfigError, DataError: as in `find_source`.
    """
    wanted = _wanted(task.name, config)
    if not data.commercial_only or wanted not in DATASETS:
        return find_source(task, config, data), ""
    if config.dataset:
        _dataset(task, wanted)  # refuse a wrong type instead of leaving the task out
    chosen, line = commercial_dataset(task, wanted)
    if not config.dataset:
        source = find_source(task, config, data)
        if chosen == wanted or (
            source.dataset == SAMPLE
            and (chosen is None or whole_in(DATASETS[chosen], data_folders(data)) is None)
        ):
            return source, ""
    if chosen is None:
        return None, line
    return find_source(task, config.model_copy(update={"dataset": chosen}), data), line


def _found(task: Task, config: TaskDataConfig, data: DataConfig) -> Source:
    if config.file:
        return _own_files(task, config)
    if config.dataset == "sample":
        return _sample(task.name, "chosen in the recipe")
    folders = data_folders(data)
    if config.dataset:
        return _public(_dataset(task, config.dataset), folders)
    if task.name not in BUILT_IN_TASKS:
        return _plugin(task)
    return _default(task.name, folders)


def data_folders(data: DataConfig) -> Folders:
    """The folders to search for public datasets, and the setting each comes from."""
    folders = {Path(DEFAULT_DIR): ""}
    if os.environ.get("FINTUNE_DATA_DIR"):
        folders = {Path(os.environ["FINTUNE_DATA_DIR"]): "FINTUNE_DATA_DIR", **folders}
    if data.dir:
        folders = {Path(data.dir): "data.dir", **folders}
    return list(folders.items())


def fetch_missing(recipe: Recipe, say: Callable[[str], None] = print) -> str:
    """Download the public datasets that a recipe's tasks would use and that no folder holds.

    With `data.commercial_only`, only those whose licence allows commercial use. Without a network, this takes
    at most three seconds. FINTUNE_OFFLINE=1 and HF_HUB_OFFLINE=1 skip the attempt. A failed download raises
    nothing, because a run can do without.

    Returns:
        Why datasets are still missing; "" if none is.

    Raises:
        ConfigError: the recipe names an undefined task.
    """
    from fintune.tasks import task_set

    wanted = []
    for task in task_set(recipe):
        name = _wanted(task.name, recipe.data.tasks.get(task.name))
        if recipe.data.commercial_only and name in DATASETS:
            name = commercial_dataset(task, name)[0] or ""
        wanted.append(name)
    folders = data_folders(recipe.data)
    missing = [
        name
        for name in dict.fromkeys(wanted)
        if name in DATASETS and whole_in(DATASETS[name], folders) is None
    ]
    if not missing or wrong_folder(folders):
        return ""
    for variable in ("FINTUNE_OFFLINE", "HF_HUB_OFFLINE"):
        if is_set(variable):
            return f"{variable} is set"
    say(f"Trying to download {', '.join(missing)} into {DEFAULT_DIR} (FINTUNE_OFFLINE=1 skips this).")
    try:
        outcome = get(missing, DEFAULT_DIR, say, QUICK, quick=True)
    except DataError as error:
        return str(error).rstrip(".")
    return "; ".join(dict.fromkeys([*outcome.failed.values(), *outcome.unreached.values()])).rstrip(".")


def describe_sources(recipe: Recipe, tasks: Iterable[Task], why: str = "") -> str:
    """Describe a run's data to a person: the public datasets by name, the built-in sample and why.

    Args:
        why: the reason for the sample, if more is known than that files are missing.

    Raises:
        ConfigError, DataError: as in `find_source`.
    """
    named: list[str] = []
    sampled: dict[str, list[str]] = {}
    for task in tasks:
        config = recipe.data.tasks.get(task.name, TaskDataConfig())
        if task.name not in BUILT_IN_TASKS and not config.dataset and not config.file:
            named.append(f"the plug-in's data for {task.name}")
            continue
        source, _ = licensed_source(task, config, recipe.data)
        if source is None:
            continue
        if source.dataset != SAMPLE:
            named.append(source.dataset)
        else:
            reason = source.note if config.dataset or not why else why
            sampled.setdefault(reason, []).append(task.name)
    whole = not named and len(sampled) == 1
    for reason, names in sampled.items():
        named.append(f"the {SAMPLE}{'' if whole else ' for ' + ', '.join(names)} ({reason})")
    return ", ".join(dict.fromkeys(named))


def _wanted(name: str, config: TaskDataConfig | None) -> str:
    """The public dataset that a task uses if it is found; "" if it uses something else."""
    if config and (config.file or config.dataset):
        return config.dataset or ""
    return DEFAULTS.get(name, "")


def _dataset(task: Task, dataset: str) -> Dataset:
    key = f"data.tasks.{task.name}.dataset"
    if dataset not in DATASETS:
        near = hint(dataset, [*DATASETS, "sample"])
        raise ConfigError(f"{key} names the unknown dataset '{dataset}'{near}")
    found = DATASETS[dataset]
    if found.type != task.type:
        fitting = [other.name for other in DATASETS.values() if other.type == task.type]
        raise ConfigError(
            f"{key} is '{dataset}', which is for {found.type} tasks, but {task.name} is a {task.type} task; "
            f"these fit: {', '.join(fitting)}"
        )
    return found


def _default(name: str, folders: Folders) -> Source:
    dataset = DATASETS[DEFAULTS[name]]
    if wrong := wrong_folder(folders):
        raise DataError(wrong)
    if _lookup(dataset, folders) is None:
        searched = " or ".join(str(folder) for folder, _ in folders)
        return _sample(name, f"there is no {dataset.paths[0]} in {searched}")
    return _public(dataset, folders)


def wrong_folder(folders: Folders) -> str:
    """A sentence on what is wrong with the data folder that a setting names; "" if nothing is.

    A typo in it must not lead to data from elsewhere.
    """
    folder, setting = folders[0]
    if not setting or any((folder / file).exists() for other in DATASETS.values() for file in other.paths):
        return ""
    what = "holds none of the public datasets" if folder.is_dir() else "is not a folder"
    return (
        f"{setting} is {folder}, which {what}: correct it, run  fintune data download,  or unset it "
        "to use the built-in sample."
    )


def _lookup(dataset: Dataset, folders: Folders) -> tuple[Path, str] | None:
    """The first folder with all files of a dataset, else the first with any."""
    for enough in (all, any):
        for folder, setting in folders:
            if enough((folder / file).is_file() for file in dataset.paths):
                return folder, setting
    return None


def found_in(dataset: Dataset, folders: Folders) -> str:
    """Whether a folder holds all files of a dataset: `yes`, `in part` or `no`."""
    if whole_in(dataset, folders) is not None:
        return "yes"
    return "in part" if _lookup(dataset, folders) else "no"


def whole_in(dataset: Dataset, folders: Folders) -> Path | None:
    """The first folder with all required files of a dataset."""
    return next((f for f, _ in folders if all((f / file).is_file() for file in dataset.paths)), None)


def _public(dataset: Dataset, folders: Folders) -> Source:
    folder, setting = _lookup(dataset, folders) or folders[0]
    missing = [file for file in dataset.paths if not (folder / file).is_file()]
    if missing:
        where = f"{folder} ({setting})" if setting else f"{folder} (set another with data.dir)"
        raise DataError(
            f"Dataset {dataset.name} needs {', '.join(missing)}, which is missing from {where}: "
            f"run  fintune data download --dataset {dataset.name},  or copy it there."
        )
    read = functools.partial(dataset.read, folder.resolve())
    files = {file: locate(folder / file) for file in dataset.found(folder)}

    def pieces() -> list[tuple[Read, int]]:
        return [(read, sum(file.size() for file in files.values()))]

    return Source(dataset.name, dataset.home, dataset.licence, pieces, files)


def _sample(name: str, note: str) -> Source:
    read = functools.partial(_sample_records, name)
    return Source(SAMPLE, "fintune.data.raw.sample", "Apache-2.0", lambda: [(read, 0)], note=note)


def _sample_records(name: str) -> Iterator[Record | Dropped]:
    from fintune.data.raw.sample import sample_records

    yield from sample_records(name)


def _own_files(task: Task, config: TaskDataConfig) -> Source:
    from fintune.data.raw.readers.own_file import time_form
    from fintune.data.raw.readers.row_files import row_files

    key = f"data.tasks.{task.name}"
    given = {"file": config.file, "validation_file": config.validation_file, "test_file": config.test_file}
    files = [
        (setting.removesuffix("file").rstrip("_") or None, file)
        for setting, path in given.items()
        if path
        for file in row_files(
            path, f"{key}.{setting}", config.encoding, config.sheet, config.columns.values()
        )
    ]
    notes = [note for _, file in files for note in file.notes]
    form = config.time_format or ""
    if not form:
        form, note = time_form([file for _, file in files], config.columns, f"{key}.time_format")
        notes += [f"{task.name}: {note}."] if note else []
    pieces = functools.partial(_own_pieces, files, task, config.columns, f"{key}.columns", form)
    sums = {file.shown: file.place for _, file in files} | _named([file for _, file in files], config)
    shown = files[0][1].root or files[0][1].place
    return Source(shown.shown, shown.shown, "your own", pieces, sums, remarks=tuple(notes))


def _with_more(source: Source, task: Task, config: TaskDataConfig) -> Source:
    """The same source, followed by the rows of `more_train` with the split `more`."""
    from fintune.data.raw.readers.own_file import has_column, time_form
    from fintune.data.raw.readers.row_files import open_rows, row_files

    key = f"data.tasks.{task.name}"
    files = [file for path in config.more_train for file in row_files(path, f"{key}.more_train")]

    def pieces() -> list[tuple[Read, int]]:
        found = source.parts()
        for file in files:
            names = open_rows(file, config.columns.values())[0]
            columns = {field: column for field, column in config.columns.items() if has_column(names, column)}
            form = config.time_format or ""
            if form not in ("day_first", "month_first"):  # other formats apply only to the task's own files
                form = time_form([file], columns, f"{key}.time_format")[0]
            found += _own_pieces([("more", file)], task, columns, f"{key}.columns", form)
        return found

    sums = {file.shown: file.place for file in files} | _named(files, config)
    remarks = (*source.remarks, *(note for file in files for note in file.notes))
    return replace(source, files={**source.files, **sums}, pieces=pieces, remarks=remarks)


def _named(files: list[RowFile], config: TaskDataConfig) -> dict[str, Location]:
    """The documents that rows name instead of a text."""
    from fintune.data.raw.readers.named_documents import named_documents

    column = config.columns.get("document")
    return named_documents(files, column) if column else {}


def _own_pieces(
    files: list[tuple[str | None, RowFile]],
    task: Task,
    columns: Mapping[str, str],
    key: str,
    time_format: str,
) -> list[tuple[Read, int]]:
    from fintune.data.raw.readers.own_file import read_own_file
    from fintune.data.raw.readers.row_files import cuts

    return [
        (functools.partial(read_own_file, file, task, columns, key, split, cut, time_format), size)
        for split, file in files
        for cut, size in cuts(file)
    ]


def _plugin(task: Task) -> Source:
    try:
        rows = task.load_custom_dataset()
    except NotImplementedError:
        raise DataError(
            f"Task {task.name} has no data: name a file with data.tasks.{task.name}.file, or a public "
            f"dataset with data.tasks.{task.name}.dataset."
        ) from None

    read = functools.partial(_plugin_records, rows, task)
    content = hashlib.sha256(json.dumps(rows, default=str, sort_keys=True).encode()).hexdigest()
    home = type(task).__module__
    return Source(f"{task.name} (plug-in)", home, "the plug-in's", lambda: [(read, 0)], content=content)


def _plugin_records(rows: list[dict[str, Any]], task: Task) -> Iterator[Record | Dropped]:
    from fintune.data.raw.readers.own_file import record_of

    for number, row in enumerate(rows, start=1):
        yield record_of(row, task, f"{task.name}:{number}", None)


@dataclass(frozen=True)
class Listed:
    """A dataset in `fintune data list`."""

    name: str
    type: str
    default_of: str | None
    """The task that uses it by default."""
    found: str
    """yes, in part or no."""
    licence: str
    home: str


def list_datasets(data_dir: str | None = None) -> tuple[list[Listed], list[Path]]:
    """Every public dataset and the built-in sample, and the folders that were searched."""
    folders = data_folders(DataConfig(dir=data_dir))
    task_of = {dataset: task for task, dataset in DEFAULTS.items()}
    listed = [
        Listed(d.name, d.type, task_of.get(d.name), found_in(d, folders), d.licence, d.home)
        for d in DATASETS.values()
    ]
    sample = Listed("sample", "all five tasks", None, "yes", "Apache-2.0", "built in")
    return [*listed, sample], [folder for folder, _ in folders]


def repaired(read: Callable[[], Iterable[Record | Dropped]]) -> Iterator[Record | Dropped]:
    """A source's records with text, question and target repaired."""
    for item in read():
        if not isinstance(item, Record):
            yield item
            continue
        target = repair(item.target) if isinstance(item.target, str) else item.target
        question = None if item.question is None else repair(item.question)
        yield replace(item, text=repair(item.text), question=question, target=target)
