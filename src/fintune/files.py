"""Files written whole or not at all: a killed process or a full disk leaves the old file as it was."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from fintune.errors import ConfigError, DataError


def atomic_write(path: str | Path, content: str | bytes) -> Path:
    """Write a file through a temporary one beside it; parents are made."""
    with atomic_file(path) as stream:
        stream.write(content.encode("utf-8") if isinstance(content, str) else content)
    return Path(path)


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[BinaryIO]:
    """A file to fill; it takes the place of `path` when the block ends well, and vanishes when not."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with staging.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(staging, path)
    finally:
        staging.unlink(missing_ok=True)


def writable(path: str | Path, endings: Sequence[str], name: str = "--output_file") -> Path:
    """A file to be written, refused before the work rather than after it; its folder is made.

    Raises:
        ConfigError: it has none of the endings, is a folder, or its folder cannot be written to.
    """
    path = Path(path)
    if path.is_dir():
        raise ConfigError(f"{name} is {path}, which is a folder: name a file that ends in {endings[0]}.")
    if path.suffix not in endings:
        raise ConfigError(f"{name} must end in {' or '.join(endings)}, got {path}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ConfigError(
            f"{name} is {path}, and its folder cannot be written to ({error.strerror}): name another."
        ) from None
    return path


def write_json(path: str | Path, value: Any) -> Path:
    """Write a value as indented JSON, atomically."""
    return atomic_write(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_jsonl(path: str | Path, rows: list[dict[str, Any]]) -> Path:
    """Write one JSON object a line, atomically."""
    return atomic_write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """A folder to fill; it takes the place of `path` when the block ends well, and vanishes when not."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".{path.name}.{os.getpid()}")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    try:
        yield staging
        replace_folder(staging, path)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def replace_folder(new: Path, old: Path) -> None:
    """Put `new` in the place of `old`, which may not exist; `old` is whole at every moment but one rename."""
    if old.exists():
        aside = old.with_name(f".{old.name}.old.{os.getpid()}")
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(old, aside)
        os.replace(new, old)
        shutil.rmtree(aside)
    else:
        os.replace(new, old)


def replace_files(new: Path, old: Path, last: str) -> None:
    """Move the files of `new` over those of `old`, the one named `last` at the end; `new` vanishes.

    Other files of `old` stay. What `last` is found with is whole, and so is every file.
    """
    old.mkdir(parents=True, exist_ok=True)
    for path in sorted(new.iterdir(), key=lambda path: path.name == last):
        os.replace(path, old / path.name)
    new.rmdir()


def file_sha256(path: str | Path) -> str:
    """The SHA-256 of a file's bytes, in hex."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_json(path: str | Path) -> Any:
    """The value of a JSON file.

    Raises:
        DataError: the file is missing or is no JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"There is no file {path}.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is damaged: it is not valid JSON ({error}).") from None
