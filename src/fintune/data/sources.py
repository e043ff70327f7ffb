"""Where a task's raw records come from: a public dataset, a user's file, a plug-in, the built-in sample.

`find_source` decides; nothing is read before `Source.read` is called.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from fintune.config import BUILT_IN_TASKS, DataConfig, TaskDataConfig
from fintune.data.download import download
from fintune.data.encoding import repaired
from fintune.data.quality import Dropped
from fintune.data.registry import DATASETS, DEFAULTS, Dataset
from fintune.errors import ConfigError, DataError
from fintune.files import file_sha256
from fintune.tasks.base import Record, Task

__all__ = ["DATASETS", "SAMPLE", "Source", "data_folder", "download", "find_source", "list_datasets"]

SAMPLE = "built-in sample"
DEFAULT_DIR = "data/raw"


@dataclass(frozen=True)
class Source:
    """Where one task's records come from."""

    dataset: str
    """What tables call it: a dataset's name, `built-in sample`, a file, or the plug-in."""
    home: str
    licence: str
    read: Callable[[], Iterator[Record | Dropped]]
    files: Mapping[str, Path] = field(default_factory=dict)
    content: str = ""
    """What stands for the content where there is no file."""
    note: str = ""
    """Why this source, where that is not plain."""

    def sha256(self) -> dict[str, str]:
        """The checksum of each file that is read.

        Raises:
            DataError: a file is missing or cannot be read.
        """
        sums = {}
        for name, path in self.files.items():
            try:
                sums[name] = file_sha256(path)
            except OSError as error:
                raise DataError(f"{path} cannot be read: {error.strerror}.") from None
        return sums


def find_source(name: str, config: TaskDataConfig, data: DataConfig, task: Task) -> Source:
    """The source of a task's records: its file, else its dataset, else the defaults.

    A built-in task without a setting takes its public dataset where that is found in the data folder,
    else the built-in sample. Another task takes its `load_custom_dataset`. With `data.repair_encoding`
    what is read is repaired.

    Raises:
        ConfigError: the dataset's name is unknown, or its type is not the task's.
        DataError: a file or the data folder is missing, or the task has no data at all.
    """
    source = _found(name, config, data, task)
    return replace(source, read=repaired(source.read)) if data.repair_encoding else source


def _found(name: str, config: TaskDataConfig, data: DataConfig, task: Task) -> Source:
    if config.file:
        return _own_files(name, config, task)
    if config.dataset == "sample":
        return _sample(name, "chosen in the recipe")
    folder, setting = data_folder(data)
    if config.dataset:
        return _public(_dataset(name, config.dataset, task), folder, setting)
    if name not in BUILT_IN_TASKS:
        return _plugin(task)
    return _default(name, folder, setting)


def data_folder(data: DataConfig) -> tuple[Path, str]:
    """The public datasets' folder, and the setting it comes from ("" for the default)."""
    if data.dir:
        return Path(data.dir), "data.dir"
    if os.environ.get("FINTUNE_DATA_DIR"):
        return Path(os.environ["FINTUNE_DATA_DIR"]), "FINTUNE_DATA_DIR"
    return Path(DEFAULT_DIR), ""


