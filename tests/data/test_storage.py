"""Any fsspec path: read, listed and written whole; Parquet in parts; messages without credentials."""

import fsspec
import pyarrow as pa
import pyarrow.dataset as pads
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fintune.data.storage import locate, parquet_dataset, shown, write_parquet
from fintune.errors import DataError

SCHEMA = pa.schema({"id": pa.string(), "n": pa.int64()})


def rows(numbers):
    return pa.Table.from_pylist([{"id": f"r{n}", "n": n} for n in numbers], schema=SCHEMA)


@pytest.fixture(params=["local", "memory"])
def folder(request, tmp_path):
    """A path to write below: on this disk, and in fsspec's memory file system."""
    if request.param == "local":
        yield str(tmp_path)
        return
    yield "memory://fintune-test"
    fsspec.filesystem("memory").rm("/fintune-test", recursive=True)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("data/a@b?.csv", "data/a@b?.csv"),
        ("s3://bucket/user@host/x.csv", "s3://bucket/user@host/x.csv"),
        ("s3://KEY:SE/CR:ET@bucket/x", "s3://bucket/x"),
        ("sftp://me:p@ss@host:22/x", "sftp://host:22/x"),
        ("https://host:8080/x.csv?sig=SECRET#t", "https://host:8080/x.csv"),
        ("zip://x.csv::https://me:SECRET@host/a.zip", "zip://x.csv::https://host/a.zip"),
    ],
)
def test_a_path_is_shown_without_its_credentials(path, expected):
    assert shown(path) == expected


@given(st.text("ab:@/?#.%", max_size=12), st.text("ab:@/?#.%", max_size=12))
def test_no_password_is_ever_shown(before, after):
    assert "SECRET" not in shown(f"s3://KEY:{before}SECRET{after}@bucket/x")


def test_what_is_written_is_read_and_listed_in_order_and_hidden_files_are_not(folder):
    place = locate(f"{folder}/in")
    for name in ("b/2.csv", "a/1.csv", "_SUCCESS", "a/.tmp.csv"):
        place.child(name).write(name.encode())
    assert [file.shown for file in place.files()] == [f"{folder}/in/a/1.csv", f"{folder}/in/b/2.csv"]
    with place.child("a/1.csv").open() as stream:
        assert stream.read() == b"a/1.csv"
    assert place.is_folder() and not place.is_file() and not locate(f"{folder}/absent").exists()
    with pytest.raises(DataError, match=r"There is no file .*absent"):
        locate(f"{folder}/absent").open()


@pytest.mark.parametrize("sizes", [[], [0], [3], [10], [4, 4, 4], [1, 25, 0, 2]])
def test_parts_hold_all_rows_in_order_whatever_the_tables_they_came_in(folder, sizes):
    place, numbers = locate(f"{folder}/out"), iter(range(100))
    tables = [rows([next(numbers) for _ in range(size)]) for size in sizes]
    assert write_parquet(place, SCHEMA, tables, rows_per_file=10) == sum(sizes)
    assert place.child("_SUCCESS").exists()
    names = [file.name for file in place.files()]
    assert names == [f"part-{i:05}.parquet" for i in range(max(1, -(-sum(sizes) // 10)))]
    assert parquet_dataset(place).to_table().equals(rows(range(sum(sizes))))


def test_another_writers_hive_partitions_come_back_as_columns(folder):
    place = locate(f"{folder}/hive")
    table = rows(range(6)).append_column("year", pa.array([2023, 2024] * 3))
    pads.write_dataset(
        table,
        place.path,
        filesystem=place.fs,
        format="parquet",
        partitioning=pads.partitioning(pa.schema({"year": pa.int64()}), flavor="hive"),
    )
    found = parquet_dataset(place).to_table(["id", "year"]).to_pylist()
    assert sorted((row["id"], row["year"]) for row in found) == [(f"r{n}", 2023 + n % 2) for n in range(6)]
    one = place.files()[0]
    assert set(parquet_dataset(one, place).to_table()["year"].to_pylist()) == {2023}


def test_a_part_that_cannot_be_written_leaves_none_of_itself_and_no_mark_of_success(tmp_path):
    def failing():
        yield rows(range(10))
        raise DataError("the input is damaged")

    with pytest.raises(DataError, match="damaged"):
        write_parquet(locate(tmp_path / "out"), SCHEMA, failing(), rows_per_file=4)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "part-00000.parquet",
        "part-00001.parquet",
    ]


def test_a_missing_package_an_unknown_protocol_and_a_damaged_file_are_one_sentence(tmp_path, monkeypatch):
    from fsspec.registry import known_implementations

    known = {"class": "no_such_package.FileSystem", "err": "Install it"}
    monkeypatch.setitem(known_implementations, "fintest", known)
    with pytest.raises(DataError, match=r"^fintest://host/x needs .* run  pip install no_such_package$"):
        locate("fintest://KEY:SECRET@host/x")
    with pytest.raises(DataError, match=r"^nowhere://host/x cannot be used: the protocol nowhere is unknown"):
        locate("nowhere://KEY:SECRET@host/x")
    with pytest.raises(DataError, match=r"holds no file that ends in \.parquet"):
        parquet_dataset(locate(tmp_path))
    (tmp_path / "x.parquet").write_bytes(b"no")
    with pytest.raises(DataError, match=r"x\.parquet cannot be read as Parquet"):
        parquet_dataset(locate(tmp_path / "x.parquet"))


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("403 for s3://KEY:SE/CRET@bucket/x", "403 for s3://bucket/x"),
        ('Invalid bucket name "KEY:SE/CRET@bucket"', 'Invalid bucket name "bucket"'),
        ("GET https://host/x?X-Sig=SECRET failed", "GET https://host/x failed"),
    ],
)
def test_a_library_that_tells_a_password_is_not_repeated(monkeypatch, said, told):
    def refuse(self, path, mode="rb", **kwargs):
        raise OSError(said)

    monkeypatch.setattr(fsspec.get_filesystem_class("memory"), "open", refuse)
    with pytest.raises(DataError) as caught:
        locate("memory://x").open()
    assert str(caught.value) == f"memory://x cannot be read: {told}."
