"""Files at any path that fsspec supports (local, s3://, gs://, memory://), and partitioned Parquet.

Paths in; streams, Arrow batches and whole files out. Knows no tasks or records. Messages about a path omit
its credentials.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from fintune.errors import DataError, FintuneError
from fintune.files import FULL, atomic_write

ROWS_PER_FILE = 4096
"""Rows per Parquet part: the most that a killed run loses."""
DONE = "_SUCCESS"
"""The empty file that marks a folder as complete; Parquet readers skip names that begin with `_`."""


def shown(path: str | Path) -> str:
    """A path for messages: a URL without user, password, query and fragment."""
    links = re.split(
        r"::(?=[\w+.-]+://)", os.fspath(path)
    )  # zip://member::https://user:password@host/archive
    return "::".join(_without_secrets(link) for link in links)


def _without_secrets(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url
    authority = rest.partition("/")[0]
    _, colon, port = authority.partition(":")
    if "@" in authority or (colon and ("@" in rest or not port.isdigit())):  # a password may hold a slash
        rest = rest.rpartition("@")[2] if "@" in rest else ""
    return scheme + separator + re.split(r"[?#]", rest)[0]


@dataclass(frozen=True)
class Location:
    """A file or folder (in an object store: a prefix) on a file system; it can be sent to another process."""

    fs: Any
    """An `fsspec.AbstractFileSystem`."""
    path: str
    """The path within `fs`, without protocol."""
    shown: str
    """Its name in messages."""

    @property
    def name(self) -> str:
        return self.path.rstrip("/").rpartition("/")[2]

    @property
    def suffix(self) -> str:
        """The ending in lower case, such as `.csv`."""
        return Path(self.name).suffix.lower()

    @property
    def local(self) -> Path | None:
        """The path on this machine's disk, if it is local."""
        return Path(self.path) if _protocol(self.fs) == "file" else None

    @property
    def shared(self) -> bool:
        """Whether other processes on this machine see it too."""
        return _protocol(self.fs) != "memory"

    def exists(self) -> bool:
        with _told(self, "found"):
            return bool(self.fs.exists(self.path))

    def is_file(self) -> bool:
        with _told(self, "found"):
            return bool(self.fs.isfile(self.path))

    def is_folder(self) -> bool:
        with _told(self, "found"):
            return bool(self.fs.isdir(self.path))

    def open(self) -> IO[bytes]:
        """Open it to read its bytes.

        Raises:
            DataError: it is missing or cannot be read.
        """
        with _told(self, "read"):
            return open(self.path, "rb") if self.local else self.fs.open(self.path, "rb")

    def size(self) -> int:
        """Its size in bytes; for a folder, of all its files."""
        with _told(self, "found"):
            if not self.is_folder():
                return int(self.fs.size(self.path))
        return sum(file.size() for file in self.files())

    def modified(self) -> str:
        """When it was last written, according to its file system; "" if unknown."""
        with _told(self, "found"):
            info = self.fs.info(self.path)
        return str(info.get("mtime") or info.get("LastModified") or info.get("etag") or "")

    def sha256(self) -> str:
        """The checksum of its bytes, in hex."""
        with self.open() as stream, _told(self, "read"):
            return hashlib.file_digest(stream, "sha256").hexdigest()  # type: ignore[arg-type]

    def write(self, content: bytes) -> None:
        """Write the file atomically; creates local parents."""
        if self.local:
            atomic_write(self.local, content)
            return
        with _told(self, "written"):
            self.fs.pipe_file(self.path, content)

    def put(self, file: Path) -> None:
        """Copy a local file here, atomically."""
        with _told(self, "written"):
            self.fs.put_file(str(file), self.path)

    @property
    def parent(self) -> Location:
        """The folder that holds it."""
        return Location(self.fs, self.path.rpartition("/")[0], self.shown.rpartition("/")[0] or ".")

    def child(self, name: str) -> Location:
        return Location(self.fs, f"{self.path.rstrip('/')}/{name}", f"{self.shown.rstrip('/')}/{name}")

    def files(self) -> list[Location]:
        """The files below it, sorted by path, without hidden ones and ones like `_SUCCESS`."""
        with _told(self, "listed"):
            found = sorted(self.fs.find(self.path))
        names = (path.removeprefix(self.path.rstrip("/")).lstrip("/") for path in found)
        return [self.child(name) for name in names if not re.search(r"(^|/)[._]", name)]


