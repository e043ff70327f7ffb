"""Reading a .tar.gz in place: only the named regular files, in memory, nothing written to disk."""

from __future__ import annotations

import gzip
import re
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from fintune.errors import DataError

MAX_MEMBER_BYTES = 16 * 2**20
"""Larger members are refused: no dataset here has one, but a hostile archive may."""


def members(path: Path, pattern: str) -> Iterator[tuple[re.Match[str], str]]:
    """The match of the name and the text of every regular file whose whole name matches `pattern`.

    A folder before the name, as in an archive that GitHub makes of a repository, is allowed.

    Raises:
        DataError: the archive is damaged, or a member is too large or not UTF-8.
    """
    wanted = re.compile(rf"(?:\./)?(?:[^/]+/)?{pattern}")
    try:
        with gzip.open(path) as content, tarfile.open(fileobj=content, mode="r|") as archive:
            for member in archive:
                match = wanted.fullmatch(member.name)
                if match is None or not member.isreg():
                    continue
                if member.size > MAX_MEMBER_BYTES:
                    raise DataError(
                        f"{path} holds {member.name} of {member.size:,} bytes: it is not genuine."
                    )
                stream = archive.extractfile(member)
                assert stream is not None  # of a regular file there always is one
                yield match, stream.read().decode("utf-8-sig")
            while content.read(2**20):  # up to the checksum at the end, which a truncated file lacks
                pass
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise DataError(f"{path} is damaged ({error}): download it again.") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} holds a file that is not UTF-8 text ({error.reason}).") from None
