"""Stream files in constant memory: decompressed bytes, lines of text, items of a JSON list."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import IO, Any, Protocol

from fintune.data.storage import Location
from fintune.errors import DataError

PACKED = {".gz": "gzip", ".zst": "zstd"}
"""Ending → the decompressor."""
MAX_RATIO = 200
"""The largest ratio of unpacked to packed size: text stays far below, a decompression bomb does not."""
FREE_BYTES = 256 * 2**20
"""A packed file may always unpack to this much, whatever its size."""


class Readable(Protocol):
    """Something with bytes and a name for messages: a `Location`, or a file unpacked while reading."""

    @property
    def shown(self) -> str: ...

    def open(self) -> IO[bytes]: ...


def unpacked(place: Location, ending: str) -> IO[bytes]:
    """A file's bytes, unpacked if its name has one of the endings in `PACKED`."""
    if ending not in PACKED:
        return place.open()
    import pyarrow as pa

    packed = pa.PythonFile(place.open(), mode="r")
    limit = max(FREE_BYTES, MAX_RATIO * place.size())
    return io.BufferedReader(_Bounded(pa.CompressedInputStream(packed, PACKED[ending]), place.shown, limit))


class _Bounded(io.RawIOBase):
    """A stream with a limit on its length."""

    def __init__(self, stream: Any, shown: str, limit: int) -> None:
        self._stream, self._shown, self._left = stream, shown, limit

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._stream.read(len(buffer))
        except OSError as error:
            raise DataError(f"{self._shown} is damaged: {str(error).rstrip('.')}.") from None
        self._left -= len(data)
        if self._left < 0:
            raise DataError(
                f"{self._shown} unpacks to over {MAX_RATIO} times its size, which no text does: unpack it "
                "yourself, if you trust it."
            )
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._stream.close()
        super().close()


def lines(
    file: Readable, begin: int = 0, end: int | None = None, encoding: str = "utf-8-sig"
) -> Iterator[str]:
    """The lines of a text file, without a byte order mark, line ends kept as "\\n".

    Args:
        begin, end: the bytes of a piece of a UTF-8 file, each at the beginning of a line; lines then end only
            at "\\n".

    Raises:
        DataError: the file is not text in this encoding; for UTF-8 the message names the byte.
    """
    try:
        if end is not None:
            yield from _lines_between(file, begin, end)
        else:
            with io.TextIOWrapper(file.open(), encoding=encoding) as stream:
                yield from stream
    except UnicodeError as error:
        what, fix = f"{encoding} text ({error})", "give another encoding"
        if encoding == "utf-8-sig":
            what, fix = f"UTF-8 text (byte {_bad_byte(file)})", "save it as UTF-8"
        raise DataError(f"{file.shown} is not {what}: {fix}.") from None


def _lines_between(file: Readable, begin: int, end: int) -> Iterator[str]:
    with file.open() as stream:
        stream.seek(begin)
        place = begin
        while place < end and (line := stream.readline()):
            yield line.decode("utf-8-sig" if place == 0 else "utf-8")
            place += len(line)


def _bad_byte(file: Readable) -> int:
    """The position of the first byte that is not UTF-8; a streaming decoder counts from its last chunk."""
    begin = 0
    with file.open() as stream:
        for line in stream:
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                return begin + error.start
            begin += len(line)
    return begin


def json_items(
    stream: IO[bytes], name: str, fix: str = "download it again", prefix: str = "item", kind: Any = None
) -> Iterator[Any]:
    """The items of a JSON list: the stream's only value, or a list inside it.

    Args:
        name: the stream's name in errors.
        prefix: where the items are, in ijson's notation: `data.items.item`.
        kind: a class of mappings to read objects as, instead of dict.

    Raises:
        DataError: it is not a list, or not valid JSON.
    """
    import ijson

    begin = stream.read(64).removeprefix(b"\xef\xbb\xbf")
    if prefix == "item" and not begin.lstrip().startswith(b"["):
        raise DataError(f"{name} does not hold a JSON list: {fix}.")
    options = {"map_type": kind} if kind else {}
    try:
        yield from ijson.items(After(begin, stream), prefix, use_float=True, **options)
    except (ijson.JSONError, UnicodeDecodeError) as error:
        why = str(error).strip().partition("\n")[0]
        raise DataError(f"{name} is not valid JSON ({why}): {fix}.") from None


class After:
    """A stream with bytes put back in front that were already read from it."""

    def __init__(self, begin: bytes, stream: IO[bytes]) -> None:
        self._begin, self._stream = begin, stream

    def read(self, size: int = -1) -> bytes:
        if self._begin and size:
            begin, self._begin = self._begin, b""
            return begin
        return self._stream.read(size)
