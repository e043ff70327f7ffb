"""Files written whole or not at all: a killed process or a full disk leaves the old file as it was."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import glob
import hashlib
import json
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from fintune.errors import ConfigError, DataError, FintuneError


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
    _sweep(path.absolute())
    staging = _beside(path, "new")
    try:
        with staging.open("xb") as stream, held(staging):
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


def json_line(value: Any) -> str:
    """A value as one line of JSON, with its end."""
    return json.dumps(value, ensure_ascii=False) + "\n"


def write_jsonl(path: str | Path, rows: list[dict[str, Any]]) -> Path:
    """Write one JSON object a line, atomically."""
    return atomic_write(path, "".join(map(json_line, rows)))


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """A folder to fill; it takes the place of `path` when the block ends well, and vanishes when not."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    recover(path)
    staging = _beside(path, "new")
    staging.mkdir()
    try:
        with held(staging):
            yield staging
            replace_folder(staging, path)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def replace_folder(new: Path, old: Path) -> None:
    """Put `new` in the place of `old`, which may not exist; `old` is whole at every moment.

    Where the system cannot swap two folders, `old` is absent for a moment; of a process that is killed then
    `recover` puts it back.
    """
    if not old.exists():
        os.replace(new, old)
    elif _swap(new, old):
        shutil.rmtree(new, ignore_errors=True)
    else:
        aside = _beside(old, "old")
        with held(old):
            os.replace(old, aside)
            os.replace(new, old)
        shutil.rmtree(aside)


def recover(path: str | Path) -> None:
    """Put a folder back that a killed process had set aside, and remove what others left beside it."""
    path = Path(path).absolute()
    set_aside = filter(abandoned, path.parent.glob(f".{glob.escape(path.name)}.*.old"))
    with contextlib.suppress(FileNotFoundError):  # another process is quicker
        for aside in sorted(set_aside, key=os.path.getctime, reverse=True):
            if path.exists():
                shutil.rmtree(aside, ignore_errors=True)
            else:
                os.replace(aside, path)
    _sweep(path)


def _beside(path: Path, kind: str) -> Path:
    """A name of its own: two containers on one volume may both be process 1."""
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}.{kind}")


@functools.lru_cache(1024)
def _sweep(path: Path) -> None:
    """Remove what killed processes left half-written beside a path; once a process."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.new"):
        if abandoned(left, YOUNG):
            with contextlib.suppress(OSError):
                shutil.rmtree(left) if left.is_dir() else left.unlink()


YOUNG, OLD = 60.0, 86_400.0
"""Seconds: what is younger may not be locked yet; without locks what is older is nobody's."""