def locate(path: str | Path) -> Location:
    """The location of a path or URL; nothing is opened.

    Raises:
        DataError: the URL's protocol is unknown, or needs a package that is not installed.
    """
    from fsspec.core import url_to_fs
    from fsspec.implementations.local import LocalFileSystem

    text = os.fspath(path)
    if "://" not in text:
        return Location(LocalFileSystem(), os.path.abspath(text), text)
    protocol = text.partition("://")[0].rpartition("::")[2]
    try:
        fs, inner = url_to_fs(text)
    except ImportError as error:
        package = getattr(error.__cause__, "name", None) or getattr(error, "name", None) or f"for {protocol}"
        raise DataError(f"{shown(text)} needs the package {package}: run  pip install {package}") from None
    except Exception as error:  # each file system raises different errors
        if str(error).startswith("Protocol not known"):
            why = (
                f"the protocol {protocol} is unknown; give a plain path, s3://, gs:// or another of fsspec's"
            )
        else:
            why = _scrubbed(error, text)
        raise DataError(f"{shown(text)} cannot be used: {why}.") from None
    return Location(fs, inner, shown(text))


def parquet_dataset(file: Location, root: Location | None = None) -> Any:
    """A Parquet file, or those below a folder by path, as a `pyarrow.dataset.Dataset`; no rows are read.

    Args:
        root: the folder below which folder names (`year=2024/`) are columns; None is `file`, if a folder.

    Raises:
        DataError: there is no Parquet file, or one is damaged.
    """
    import pyarrow.dataset as pads

    folder = file.is_folder()
    files = [part for part in file.files() if part.suffix == ".parquet"] if folder else [file]
    if not files:
        raise DataError(f"{file.shown} holds no file that ends in .parquet.")
    base = root or (file if folder else None)
    with _told(file, "read as Parquet"):
        return pads.dataset(
            [part.path for part in files],
            filesystem=file.fs,
            format="parquet",
            partitioning="hive" if base else None,
            partition_base_dir=base.path if base else None,
        )


def refuse_full(folder: Location, key: str) -> None:
    """Raise a DataError if an output folder already holds files; `key` is the flag that names it."""
    if folder.exists() and folder.files():
        raise DataError(
            f"{key} is {folder.shown}, which holds files already: name another folder, or empty it."
        )


def write_parquet(
    folder: Location, schema: Any, tables: Iterable[Any], rows_per_file: int = ROWS_PER_FILE
) -> int:
    """Write tables as `part-00000.parquet`, … in order, each atomically, and `_SUCCESS` at the end.

    Args:
        schema: the `pyarrow.Schema` of all tables; without rows, one empty part is written with it.

    Returns:
        The number of rows.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    waiting: list[Any] = []
    count = parts = 0

    def write(table: Any) -> None:
        nonlocal parts
        buffer = pa.BufferOutputStream()
        pq.write_table(table, buffer, compression="zstd")
        folder.child(f"part-{parts:05}.parquet").write(buffer.getvalue().to_pybytes())
        parts += 1

    for table in tables:
        count += table.num_rows
        waiting.append(table)
        while sum(part.num_rows for part in waiting) >= rows_per_file:
            joined = pa.concat_tables(waiting)
            write(joined.slice(0, rows_per_file))
            waiting = [joined.slice(rows_per_file)]
    rest = pa.concat_tables([schema.empty_table(), *waiting])
    if rest.num_rows or not parts:
        write(rest)
    folder.child(DONE).write(b"")
    return count


def _protocol(fs: Any) -> str:
    return fs.protocol if isinstance(fs.protocol, str) else fs.protocol[0]


def _scrubbed(error: BaseException, path: str) -> str:
    """A library's message in one line, without the path's credentials."""
    text = " ".join(str(error).replace(path, shown(path)).split()) or type(error).__name__
    text = re.sub(r"""://[^\s"']*@""", "://", text)  # scheme://user:password@host
    text = re.sub(r"""[^\s"'/:]+:(?!//)[^\s"'@]*@""", "", text)  # user:password@host
    text = re.sub(r"""(://[^\s"'?#]*)[?#][^\s"']*""", r"\1", text)  # ?signature=…
    return text.rstrip(".")


@contextlib.contextmanager
def _told(location: Location, what: str) -> Iterator[None]:
    """Convert file system errors to a DataError; a full disk and Ctrl-C pass unchanged."""
    try:
        yield
    except FintuneError:
        raise
    except FileNotFoundError:
        raise DataError(f"There is no file {location.shown}.") from None
    except Exception as error:  # each file system raises different errors
        if getattr(error, "errno", None) in FULL:
            raise
        why = _scrubbed(error, location.path)
        raise DataError(f"{location.shown} cannot be {what}: {why}.") from None