def _dataset(name: str, dataset: str, task: Task) -> Dataset:
    key = f"data.tasks.{name}.dataset"
    if dataset not in DATASETS:
        near = difflib.get_close_matches(dataset, [*DATASETS, "sample"], n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known are: sample, {', '.join(DATASETS)}"
        raise ConfigError(f"{key} names the unknown dataset '{dataset}'; {hint}")
    found = DATASETS[dataset]
    if found.type != task.type:
        fitting = [other.name for other in DATASETS.values() if other.type == task.type]
        raise ConfigError(
            f"{key} is '{dataset}', which is for {found.type} tasks, but {name} is a {task.type} task; "
            f"for that there are: {', '.join(fitting)}"
        )
    return found


def _default(name: str, folder: Path, setting: str) -> Source:
    dataset = DATASETS[DEFAULTS[name]]
    if setting and not any((folder / file).exists() for other in DATASETS.values() for file in other.paths):
        what = "holds none of the public datasets" if folder.is_dir() else "is no folder"
        raise DataError(
            f"{setting} is {folder}, which {what}: correct it, run  fintune data download,  or unset it "
            "to use the built-in sample."
        )
    if not any((folder / file).exists() for file in dataset.paths):
        return _sample(name, f"there is no {dataset.paths[0]} in {folder}")
    return _public(dataset, folder, setting)


def _public(dataset: Dataset, folder: Path, setting: str) -> Source:
    missing = [file for file in dataset.paths if not (folder / file).is_file()]
    if missing:
        where = f"{folder} ({setting})" if setting else f"{folder} (set another with data.dir)"
        raise DataError(
            f"Dataset {dataset.name} needs {', '.join(missing)}, which is missing from {where}: "
            f"run  fintune data download --dataset {dataset.name},  or copy it there."
        )
    return Source(
        dataset=dataset.name,
        home=dataset.home,
        licence=dataset.licence,
        read=lambda: dataset.read(folder),
        files={file: folder / file for file in dataset.paths},
    )


def _sample(name: str, note: str) -> Source:
    def read() -> Iterator[Record | Dropped]:
        from fintune.data.sample import sample_records

        yield from sample_records(name)

    return Source(SAMPLE, "fintune.data.sample", "Apache-2.0", read, note=note)


def _own_files(name: str, config: TaskDataConfig, task: Task) -> Source:
    given = {"": config.file, "validation": config.validation_file, "test": config.test_file}
    paths = {split: Path(path) for split, path in given.items() if path}
    for split, path in paths.items():
        if not path.is_file():
            key = f"data.tasks.{name}.{f'{split}_file' if split else 'file'}"
            raise DataError(f"There is no file {path} (named by {key}; looked for it from {Path.cwd()}).")

    def read() -> Iterator[Record | Dropped]:
        from fintune.data.readers.own_file import read_own_file

        for split, path in paths.items():
            yield from read_own_file(path, task, config.columns, f"data.tasks.{name}.columns", split or None)

    files = {str(path): path for path in paths.values()}
    return Source(str(config.file), str(config.file), "your own", read, files)


def _plugin(task: Task) -> Source:
    try:
        rows = task.load_custom_dataset()
    except NotImplementedError:
        raise DataError(
            f"Task {task.name} has no data: name a file with data.tasks.{task.name}.file, or a public "
            f"dataset with data.tasks.{task.name}.dataset."
        ) from None

    def read() -> Iterator[Record | Dropped]:
        from fintune.data.readers.own_file import record_of

        for number, row in enumerate(rows, start=1):
            yield record_of(row, task, f"{task.name}:{number}", None)

    content = hashlib.sha256(json.dumps(rows, default=str, sort_keys=True).encode()).hexdigest()
    return Source(f"{task.name} (plug-in)", type(task).__module__, "the plug-in's", read, content=content)


def list_datasets(data_dir: str | None = None, say: Callable[[str], None] = print) -> None:
    """Show every public dataset: its task type, licence and home, and whether its files are found."""
    folder, _ = data_folder(DataConfig(dir=data_dir))
    task_of = {dataset: task for task, dataset in DEFAULTS.items()}
    say(f"{'dataset':<23} {'type':<15} {'default of':<14} {'found':<6} licence; home")
    for dataset in DATASETS.values():
        found = [(folder / path).is_file() for path in dataset.paths]
        state = "yes" if all(found) else "in part" if any(found) else "no"
        say(
            f"{dataset.name:<23} {dataset.type:<15} {task_of.get(dataset.name, '-'):<14} {state:<6} "
            f"{dataset.licence}; {dataset.home}"
        )
    say(f"{'sample':<23} {'all five tasks':<15} {'-':<14} {'yes':<6} Apache-2.0; built in")
    say(f"Looked in {folder}.")
