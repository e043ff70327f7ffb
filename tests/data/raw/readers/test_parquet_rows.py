"""Parquet files that unpack to far more than they are, and those that do not."""

import tracemalloc
from datetime import UTC, datetime
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fintune.data.raw.readers import parquet_rows
from fintune.data.raw.readers.row_files import open_rows, row_files
from fintune.errors import DataError


def rows(path):
    return open_rows(row_files(path, "file")[0])[1]


def test_a_kilobyte_that_unpacks_to_four_gigabytes_is_refused_in_little_memory(tmp_path):
    text = pa.DictionaryArray.from_arrays(pa.array([0] * 4096, pa.int32()), pa.array(["x" * 2**20]))
    for name, column in (
        ("plain", text),
        ("list", pa.ListArray.from_arrays(pa.array(range(0, 4097, 8), pa.int32()), text)),
    ):
        path = tmp_path / f"{name}.parquet"
        pq.write_table(pa.table({"text": column}), path, compression="zstd", store_schema=False)
        assert path.stat().st_size < 1_500
        tracemalloc.start()
        with pytest.raises(DataError, match=r"unpacks to more than 268,435,456 bytes.*rewrite it as JSON"):
            for _ in rows(path):
                pass
        assert tracemalloc.get_traced_memory()[1] < 150 * 2**20
        tracemalloc.stop()


def test_a_row_that_is_too_large_costs_itself_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_rows, "MAX_ROW", 1_000)
    pq.write_table(pa.table({"text": ["Up.", "x" * 2_000, "Down."]}), tmp_path / "f.parquet")
    monkeypatch.setattr(parquet_rows, "SLICE_BYTES", 100)
    found = [row for _, row in rows(tmp_path / "f.parquet")]
    assert found[0] == {"text": "Up."} and found[2] == {"text": "Down."}
    assert "2,008 bytes" in found[1]


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("packing", ["none", "zstd", "gzip", "snappy"])
def test_pages_headers_are_read_as_the_writer_wrote_them(tmp_path, version, packing):
    path = tmp_path / "f.parquet"
    columns = {
        "text": [f"Sales rose by {i} %." for i in range(3_000)],
        "same": ["a", None, "b"] * 1_000,
        "lists": [["a", "b"], [], None] * 1_000,
        "n": [1.5, None, 3.0] * 1_000,
    }
    options = {"data_page_version": version, "data_page_size": 1_000, "write_page_index": False}
    pq.write_table(pa.table(columns), path, compression=packing, row_group_size=1_100, **options)
    metadata = pq.read_metadata(path)
    content = path.read_bytes()
    for group in range(metadata.num_row_groups):
        for number in range(metadata.num_columns):
            column = metadata.row_group(group).column(number)
            place = column.dictionary_page_offset or column.data_page_offset
            end, unpacked, values = place + column.total_compressed_size, 0, 0
            while place < end:
                header = parquet_rows._Header(content[place : place + 2**16])
                place += header.length + header.packed
                unpacked += header.length + header.unpacked
                values += header.values
            assert (place, unpacked, values) == (end, column.total_uncompressed_size, column.num_values)


def test_a_page_or_list_that_unpacks_to_too_much_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    path = tmp_path / "f.parquet"
    pq.write_table(pa.table({"text": ["x" * 2**21]}), path, use_dictionary=False, compression="zstd")
    assert len(list(rows(path))) == 1
    monkeypatch.setattr(parquet_rows, "MAX_PAGE", 2**20)
    with pytest.raises(DataError, match="1,048,576 per page"):
        list(rows(path))
    monkeypatch.setattr(parquet_rows, "MAX_VALUES", 1_000)
    pq.write_table(pa.table({"text": [["x"] * 100_000]}), path, compression="zstd")
    with pytest.raises(DataError, match="unpacks to more than"):
        list(rows(path))
    content = bytearray(path.read_bytes())
    content[4:20] = b"\xff" * 16
    path.write_bytes(content)
    with pytest.raises(DataError, match="damaged"):
        list(rows(path))


def test_rows_are_what_arrow_makes_of_them(tmp_path):
    table = pa.table(
        {
            "text": pa.array(["a", None, "c"] * 4),
            "large": pa.array(["a", "b", None] * 4, pa.large_string()),
            "bytes": pa.array([b"a", None, b"c"] * 4),
            "category": pa.array(["x", "y", None] * 4).dictionary_encode(),
            "list": pa.array([["a", None], [], None] * 4),
            "structs": pa.array([[{"a": "x", "b": 1}], None, [{"a": None, "b": 2}] * 3] * 4),
            "map": pa.array([[("k", "v")], [], None] * 4, pa.map_(pa.string(), pa.string())),
            "pair": pa.array([[1, 2], [3, 4], None] * 4, pa.list_(pa.int64(), 2)),
            "price": pa.array([Decimal("1.50"), None, Decimal("2.25")] * 4, pa.decimal128(9, 2)),
            "time": pa.array([datetime(2026, 1, 2, tzinfo=UTC), None, None] * 4),
            "nothing": pa.nulls(12),
        }
    )
    path = tmp_path / "f.parquet"
    for stored in (True, False):
        pq.write_table(table, path, row_group_size=5, store_schema=stored)
        assert [row for _, row in rows(path)] == pq.read_table(path).to_pylist()
        assert [number for number, _ in rows(path)] == list(range(1, 13))


def test_lists_of_more_texts_than_a_dictionary_holds_are_read_whole(tmp_path):
    lists = [[f"{'Sales rose. ' * 20}{i} {j}" for j in range(i % 4)] for i in range(9_000)]
    pq.write_table(pa.table({"text": lists}), tmp_path / "f.parquet", dictionary_pagesize_limit=2**19)
    assert [row["text"] for _, row in rows(tmp_path / "f.parquet")] == lists
