"""Get datasets' raw files into a folder: copied from a local data folder, or else downloaded.

Every file is checked against its known checksum and written atomically. Downloads are recorded in
`downloads.json` beside the files, so that a later call recognizes them.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fintune.data.raw.fetch import FetchError, Limits, OfflineError, fetch, fetch_hub, host_of, unreachable
from fintune.data.raw.readers.archives import members
from fintune.data.raw.registry import DATASETS, Dataset, Origin, RawFile
from fintune.errors import DataError
from fintune.files import atomic_file, atomic_write, file_sha256, read_json, write_json

if TYPE_CHECKING:
    from filelock import BaseFileLock

DEFAULT_DIR = "data/raw"
RECORD = "downloads.json"
QUICK = Limits(connect_seconds=1.2, read_seconds=10, file_seconds=300, attempts=3, pause_seconds=0.5)
"""For a run that can do without: if offline, it notices within three seconds."""


@dataclass
class Outcome:
    """The datasets that could not be obtained, each with the reason."""

    unreached: dict[str, str] = field(default_factory=dict)
    """Those whose servers could not be reached."""
    failed: dict[str, str] = field(default_factory=dict)
    """Those for which no source gave a correct file."""


def download(
    names: Iterable[str] | None = None,
    target_dir: str | Path = DEFAULT_DIR,
    say: Callable[[str], None] = print,
    limits: Limits | None = None,
) -> list[str]:
    """Get the raw files of datasets (all by default, or with the name `all`).

    Existing files are checked and kept. If FINTUNE_DATA_DIR is set and holds a file, it is copied from there;
    other files come from their pinned upstream. FINTUNE_OFFLINE=1 contacts no server.

    Returns:
        The names of datasets that are missing because no server was reached; `say` has told where to put
        their files, and the built-in sample is used until then.

    Raises:
        DataError: a name is unknown, a file has another checksum or is no longer upstream, or it cannot be
            written. The other datasets are complete nevertheless.
    """
    outcome = get(names, target_dir, say, limits or Limits())
    if outcome.unreached:
        say(_advice(outcome.unreached, Path(target_dir)))
    if outcome.failed:
        raise DataError("\n".join(outcome.failed.values()))
    return list(outcome.unreached)


def get(
    names: Iterable[str] | None,
    target_dir: str | Path,
    say: Callable[[str], None],
    limits: Limits,
    *,
    quick: bool = False,
) -> Outcome:
    """Like `download`, but returns what went wrong.

    Args:
        quick: contact no further server after one that does not answer.
    """
    names = list(names or ["all"])
    if "all" in names:
        names = list(DATASETS)
    for name in names:
        if name not in DATASETS:
            raise DataError(f"There is no dataset '{name}'; valid are: all, {', '.join(DATASETS)}.")
    store = _Store(Path(target_dir), limits, quick, say)
    outcome = Outcome()
    for dataset in (DATASETS[name] for name in dict.fromkeys(names)):
        try:
            done = {how for file in dataset.files if not file.optional and (how := store.get(dataset, file))}
            without = store.get_optional(dataset)
        except OfflineError as error:
            outcome.unreached[dataset.name] = str(error)
        except FetchError as error:
            outcome.failed[dataset.name] = f"{dataset.name} could not be downloaded: {error}."
        else:
            state = " and ".join(sorted(done)) or "already there"
            files = ", ".join(dataset.found(Path(target_dir)))
            say(f"{dataset.name}: {state}, {files} in {target_dir} ({dataset.licence}){without}.")
    return outcome


def _advice(unreached: dict[str, str], target: Path) -> str:
    lines = []
    for dataset in (DATASETS[name] for name in unreached):
        for file in dataset.files:
            places = [
                origin.address + (f" (its member {_plain(origin.member)})" if origin.member else "")
                for origin in dataset.origins(file)
            ]
            lines.append(f"  {target / file.path}  from {' or '.join(places)}")
    reasons = dict.fromkeys(reason for why in unreached.values() for reason in why.split("; "))
    return (
        f"No server was reached ({'; '.join(reasons)}), so these were not "
        f"downloaded: {', '.join(unreached)}. Place these files here, or set FINTUNE_DATA_DIR to a folder "
        "that holds them; until then the built-in sample is used.\n" + "\n".join(lines)
    )


def _plain(pattern: str) -> str:
    return re.sub(r"\\(.)", r"\1", pattern)


class _Store:
    """The folder of raw files, and what is known about the servers."""

    def __init__(self, target: Path, limits: Limits, quick: bool, say: Callable[[str], None]) -> None:
        self.target, self.limits, self.quick, self.say = target, limits, quick, say
        self.at_hand = os.environ.get("FINTUNE_DATA_DIR")
        self.hosts: dict[str, str] = {}
        """Server → why it does not answer; "" if it does."""
        self.record = self._read_record()

    def get(self, dataset: Dataset, file: RawFile) -> str:
        """Put a file in its place; returns "" if it was there, else "copied" or "downloaded".

        Raises:
            OfflineError: only the network is at fault.
            FetchError: the answers of all sources.
            DataError: the folder cannot be written.
        """
        path = self.target / file.path
        complaints: list[str] = []
        unreached: list[str] = []
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.is_file():
                if not (problem := self._problem(file, path)):
                    return ""
                complaints.append(problem)
                self.say(f"{problem}, so it is fetched again.")
            if self.at_hand and (local := Path(self.at_hand) / file.path).is_file() and local != path:
                found, known = file_sha256(local), _known_sums(file)
                if not known or found in known or not file.upstream:
                    with local.open("rb") as stream, atomic_file(path) as copy:
                        shutil.copyfileobj(stream, copy)
                    return "copied"
                complaints.append(f"{local} has {_another_sum(found, known)}, so it was not copied")
            for origin in dataset.origins(file):
                try:
                    with _only_here(self.target):  # two processes would write to one partial file
                        if complaints or not path.is_file():  # else the other process has fetched it
                            self._receive(origin, path)
                    return "downloaded"
                except OfflineError as error:
                    unreached.append(str(error))
                except (FetchError, DataError) as error:  # DataError: an invalid archive
                    complaints.append(str(error).rstrip("."))
        except OSError as error:
            raise DataError(f"{path} cannot be written: {error.strerror or error}.") from None
        if not complaints:
            raise OfflineError("; ".join(dict.fromkeys(unreached)) or "it has no address")
        raise FetchError("; ".join(dict.fromkeys([*complaints, *unreached])))

    def get_optional(self, dataset: Dataset) -> str:
        """Get a dataset's optional files; returns a clause on the missing ones, "" if all are there."""
        lacking = []
        for file in dataset.files:
            if file.optional:
                try:
                    self.get(dataset, file)
                except (OfflineError, FetchError) as error:
                    lacking.append(f"{file.path} ({error})")
        return f"; without {', '.join(lacking)}" if lacking else ""

    def _problem(self, file: RawFile, path: Path) -> str:
        """Why an existing file is not the right one; "" if it is."""
        found = file_sha256(path)
        known = _known_sums(file)
        recorded = self.record.get(file.path, {}).get("sha256")
        if found in known or found == recorded:
            return ""
        if recorded:
            return f"{path} has changed since it was downloaded (its checksum was {recorded}, now {found})"
        # A GitHub archive that was put here by hand has a checksum of its own, so accept it.
        return f"{path} has {_another_sum(found, known)}" if known and file.upstream else ""

    def _receive(self, origin: Origin, path: Path) -> None:
        """Fetch, check, store and record a file."""
        self._refuse_unreachable(origin)
        part = path.with_name(path.name + ".part")
        if origin.hub:
            shutil.copyfile(fetch_hub(*origin.hub, origin.address, self.limits), part)
        else:
            # Resume an earlier partial file only if a checksum can tell whether the result is right.
            begun = part.is_file() and origin.sha256 is not None
            fetch(origin.url, part, self.limits, resume=begun)
            if begun and file_sha256(part) != origin.sha256:
                fetch(origin.url, part, self.limits, resume=False)
        try:
            _refuse_wrong(origin, part, path.name)
            if origin.member:
                atomic_write(path, _member(origin, part))
            else:
                os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
        self.record = self._read_record()  # another process may have added to it
        self.record[path.relative_to(self.target).as_posix()] = {
            "url": origin.address,
            "sha256": file_sha256(path),
            "bytes": path.stat().st_size,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        write_json(self.target / RECORD, self.record)

    def _read_record(self) -> dict[str, Any]:
        try:
            record = read_json(self.target / RECORD)
        except DataError:  # none yet, or damaged: the files' known checksums still apply
            record = None
        return record if isinstance(record, dict) else {}

    def _refuse_unreachable(self, origin: Origin) -> None:
        from huggingface_hub import is_offline_mode

        if is_set("FINTUNE_OFFLINE"):
            raise OfflineError("FINTUNE_OFFLINE is set")
        if origin.hub and is_offline_mode():
            return  # the hub's client then uses only its cache
        host = host_of(origin.address)
        if host not in self.hosts:
            gone = next(filter(None, self.hosts.values()), "") if self.quick else ""
            self.hosts[host] = gone or unreachable(origin.address, self.limits)
        if self.hosts[host]:
            raise OfflineError(self.hosts[host])


def _refuse_wrong(origin: Origin, part: Path, name: str) -> None:
    """Raise a FetchError if the received file is not the expected one."""
    if origin.sha256:
        if (found := file_sha256(part)) != origin.sha256:
            raise FetchError(
                f"{origin.address} has {_another_sum(found, {origin.sha256})}, so it was not stored"
            )
    elif name.endswith((".tar.gz", ".zip")):
        try:
            for _ in members(part, "(?!)"):  # read to the end, to check that it is complete and not hostile
                pass
        except DataError as error:
            raise FetchError(f"{origin.address} gave no valid archive: {error}".rstrip(".")) from None
    elif _is_web_page(part):  # such as a network's log-in page
        raise FetchError(f"{origin.address} gave a web page instead of the file")


def _member(origin: Origin, archive: Path) -> str:
    """The text of the one wanted member of an archive."""
    texts = [text for _, text in members(archive, origin.member, origin.encoding)]
    if len(texts) != 1:
        raise FetchError(f"{origin.address} holds {len(texts)} files {_plain(origin.member)}, not one")
    return texts[0]


def _only_here(target: Path) -> BaseFileLock:
    """A lock among this machine's processes that download into a folder."""
    import tempfile

    from filelock import FileLock

    name = hashlib.sha256(str(target.resolve()).encode()).hexdigest()[:16]
    return FileLock(Path(tempfile.gettempdir()) / f"fintune-download-{name}.lock")


def is_set(variable: str) -> bool:
    """Whether an environment variable means yes, as in the hub's client."""
    return os.environ.get(variable, "").upper() in {"1", "ON", "YES", "TRUE"}


def _known_sums(file: RawFile) -> set[str]:
    """The checksums of a genuine file: as tested, or as another source has it."""
    sums = {origin.sha256 for origin in file.others if not origin.member}
    return {known for known in (file.sha256, *sums) if known}


def _is_web_page(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(1000).lstrip().lower().startswith((b"<!doctype html", b"<html"))


def _another_sum(found: str, known: set[str]) -> str:
    return f"another checksum than it should ({found} instead of {' or '.join(sorted(known))})"