def abandoned(path: Path, least: float = 0.0) -> bool:
    """Whether the process that made it is gone: nobody has it `held`, or it is a day old.

    Args:
        least: seconds; what is younger may not be held yet.
    """
    try:
        age = time.time() - path.stat().st_ctime
        import fcntl

        found = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(found, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            os.close(found)
    except (BlockingIOError, FileNotFoundError):
        return False
    except (ImportError, OSError):  # no locks here
        return age > OLD
    return age >= least


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """A lock on a file or folder itself, which says that it is in use, and ends with this process."""
    try:
        import fcntl

        found = os.open(path, os.O_RDONLY)
    except (ImportError, OSError):  # Windows
        yield
        return
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(found, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(found)


def _swap(one: Path, other: Path) -> bool:
    """Exchange two folders in one step, where the system and the file system can: Linux's RENAME_EXCHANGE."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    here, exchange = -100, 2
    return bool(rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0)


def replace_files(new: Path, old: Path, first: str, last: str) -> None:
    """Move the files of `new` over those of `old`, in the order of two names; `new` vanishes.

    Other files of `old` stay, and every file is whole. Where `first` says what `last` must be, a folder that
    was left half-way is known by it.
    """
    old.mkdir(parents=True, exist_ok=True)
    for path in sorted(new.iterdir(), key=lambda path: (path.name != first, path.name == last)):
        os.replace(path, old / path.name)
    new.rmdir()


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a disk, a quota, or a file's allowed size that is used up."""


def disk_full(error: BaseException) -> bool:
    """Whether an error, perhaps of a library that wraps the system's own, says that a disk is full."""
    # safetensors and torch.save wrap it.
    signs = ("No space left", "os error 28", "File too large", "file write failed", "iostream error")
    return getattr(error, "errno", None) in FULL or any(sign in str(error) for sign in signs)


def refuse_small_disk(folder: Path, needed: int, what: str, then: str = "Free some space.") -> None:
    """Raise a FintuneError where a folder's disk has less room than `needed` bytes."""
    whole = folder.absolute()
    free = shutil.disk_usage(next(p for p in (whole, *whole.parents) if p.exists())).free
    if free < needed:
        raise FintuneError(
            f"The disk of {folder} is full: {what} needs about {_size(needed)}, and {_size(free)} are free; "
            f"{_size(needed - free)} are missing. {then}"
        )


def _size(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"


@contextlib.contextmanager
def room_for(folder: Path, needed: int, what: str, then: str) -> Iterator[None]:
    """Say of a disk that becomes full in the block what is full, how much is missing, and `then`."""
    try:
        yield
    except Exception as error:
        if not disk_full(error):
            raise
        then = f"Nothing that was whole is lost. Free some space. {then}"
        refuse_small_disk(folder, needed, what, then)
        raise FintuneError(
            f"The disk of {folder}, or your share of it, is full ({error}): {what} needs about "
            f"{_size(needed)}. {then}"
        ) from error


def like_neighbours(folder: Path) -> None:
    """Give a folder's safetensors, written for their owner alone, the mode of the folder's other files."""
    files = [path for path in folder.iterdir() if path.is_file()]
    modes = [path.stat().st_mode & 0o777 for path in files if path.suffix != ".safetensors"]
    for path in files:
        if modes and path.suffix == ".safetensors":
            path.chmod(max(modes))


class Lock:
    """A lock on a folder, between processes: on a file beside it, and gone with the process that holds it.

    One of the kind `lock` is held alone, and names its holder; one of another kind may be shared. Where the
    file cannot be made, or its file system has no locks, everyone gets the lock.
    """

    def __init__(self, folder: Path, kind: str) -> None:
        self.kind = kind
        whole = folder.resolve()
        self.path = whole.parent / f".{whole.name}.{kind}"
        self._stream: TextIO | None = None

    def take(self, *, shared: bool = False, wait: bool = False) -> bool:
        """Whether this process has the lock now: alone, or with others who share it."""
        try:
            import fcntl
        except ImportError:  # Windows
            return True
        how = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
        while True:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._stream = self._stream or self.path.open("a+", encoding="utf-8")
                fcntl.flock(self._stream, how)
            except BlockingIOError:
                if self.kind == "lock":
                    self._close()  # so that `release` removes no other's file
                return False
            except OSError:
                return True
            if os.fstat(self._stream.fileno()).st_nlink:
                break
            self._close()  # the holder before has removed the file: take its successor
        if self.kind == "lock":
            self._stream.truncate(0)
            self._stream.write(f"process {os.getpid()}, since {datetime.now():%H:%M}")
            self._stream.flush()
        return True

    @property
    def holder(self) -> str:
        """Who has it, as they say."""
        try:
            return self.path.read_text(encoding="utf-8")
        except OSError:
            return "another process"

    def release(self) -> None:
        """Let others have it."""
        if self._stream:
            if self.kind == "lock":
                self.path.unlink(missing_ok=True)
            self._close()

    def _close(self) -> None:
        if self._stream:
            self._stream.close()
            self._stream = None

    def __del__(self) -> None:
        self._close()


def file_sha256(path: str | Path) -> str:
    """The SHA-256 of a file's bytes, in hex."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_json(path: str | Path, limit: int = 256_000_000) -> Any:
    """The value of a JSON file of at most `limit` bytes.

    Raises:
        DataError: the file is missing, too large, or no JSON.
    """
    try:
        with Path(path).open("rb") as stream:
            content = stream.read(limit + 1)
        if len(content) > limit:
            raise DataError(f"{path} is damaged: it has more than {limit:,} bytes.")
        return json.loads(content.decode("utf-8"))
    except FileNotFoundError:
        raise DataError(f"There is no file {path}.") from None
    except RecursionError:
        raise DataError(f"{path} is damaged: its JSON is nested too deeply.") from None
    except ValueError as error:  # of JSON, UTF-8, or a number of too many digits
        raise DataError(f"{path} is damaged: it is not valid JSON ({error}).") from None


def known_sha256(path: str | Path) -> str:
    """`file_sha256`, computed once a process for each state of a file."""
    return _sha256(Path(path), stamp(Path(path)))


@functools.lru_cache(256)
def _sha256(path: Path, stamped: object) -> str:
    return file_sha256(path)


def stamp(*paths: Path) -> tuple[tuple[int, ...], ...]:
    """What changes when one of these files does, or comes or goes: no byte of them is read."""
    found: list[tuple[int, ...]] = []
    for path in paths:
        try:
            info = path.stat()
        except OSError:
            found.append((0,))
        else:
            found.append((info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns))
    return tuple(found)
