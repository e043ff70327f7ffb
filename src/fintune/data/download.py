"""Dataset names in, raw files below a folder out: copied from a data folder at hand, else downloaded.

Every file is checked against its known checksum and put in its place whole or not at all.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from fintune.data.registry import DATASETS, Dataset, RawFile
from fintune.errors import DataError
from fintune.files import file_sha256

TIMEOUT_SECONDS = 5
_CHUNK_BYTES = 2**20


class _Unreachable(Exception):
    """No server gave the file; asking for the next one would only take time."""


def download(
    names: Iterable[str] | None = None,
    target_dir: str | Path = "data/raw",
    say: Callable[[str], None] = print,
) -> list[str]:
    """Get the raw files of datasets (default: all).

    Files that are there already are checked and kept. FINTUNE_DATA_DIR, where it is set and holds a
    file, is copied from; other files come from their pinned upstream.

    Returns:
        The names of the datasets that could not be got, because no server was reached; `say` has told
        where to put their files, and the built-in sample serves until then.

    Raises:
        DataError: a name is unknown, a file has another checksum or is no longer upstream, or it cannot
            be written.
    """
    names = list(names or DATASETS)
    for name in names:
        if name not in DATASETS:
            raise DataError(f"There is no dataset '{name}'; there are: {', '.join(DATASETS)}.")
    target = Path(target_dir)
    at_hand = os.environ.get("FINTUNE_DATA_DIR")
    missing: list[str] = []
    for dataset in (DATASETS[name] for name in names):
        wanted = [file for file in dataset.files if not _have(target / file.path, file)]
        done = set()
        try:
            for file in wanted:
                if at_hand and (local := Path(at_hand) / file.path).is_file():
                    _store(file, target / file.path, _read(local), str(local))
                    done.add("copied")
                elif missing:
                    raise _Unreachable
                else:
                    url = dataset.url(file)
                    _store(file, target / file.path, _receive(url), url)
                    done.add("downloaded")
        except _Unreachable:
            missing.append(dataset.name)
        else:
            state = " and ".join(sorted(done)) or "already there"
            say(f"{dataset.name}: {state}, {', '.join(dataset.paths)} in {target} ({dataset.licence}).")
    if missing:
        say(_advice([DATASETS[name] for name in missing], target))
    return missing


def _advice(datasets: list[Dataset], target: Path) -> str:
    names = ", ".join(dataset.name for dataset in datasets)
    lines = [f"  {target / file.path}  from {data.url(file)}" for data in datasets for file in data.files]
    return (
        f"No server was reached, so these were not downloaded: {names}. Put the files in their places "
        "yourself, or set FINTUNE_DATA_DIR to a folder that holds them; the built-in sample is used "
        "meanwhile.\n" + "\n".join(lines)
    )


def _have(path: Path, file: RawFile) -> bool:
    """Whether a genuine file is in its place; an archive that a server packs anew has another checksum."""
    return path.is_file() and (file.upstream is None or file_sha256(path) == file.sha256)


def _store(file: RawFile, path: Path, chunks: Iterator[bytes], source: str) -> None:
    """Write the chunks to `path` if their checksum is right."""
    staging = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with staging.open("wb") as stream:
            for chunk in chunks:
                stream.write(chunk)
        if file.upstream is not None and file_sha256(staging) != file.sha256:
            raise DataError(
                f"{source} is not the file this version knows (its checksum differs), so it was not "
                f"stored: get {path.name} from another place."
            )
        os.replace(staging, path)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror or error}.") from None
    finally:
        staging.unlink(missing_ok=True)


def _read(path: Path) -> Iterator[bytes]:
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            yield chunk


def _receive(url: str) -> Iterator[bytes]:
    import http.client
    import urllib.error
    import urllib.request

    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response:
            while chunk := response.read(_CHUNK_BYTES):
                yield chunk
    except urllib.error.HTTPError as error:
        if error.code in (404, 410):
            raise DataError(f"{url} is no longer there: get the file from another place.") from None
        raise _Unreachable from None
    except (OSError, http.client.HTTPException):
        raise _Unreachable from None
