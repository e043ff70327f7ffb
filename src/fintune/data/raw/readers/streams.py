"""Files read as they come, in flat memory: lines of text, items of a JSON list."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from fintune.data.storage import Location
from fintune.errors import DataError


def lines(path: Path | Location, begin: int = 0, end: int | None = None) -> Iterator[str]:
    """The lines of a UTF-8 file, without a byte order mark, line ends kept as "\\n".

    Args:
        begin, end: the bytes of a piece, each where a line begins; lines then end at "\\n" alone.

    Raises:
        DataError: the file is not UTF-8 text; it names the byte.
    """
    try:
        if end is not None:
            yield from _lines_between(path, begin, end)
        else:
            with io.TextIOWrapper(_bytes(path), encoding="utf-8-sig") as stream:
                yield from stream
    except UnicodeDecodeError:
        name = path.shown if isinstance(path, Location) else path
        raise DataError(f"{name} is not UTF-8 text (byte {_bad_byte(path)}): save it as UTF-8.") from None


def _bytes(path: Path | Location) -> IO[bytes]:
    return path.open() if isinstance(path, Location) else path.open("rb")


def _lines_between(path: Path | Location, begin: int, end: int) -> Iterator[str]:
    with _bytes(path) as stream:
        stream.seek(begin)
        place = begin
        while place < end and (line := stream.readline()):
            yield line.decode("utf-8-sig" if place == 0 else "utf-8")
            place += len(line)


def _bad_byte(path: Path | Location) -> int:
    """Where the first byte stands that is not UTF-8; a decoder that streams counts from its last chunk."""
    begin = 0
    with _bytes(path) as stream:
        for line in stream:
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                return begin + error.start
            begin += len(line)
    return begin


def json_items(stream: IO[bytes], name: str, fix: str = "download it again") -> Iterator[Any]:
    """The items of the JSON list that a stream holds.

    Args:
        name: what errors call the stream.

    Raises:
        DataError: it is no list, or not valid JSON.
    """
    import ijson

    begin = stream.read(64)
    if not begin.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
        raise DataError(f"{name} does not hold a JSON list: {fix}.")
    try:
        yield from ijson.items(_After(begin.removeprefix(b"\xef\xbb\xbf"), stream), "item", use_float=True)
    except (ijson.JSONError, UnicodeDecodeError) as error:
        why = str(error).strip().partition("\n")[0]
        raise DataError(f"{name} is not valid JSON ({why}): {fix}.") from None


class _After:
    """A stream that begins with bytes that were read from it already."""

    def __init__(self, begin: bytes, stream: IO[bytes]) -> None:
        self._begin, self._stream = begin, stream

    def read(self, size: int = -1) -> bytes:
        if self._begin and size:
            begin, self._begin = self._begin, b""
            return begin
        return self._stream.read(size)
