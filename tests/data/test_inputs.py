"""What predict reads: any file or folder in order, row by row, in memory that does not grow."""

import gzip
import json
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fintune.data.inputs import CHUNK, chunks, input_documents
from fintune.data.raw.readers.own_file import read_inputs
from fintune.data.raw.readers.row_files import row_files
from fintune.data.records import Dropped
from fintune.data.storage import locate
from fintune.errors import DataError
from fintune.tasks.base import Record
from fintune.tasks.types import ClassificationTask, QATask

MOOD = ClassificationTask("mood", "How is it?", ["good", "bad"])


def read(path, task=MOOD):
    """Each row of an input as (id, text or why there is none)."""
    return [
        (row.where, row.why) if isinstance(row, Dropped) else (row.id, row.text)
        for part in row_files(path, "--input_file")
        for row in read_inputs(part, task)
    ]


def test_every_kind_of_file_gives_the_same_rows_and_names_them_by_line(tmp_path):
    (tmp_path / "in.csv").write_text(
        'text,n\n"Sales rose,\na lot",1\n,2\nFlat,3\nToo,many,cells\n', "utf-8-sig"
    )
    assert read(tmp_path / "in.csv") == [
        ("in.csv:2", "Sales rose,\na lot"),
        ("in.csv:4", "the text is empty"),
        ("in.csv:5", "Flat"),
        ("in.csv:6", "it has 3 cells, but the header has 2"),
    ]
    lines = ['{"text": "Up", "id": 7}', "", "[1]", '{"id": "x"}', "{"]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    found = read(tmp_path / "in.jsonl")
    assert found[:3] == [
        ("7", "Up"),
        ("in.jsonl:3", "it is not a JSON object"),
        ("in.jsonl:4", "the text is empty"),
    ]
    assert found[3][0] == "in.jsonl:5" and found[3][1].startswith("it is not valid JSON")
    table = pa.table({"n": [1, 2, 3], "text": ["Up", None, "Down"]})
    pq.write_table(table, tmp_path / "in.parquet", row_group_size=2)
    assert read(tmp_path / "in.parquet") == [
        ("in.parquet:1", "Up"),
        ("in.parquet:2", "the text is empty"),
        ("in.parquet:3", "Down"),
    ]


def test_a_folder_is_read_file_by_file_and_rows_are_named_by_their_path_in_it():
    place = locate("memory://inputs-test")
    try:
        place.child("b/2.csv").write(b"text\nthird\n")
        place.child("a=1/1.jsonl").write(b'{"text": "first"}\n{"text": "second"}\n')
        place.child("notes.txt").write(b"x")
        place.child("_SUCCESS").write(b"")
        assert read("memory://inputs-test/") == [
            ("a=1/1.jsonl:1", "first"),
            ("a=1/1.jsonl:2", "second"),
            ("b/2.csv:2", "third"),
        ]
    finally:
        place.fs.rm(place.path, recursive=True)


def test_a_question_is_read_and_missed_where_the_task_has_one(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text('{"text": "Sales were 5.", "question": "Sales?"}\n{"text": "a", "question": " "}\n')
    (part,) = row_files(path, "--input_file")
    first, second = read_inputs(part, QATask("q", "Answer."))
    assert first == Record("Sales were 5.", question="Sales?", id="in.jsonl:1")
    assert isinstance(second, Dropped) and second.why == "the question is empty"


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("in.csv", b"", "in.csv is empty"),
        ("in.csv", b"body\nx\n", "has no column 'text'"),
        ("in.jsonl", b"\n", "holds no JSON object"),
        ("in.jsonl", b'{"a": 1}\n', "has no column 'text'"),
        ("in.parquet", b"PAR1", "is not a Parquet file"),
        ("in.xls", b"x", "unknown kind: save the workbook as .xlsx"),
        ("in.doc", b"x", "unknown kind: its name must end in .csv, .tsv, .jsonl"),
        ("in.xlsx", b"x", "is not an Excel workbook"),
        ("in.csv", gzip.compress(b"text\nx\n", mtime=0), "its name should end in .gz"),
        ("in.csv.gz", gzip.compress(b"text\nx\n", mtime=0)[:-9], "is damaged"),
        ("in.csv.zst", b"x", "is damaged"),
    ],
)
def test_what_cannot_be_read_is_refused_in_a_sentence(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=r"in\.") as caught:
        read(tmp_path / name)
    assert says in str(caught.value) and str(tmp_path) in str(caught.value)


def test_an_absent_input_and_an_empty_folder_are_refused(tmp_path):
    with pytest.raises(DataError, match="no file or folder"):
        row_files(tmp_path / "absent", "--input_file")
    with pytest.raises(DataError, match="holds no file that ends in"):
        row_files(tmp_path, "--input_file")


def test_a_chunk_is_as_large_as_asked_for_while_its_texts_are_short(tmp_path, monkeypatch):
    monkeypatch.setattr("fintune.data.inputs.CHARACTERS", 10_000)
    path = tmp_path / "in.csv"
    path.write_text("text\n" + "Sales rose.\n" * 500 + f"{'x' * 200}\n" * 130)
    (part,) = row_files(path, "--input_file")
    assert [len(chunk) for chunk in chunks(read_inputs(part, MOOD), 400)] == [400, 145, 64, 21]
    assert [len(chunk) for chunk in chunks(read_inputs(part, MOOD), 1)][:2] == [CHUNK, CHUNK]


def test_memory_does_not_grow_with_the_file(tmp_path):
    path, count = tmp_path / "in.jsonl", 40_000
    path.write_text("".join(json.dumps({"text": f"{n} {'x' * 200}"}) + "\n" for n in range(count)))
    (part,) = row_files(path, "--input_file")
    tracemalloc.start()
    sizes = [len(chunk) for chunk in chunks(read_inputs(part, MOOD))]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(sizes) == count and set(sizes[:-1]) == {CHUNK}
    assert path.stat().st_size > 8e6 and peak < 1e6


def test_a_folder_of_documents_is_read_unless_it_holds_rows_and_that_is_said(tmp_path, capsys):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "b.md").write_text("two")
    (tmp_path / "a.txt").write_text("one")
    assert [file.name for file in input_documents(tmp_path)] == ["a.txt", "deep/b.md"]
    assert [file.name for file in input_documents(tmp_path / "a.txt")] == ["a.txt"]
    (tmp_path / "rows.csv").write_text("text\nx\n")
    assert input_documents(tmp_path) == [] and "2 documents" in capsys.readouterr().err
