"""The public datasets fintune can read: descriptions, download addresses, and checksums."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, TypeAdapter

from fintune.data.records import Dropped
from fintune.errors import ConfigError
from fintune.tasks.base import Record

View = Literal["", "forecast", "nowcast"]
_STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class Origin:
    """A pinned source of a file: a web address, or a file of a dataset on the hub."""

    __pydantic_config__ = _STRICT
    url: str = ""
    hub: tuple[str, str, str] | None = None
    """Instead of `url`: the dataset's id on the hub, the full commit hash, the path in it."""
    sha256: str | None = None
    """The checksum of the download; None if unknown."""
    member: str = ""
    """The pattern of the one member to extract, if the download is an archive."""
    encoding: str = "utf-8-sig"
    """The member's encoding; it is stored as UTF-8."""

    @property
    def address(self) -> str:
        if self.hub is None:
            return self.url
        endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
        repository, revision, path = self.hub
        return f"{endpoint}/datasets/{repository}/resolve/{revision}/{path}"


@dataclass(frozen=True)
class RawFile:
    """A file of a dataset, by its path below the data folder."""

    __pydantic_config__ = _STRICT
    path: str
    sha256: str | None
    """The file's checksum when its reader was tested; None if no copy was available."""
    upstream: str | None = None
    """Its path in the dataset's repository; None for an archive of the whole repository."""
    others: tuple[Origin, ...] = ()
    """Other sources, tried in this order after the repository."""
    optional: bool = False
    """Read if present; the dataset is usable without it."""


@dataclass(frozen=True)
class Dataset:
    """A public dataset: its description, and the reader for its files."""

    __pydantic_config__ = _STRICT
    name: str
    title: str
    type: str
    """The type of the tasks it can serve."""
    licence: str
    home: str
    reader: str
    """`module:function` below `fintune.data.raw.readers`."""
    repository: str
    """The GitHub repository its files are downloaded from."""
    commit: str
    files: tuple[RawFile, ...]
    commercial: bool | None = None
    """Whether its licence allows commercial use; None if it does not say."""
    view: View = ""
    """forecast: the text was known before its target; nowcast: it may not have been."""
    labels: tuple[str, ...] = ()
    """Labels of a classification dataset."""

    def url(self, file: RawFile) -> str:
        """A file's address, pinned to a commit."""
        if file.upstream is None:
            return f"https://codeload.github.com/{self.repository}/tar.gz/{self.commit}"
        return f"https://raw.githubusercontent.com/{self.repository}/{self.commit}/{file.upstream}"

    def origins(self, file: RawFile) -> list[Origin]:
        """The sources of a file, in the order to try them.

        The repository comes first, because its checksum is known. GitHub may repack an archive of a whole
        repository, so that checksum is not.
        """
        first = Origin(self.url(file), sha256=file.sha256 if file.upstream else None)
        return [*([first] if self.repository else []), *file.others]

    @property
    def paths(self) -> list[str]:
        """The required files."""
        return [file.path for file in self.files if not file.optional]

    def found(self, folder: Path) -> list[str]:
        """The files to read: the required ones, and the optional ones that exist."""
        return [file.path for file in self.files if not file.optional or (folder / file.path).is_file()]

    def read(self, folder: Path) -> Iterator[Record | Dropped]:
        """The records of the files below a data folder."""
        module, function = self.reader.split(":")
        reader = getattr(importlib.import_module(f"fintune.data.raw.readers.{module}"), function)
        yield from reader(*(folder / path for path in self.found(folder)))


def _datasets() -> dict[str, Dataset]:
    """The entries of `datasets.yaml` by name; `view_of` reads another entry's files for another task."""
    import yaml

    entries = yaml.safe_load(Path(__file__).with_name("datasets.yaml").read_text(encoding="utf-8"))
    for name, entry in entries.items():
        base = entries.get(entry.pop("view_of", None), {})
        entries[name] = {**base, "name": name, **entry}
    return TypeAdapter(dict[str, Dataset]).validate_python(entries)


DATASETS = _datasets()
"""The public datasets, in the order of `datasets.yaml`."""

SAMPLE = "built-in sample"
"""The name in tables of the sample that comes with fintune."""

DEFAULTS = {
    "sentiment": "financial_phrasebank",
    "headline": "twitter_financial_news",
    "summarization": "ectsum",
    "qa": "financial_qa_10k",
    "regression": "stocknet",
}
"""The public dataset of each built-in task."""

COMMERCIAL_DEFAULTS = {"sentiment": "twitter_sentiment"}
"""The stand-in for a built-in task's dataset that does not allow commercial use."""


def check_views(names: Iterable[str]) -> None:
    """Refuse a forecast beside a nowcast: their figures must never be in one table.

    Args:
        names: the datasets of a recipe's tasks; names of other sources are ignored.

    Raises:
        ConfigError: there are two views among them.
    """
    first: dict[str, str] = {}
    for name in names:
        if name in DATASETS and (view := DATASETS[name].view):
            first.setdefault(view, name)
    if len(first) > 1:
        (one, name), (other, second) = list(first.items())[:2]
        raise ConfigError(
            f"data.tasks mixes two views: {name} is a {one}, {second} a {other}, and a table must not hold "
            "both: use a separate recipe for each."
        )
