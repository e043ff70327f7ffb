"""Read a .tar.gz or .zip in place: only the named regular files, in memory, nothing written to disk."""

from __future__ import annotations

import gzip
import posixpath
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fintune.errors import DataError

MAX_MEMBER_BYTES = 16 * 2**20
"""Larger members are refused: no dataset here has one, but a hostile archive may."""
MAX_RATIO = 100
"""The largest ratio of unpacked to packed size; text and tar's padding stay far below."""
FREE_BYTES = 64 * 2**20
"""An archive may always unpack to this much, whatever its size."""


def members(path: Path, pattern: str, encoding: str = "utf-8-sig") -> Iterator[tuple[re.Match[str], str]]:
    """The match of the name and the text of every regular file whose whole name matches `pattern`.

    A folder before the name is allowed, as in GitHub's archives of a repository.

    Raises:
        DataError: the archive is damaged or hostile (a member that is absolute, escapes with `..`, is a
            device or a link out of the archive; a wanted one that is not a regular file or too large; more
            content than `MAX_RATIO` allows), or a wanted member is not text in this encoding.
    """
    wanted = re.compile(rf"(?:\./)?(?:[^/]+/)?{pattern}")
    try:
        with path.open("rb") as stream:
            zipped = stream.read(4) == b"PK\x03\x04"
        for match, content in (_zip if zipped else _tar)(path, wanted):
            yield match, content.decode(encoding)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, OSError) as error:
        raise DataError(f"{path} is damaged ({error}): download it again.") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} holds a file that is not {encoding} text ({error.reason}).") from None


def _tar(path: Path, wanted: re.Pattern[str]) -> Iterator[tuple[re.Match[str], bytes]]:
    with gzip.open(path) as unpacked:
        content: Any = _Bounded(unpacked, path)
        with tarfile.open(fileobj=content, mode="r|") as archive:
            for member in archive:
                match = wanted.fullmatch(member.name)
                _check_name(path, member.name)
                if not (member.isreg() or member.isdir()):
                    _check_special(path, member, match is not None)
                if match is None:
                    continue
                if not member.isreg():
                    raise _hostile(path, member.name, "which is a folder where a file belongs")
                _check_size(path, member.name, member.size)
                stream = archive.extractfile(member)
                assert stream is not None  # regular files always have one
                yield match, stream.read()
        while content.read(2**20):  # up to the checksum at the end, which a truncated file lacks
            pass


def _zip(path: Path, wanted: re.Pattern[str]) -> Iterator[tuple[re.Match[str], bytes]]:
    left = _limit(path)
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            _check_name(path, member.filename)
            match = wanted.fullmatch(member.filename)
            if match is None:
                continue
            kind = stat.S_IFMT(member.external_attr >> 16)  # 0 if the archive was made without modes
            if kind not in (0, stat.S_IFREG):
                raise _hostile(path, member.filename, "which is not a regular file")
            _check_size(path, member.filename, member.file_size)
            left -= member.file_size
            if left < 0:
                raise _hostile(path, member.filename, "which unpacks to far more than a dataset's text")
            try:
                yield match, archive.read(member)  # at most file_size, and its checksum is tested
            except (RuntimeError, NotImplementedError) as error:  # a password, an unknown compression
                raise DataError(f"{path} cannot be read ({error}): download it again.") from None


class _Bounded:
    """A stream that fails if an archive unpacks to more than text can be packed into."""

    def __init__(self, stream: Any, path: Path) -> None:
        self.stream, self.path, self.left = stream, path, _limit(path)

    def read(self, size: int) -> bytes:
        data: bytes = self.stream.read(size)
        self.left -= len(data)
        if self.left < 0:
            raise DataError(
                f"{self.path} unpacks to over {MAX_RATIO} times its size, which no dataset's text does: it "
                "is not genuine."
            )
        return data


def _limit(path: Path) -> int:
    return max(FREE_BYTES, MAX_RATIO * path.stat().st_size)


def _check_name(path: Path, name: str) -> None:
    parts = re.split(r"[/\\]", name)
    if parts[0] == "" or re.match(r"[A-Za-z]:", name):
        raise _hostile(path, name, "which is an absolute path")
    if ".." in parts:
        raise _hostile(path, name, "which climbs out of its folder")


def _check_special(path: Path, member: tarfile.TarInfo, wanted: bool) -> None:
    """Refuse special members, except unread links that stay inside the archive."""
    if not member.islnk() and not member.issym():
        raise _hostile(path, member.name, "which is a device or pipe")
    home = posixpath.dirname(member.name) if member.issym() else ""
    target = posixpath.normpath(posixpath.join(home, member.linkname))
    if target.startswith(("/", "..")):
        raise _hostile(path, member.name, f"which is a link to {member.linkname}, outside the archive")
    if wanted:
        raise _hostile(path, member.name, "which is a link where a file belongs")


def _check_size(path: Path, name: str, size: int) -> None:
    if size > MAX_MEMBER_BYTES:
        raise _hostile(path, name, f"of {size:,} bytes")


def _hostile(path: Path, name: str, what: str) -> DataError:
    return DataError(f"{path} holds {name}, {what}: it is not genuine, so nothing of it is used.")
