"""Read rows of Parquet files with bounded memory, whatever the files unpack to.

A 1-kB file may contain a 1-MB text a million times over, or a page that unpacks to 2 GB, without saying so in
its footer. So pages are checked before they are unpacked, repeated texts are expanded a few rows at a time,
and the size of a file and of a row is limited.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import IO, Any

from fintune.data.raw.readers.streams import FREE_BYTES, MAX_RATIO
from fintune.data.storage import Location
from fintune.errors import DataError

BATCH = 4_096
"""The most rows decoded at once."""
SLICE_BYTES = 32 * 2**20
"""Approximate bytes of the rows in memory as Python values."""
MAX_ROW = 16 * 2**20
"""The most bytes of a row: a transcript has a hundredth of it."""
MAX_PAGE = 256 * 2**20
"""The most bytes of a page: writers make pages of about 1 MB."""
MAX_VALUES = 2**25
"""Values of the lists in a row group: below this, their sizes need not be checked."""
MAX_HEADER = 2**16
"""The most bytes of a page's header, which has the page's smallest and largest value, cut by writers."""
_TEXTS = ("STRING", "NONE", "JSON", "ENUM", "BSON")


def rows(
    place: Location, names: list[str], partition: dict[str, Any], groups: list[int] | None
) -> Iterator[dict[str, Any] | str]:
    """The rows of a file, by column; or why a row is invalid.

    Args:
        names: the columns to return, in order.
        partition: values from the names of the file's folders.
        groups: the row groups to read; None is all.

    Raises:
        DataError: the file unpacks to too much.
        pyarrow.ArrowException: it is damaged.
    """
    import pyarrow.parquet as pq

    limit = max(FREE_BYTES, MAX_RATIO * place.size())
    left = limit
    with place.open() as stream:
        metadata = pq.read_metadata(stream)
        if place.local:  # remotely, each page would be a request
            _check_pages(stream, metadata, place.shown, limit)
        for batch in _batches(stream, metadata, range(metadata.num_row_groups) if groups is None else groups):
            sizes = sum(_sizes(column) for column in batch.columns)
            begin = 0
            while begin < batch.num_rows:
                end = begin + 1
                size = int(sizes[begin])
                while end < batch.num_rows and size + sizes[end] <= SLICE_BYTES:
                    size += int(sizes[end])
                    end += 1
                left -= size
                if left < 0:
                    raise _too_much(place.shown, limit)
                if size > MAX_ROW and end == begin + 1:
                    yield f"it has {size:,} bytes, and a row may have {MAX_ROW:,}"
                else:
                    for row in batch.slice(begin, end - begin).to_pylist():
                        yield {name: row.get(name, partition.get(name)) for name in names}
                begin = end


def _batches(stream: IO[bytes], metadata: Any, groups: Iterable[int]) -> Iterator[Any]:
    """The record batches of some row groups, with texts as dictionary indices, so that repeated texts are
    stored once."""
    import pyarrow.parquet as pq

    leaves = [metadata.schema.column(i) for i in range(metadata.num_columns)]
    texts = [x.path for x in leaves if x.physical_type == "BYTE_ARRAY" and x.logical_type.type in _TEXTS]
    file = pq.ParquetFile(stream, read_dictionary=texts)
    for group in groups:  # separately: each has its dictionary, and a batch of lists can have only one
        yield from file.iter_batches(BATCH, row_groups=[group])


def _sizes(array: Any) -> Any:
    """The approximate bytes of each of an Arrow array's values as a Python object."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = array.type
    if isinstance(array, pa.ExtensionArray):
        return _sizes(array.storage)
    if pa.types.is_dictionary(kind):
        own = _sizes(array.dictionary)
        places = pc.fill_null(array.indices, 0).to_numpy(zero_copy_only=False)
        return own[places] if len(own) else np.full(len(array), 8)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind):
        return 8 + pc.fill_null(pc.binary_length(array), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    if pa.types.is_struct(kind):
        return sum((_sizes(array.field(i)) for i in range(kind.num_fields)), np.full(len(array), 8))
    if pa.types.is_fixed_size_list(kind):
        return 8 + _sizes(array.flatten()).sum() * np.ones(len(array))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_map(kind):
        inner = array.values if not pa.types.is_map(kind) else None
        parts = [inner] if inner is not None else [array.keys, array.items]
        ends = array.offsets.to_numpy()
        sums = [np.concatenate([[0], np.cumsum(_sizes(part))]) for part in parts]
        return 8 + sum(each[ends[1:]] - each[ends[:-1]] for each in sums)
    return np.full(len(array), 16)


def _too_much(shown: str, limit: int) -> DataError:
    return DataError(
        f"{shown} unpacks to more than {limit:,} bytes, the limit for a file of its size "
        f"({MAX_RATIO} times its bytes, at least {FREE_BYTES:,}, and {MAX_PAGE:,} per page): rewrite it as "
        "JSON lines, if you trust it."
    )


# Pages ----------------------------------------------------------------------------------------------


def _check_pages(stream: IO[bytes], metadata: Any, shown: str, limit: int) -> None:
    """Refuse pages that unpack to too much, by their own headers, which control the unpacking."""
    total = 0
    for group in range(metadata.num_row_groups):
        for number in range(metadata.num_columns):
            column = metadata.row_group(group).column(number)
            lists = metadata.schema.column(number).max_repetition_level > 0
            values = 0
            offsets = (column.dictionary_page_offset, column.data_page_offset)
            place = min(offset for offset in offsets if offset)
            end = place + column.total_compressed_size
            while place < end:
                stream.seek(place)
                header = _Header(stream.read(MAX_HEADER))
                values += header.values
                total += header.unpacked
                if header.unpacked > MAX_PAGE or total > limit:
                    raise _too_much(shown, min(limit, MAX_PAGE))
                place += header.length + header.packed
            if lists and values > max(MAX_VALUES, 8 * (end - offsets[1])):
                raise _too_much(shown, limit)


class _Header:
    """A page's header in Thrift's compact protocol, of which three numbers matter.

    The Parquet format defines {2: unpacked size, 3: packed size, 5: data page {1: values}, 8: data page of
    version 2 {1: values}, …}.
    """

    def __init__(self, content: bytes) -> None:
        import pyarrow as pa

        self._content, self.length = content, 0
        try:
            fields = self._struct()
            self.unpacked, self.packed = int(fields[2]), int(fields[3])
            page = fields.get(5) or fields.get(8) or {}
            self.values = int(page.get(1, 0))
        except (IndexError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise pa.ArrowInvalid("a page has no valid header") from error
        if self.unpacked < 0 or self.packed < 0 or self.values < 0:
            raise pa.ArrowInvalid("a page's header has a negative size")

    def _byte(self) -> int:
        self.length += 1
        return self._content[self.length - 1]

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    def _struct(self) -> dict[int, Any]:
        fields: dict[int, Any] = {}
        last = 0
        while kind := self._byte():
            if kind >> 4:
                last += kind >> 4
            else:
                number = self._varint()
                last = (number >> 1) ^ -(number & 1)
            fields[last] = self._value(kind & 15)
        return fields

    def _value(self, kind: int) -> Any:
        if kind in (1, 2):  # true, false
            return kind == 1
        if kind in (4, 5, 6):  # integers
            number = self._varint()
            return (number >> 1) ^ -(number & 1)
        if kind == 12:
            return self._struct()
        if kind in (9, 10):  # a list, a set
            head = self._byte()
            count = head >> 4 if head >> 4 < 15 else self._varint()
            if count > len(self._content):
                raise IndexError
            for _ in range(count):
                self._value(head & 15)
            return None
        skipped = {3: 1, 7: 8}.get(kind)
        if kind == 8:  # bytes, such as a page's smallest value
            skipped = self._varint()
        if skipped is None or skipped > len(self._content):
            raise IndexError
        self.length += skipped
        return None
