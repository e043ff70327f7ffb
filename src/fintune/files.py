"""Write files atomically: if a process is killed or the disk is full, the old file stays as it was."""

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
    """Write a file through a temporary one beside it; creates parent folders."""
    with atomic_file(path) as stream:
        stream.write(content.encode("utf-8") if isinstance(content, str) else content)
    return Path(path)


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[BinaryIO]:
    """A file to fill; it replaces `path` if the block succeeds, and is deleted if not."""
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
    """Check an output path before the work starts, and create its folder.

    Raises:
        ConfigError: it has none of the endings, is a folder, or its folder is not writable.
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
            f"{name} is {path}, but its folder cannot be written to ({error.strerror}): name another."
        ) from None
    return path


def write_json(path: str | Path, value: Any) -> Path:
    """Write a value as indented JSON, atomically."""
    return atomic_write(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def json_line(value: Any) -> str:
    """A value as one line of JSON, with its newline."""
    return json.dumps(value, ensure_ascii=False) + "\n"


def write_jsonl(path: str | Path, rows: list[dict[str, Any]]) -> Path:
    """Write one JSON object per line, atomically."""
    return atomic_write(path, "".join(map(json_line, rows)))


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """A folder to fill; it replaces `path` if the block succeeds, and is deleted if not."""
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
    """Put `new` in the place of `old`, which may not exist; `old` is complete at every moment.

    Where the system cannot swap two folders, `old` is briefly absent; if the process is killed then,
    `recover` restores it.
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
    """Restore a folder that a killed process had set aside, and remove leftovers beside it."""
    path = Path(path).absolute()
    set_aside = filter(abandoned, path.parent.glob(f".{glob.escape(path.name)}.*.old"))
    with contextlib.suppress(FileNotFoundError):  # another process was faster
        for aside in sorted(set_aside, key=os.path.getctime, reverse=True):
            if path.exists():
                shutil.rmtree(aside, ignore_errors=True)
            else:
                os.replace(aside, path)
    _sweep(path)


def _beside(path: Path, kind: str) -> Path:
    """A unique name: two containers on one volume may both be process 1."""
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}.{kind}")


@functools.lru_cache(1024)
def _sweep(path: Path) -> None:
    """Remove half-written leftovers of killed processes beside a path; once per process."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.new"):
        if abandoned(left, YOUNG):
            with contextlib.suppress(OSError):
                shutil.rmtree(left) if left.is_dir() else left.unlink()


YOUNG, OLD = 60.0, 86_400.0
"""Seconds. Younger files may not be locked yet; older files on a system without locks are abandoned."""


def abandoned(path: Path, least: float = 0.0) -> bool:
    """Whether the process that made it is gone: nobody holds its lock (`held`), or it is a day old.

    Args:
        least: seconds; a younger file may not be locked yet.
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
    except (ImportError, OSError):  # no file locks here
        return age > OLD
    return age >= least


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold a lock on a file or folder to mark it as in use; it ends with this process."""
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
    """Exchange two folders atomically, where system and file system can: Linux's RENAME_EXCHANGE."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    here, exchange = -100, 2
    return bool(rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0)


def replace_files(new: Path, old: Path, first: str, last: str) -> None:
    """Move the files of `new` over those of `old`, `first` first and `last` last; `new` is removed.

    Other files of `old` stay, and every file is complete. If `first` says what `last` must be, a folder that
    was left half-way can be recognized.
    """
    old.mkdir(parents=True, exist_ok=True)
    for path in sorted(new.iterdir(), key=lambda path: (path.name != first, path.name == last)):
        os.replace(path, old / path.name)
    new.rmdir()


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors for a full disk, an exhausted quota, or a file-size limit."""


def disk_full(error: BaseException) -> bool:
    """Whether an error, possibly wrapped by a library, says that a disk is full."""
    # safetensors and torch.save wrap the system's error.
    signs = ("No space left", "os error 28", "File too large", "file write failed", "iostream error")
    return getattr(error, "errno", None) in FULL or any(sign in str(error) for sign in signs)


def refuse_small_disk(folder: Path, needed: int, what: str, then: str = "Free some space.") -> None:
    """Raise a FintuneError if a folder's disk has less room than `needed` bytes."""
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
    """If the disk becomes full in the block, say what needed the room, how much, and `then`."""
    try:
        yield
    except Exception as error:
        if not disk_full(error):
            raise
        then = f"Complete files are intact. Free some space. {then}"
        refuse_small_disk(folder, needed, what, then)
        raise FintuneError(
            f"The disk of {folder}, or your share of it, is full ({error}): {what} needs about "
            f"{_size(needed)}. {then}"
        ) from error


def like_neighbours(folder: Path) -> None:
    """Give a folder's safetensors, written with mode 600, the mode of the folder's other files."""
    files = [path for path in folder.iterdir() if path.is_file()]
    modes = [path.stat().st_mode & 0o777 for path in files if path.suffix != ".safetensors"]
    for path in files:
        if modes and path.suffix == ".safetensors":
            path.chmod(max(modes))


class Lock:
    """A lock on a folder between processes: a file beside it, released when its process ends.

    A lock of the kind `lock` is exclusive and names its holder; other kinds may be shared. If the file
    cannot be created, or the file system has no locks, everyone gets the lock.
    """

    def __init__(self, folder: Path, kind: str) -> None:
        self.kind = kind
        whole = folder.resolve()
        self.path = whole.parent / f".{whole.name}.{kind}"
        self._stream: TextIO | None = None

    def take(self, *, shared: bool = False, wait: bool = False) -> bool:
        """Whether this process now has the lock: exclusively, or shared."""
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
                    self._close()  # so that `release` does not remove someone else's file
                return False
            except OSError:
                return True
            if os.fstat(self._stream.fileno()).st_nlink:
                break
            self._close()  # the previous holder has removed the file: open the new one
        if self.kind == "lock":
            self._stream.truncate(0)
            self._stream.write(f"process {os.getpid()}, since {datetime.now():%H:%M}")
            self._stream.flush()
        return True

    @property
    def holder(self) -> str:
        """The holder, as it describes itself."""
        try:
            return self.path.read_text(encoding="utf-8")
        except OSError:
            return "another process"

    def release(self) -> None:
        """Release the lock."""
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
        DataError: the file is missing, too large, or not JSON.
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
    except ValueError as error:  # not JSON, not UTF-8, or a number with too many digits
        raise DataError(f"{path} is damaged: it is not valid JSON ({error}).") from None


def known_sha256(path: str | Path) -> str:
    """`file_sha256`, cached per process until the file changes."""
    return _sha256(Path(path), stamp(Path(path)))


@functools.lru_cache(256)
def _sha256(path: Path, stamped: object) -> str:
    return file_sha256(path)


def stamp(*paths: Path) -> tuple[tuple[int, ...], ...]:
    """A value that changes when one of these files changes, appears or vanishes; reads no contents."""
    found: list[tuple[int, ...]] = []
    for path in paths:
        try:
            info = path.stat()
        except OSError:
            found.append((0,))
        else:
            found.append((info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns))
    return tuple(found)
