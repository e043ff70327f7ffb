"""Files as people have them: packed, in other encodings, workbooks, nested JSON; none loses a row."""

import codecs
import csv
import gzip
import json
import zipfile
from datetime import date, datetime

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fintune.data.raw.readers import streams
from fintune.data.raw.readers.own_file import read_inputs, read_own_file
from fintune.data.raw.readers.row_files import open_rows, row_files
from fintune.data.records import Dropped
from fintune.errors import DataError
from fintune.tasks.base import Record
from fintune.tasks.types import ClassificationTask, QATask, RegressionTask, SummarizationTask

TOPIC = ClassificationTask("topic", "Which?", ["good", "bad"])
QA = QATask("q", "Answer.")


def own(path, task=TOPIC, columns=None, **settings):
    """(text, question, target) of each record, the reasons of dropped rows, and what is said of the files."""
    files = row_files(path, "file", columns=(columns or {}).values(), **settings)
    items = [item for file in files for item in read_own_file(file, task, columns or {}, "columns", None)]
    records = [(i.text, i.question, i.target) for i in items if isinstance(i, Record)]
    return (
        records,
        [i.why for i in items if isinstance(i, Dropped)],
        [note for f in files for note in f.notes],
    )


def written(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


PACK = {".gz": "gzip", ".zst": "zstd"}


@pytest.mark.parametrize("ending", PACK)
@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "json"])
def test_packed_files_are_read_and_predicted_from(tmp_path, kind, ending):
    rows = [{"text": f"Sales rose by {i} €.", "target": "good"} for i in range(5)]
    mark = {"csv": ",", "tsv": "\t"}.get(kind)
    content = (
        "".join(mark.join(row.values()) + "\n" for row in [{1: "text", 2: "target"}, *rows]) if mark else ""
    )
    content = content or (json.dumps(rows) if kind == "json" else "\n".join(map(json.dumps, rows)))
    path = tmp_path / f"f.{kind}{ending}"
    with pa.CompressedOutputStream(str(path), PACK[ending]) as stream:
        stream.write(content.encode())
    records, dropped, notes = own(path)
    assert [text for text, *_ in records] == [row["text"] for row in rows] and not dropped
    assert notes == [f"f.{kind}{ending} is unpacked ({PACK[ending]}) as it is read."]
    (file,) = row_files(path, "--input_file")
    assert [record.text for record in read_inputs(file, TOPIC)] == [row["text"] for row in rows]


def test_a_packed_file_that_is_cut_or_unpacks_without_end_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "f.csv.gz"
    path.write_bytes(gzip.compress(b"text,target\n" + b"Sales rose.,good\n" * 9)[:-9])
    with pytest.raises(DataError, match=r"f\.csv\.gz is damaged"):
        own(path)
    monkeypatch.setattr(streams, "FREE_BYTES", 10_000)
    path.write_bytes(gzip.compress(b"text,target\n" + b"Sales rose.,good\n" * 90_000))
    with pytest.raises(DataError, match="unpacks to over 200 times its size"):
        own(path)


WORDS = {
    "cp1252": "Erlöse stiegen um 5 € – «Société Générale»",
    "cp1251": "Прибыль выросла на 5 процентов",
    "cp932": "売上高は五パーセント増加しました",
    "gb18030": "公司利润增长百分之五",
}


@pytest.mark.parametrize("encoding", WORDS)
def test_another_encoding_is_found_and_shown(tmp_path, encoding):
    path = tmp_path / "f.csv"
    path.write_bytes(("text,target\nPlain.,bad\n" + f"{WORDS[encoding]},good\n" * 3).encode(encoding))
    records, dropped, (note,) = own(path)
    assert [text for text, *_ in records] == ["Plain.", *[WORDS[encoding]] * 3] and not dropped
    assert f"is read as {encoding}" in note and WORDS[encoding][:10] in note


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8-sig"])
def test_unicode_is_known_by_its_mark_or_its_zeros(tmp_path, encoding):
    for name, content in (
        ("f.csv", 'text,target\r\n"Erlöse\nstiegen",good\r\n'),
        ("f.jsonl", '{"text": "Erlöse\\nstiegen", "target": "good"}\n'),
        ("f.json", '[{"text": "Erlöse\\nstiegen", "target": "good"}]'),
    ):
        (tmp_path / name).write_bytes(content.encode(encoding))
        assert own(tmp_path / name)[0] == [("Erlöse\nstiegen", None, "good")]


def test_a_stated_encoding_is_taken_and_a_wrong_one_is_said(tmp_path):
    path = tmp_path / "f.csv"
    path.write_bytes("text,target\nSpółka,good\n".encode("cp1250"))
    assert own(path, encoding="cp1250")[0] == [("Spółka", None, "good")]
    with pytest.raises(DataError, match=r"f\.csv is not UTF-8 text"):
        own(path, encoding="utf-8")
    with pytest.raises(DataError, match=r"f\.csv is not ascii text"):
        own(path, encoding="ascii")
    with pytest.raises(DataError, match="The encoding 'klingon' is unknown"):
        own(path, encoding="klingon")


def test_a_byte_that_is_wrong_late_in_a_file_is_found(tmp_path):
    path = tmp_path / "f.csv"
    path.write_bytes(b"text,target\n" + b"Sales rose.,good\n" * 30_000 + b"Erl\xf6se,bad\n")
    records, _, notes = own(path)
    assert records[-1][0] == "Erlöse" and "cp1252" in notes[0]


def book(path, *rows, sheet="Data", others=()):
    workbook = openpyxl.Workbook()
    workbook.active.title = sheet
    for row in rows:
        workbook.active.append(row)
    for name in others:
        workbook.create_sheet(name).append(["text", "target"])
    workbook.save(path)
    return workbook


def test_a_workbook_is_read_as_it_is_shown(tmp_path):
    path = tmp_path / "f.xlsx"
    header = ["text", "target", "time"]
    workbook = book(
        path, header, ["Sales rose.", 0.05, datetime(2026, 1, 5)], [], ["", 7], ["b", True], ["c", 1.5]
    )
    workbook.active["B2"].number_format = "0.0%"
    workbook.save(path)
    task = RegressionTask("r", "Predict.", unit="%")
    names, rows = open_rows(*row_files(path, "file"))
    assert names == ["text", "target", "time"]
    assert next(rows) == (2, {"text": "Sales rose.", "target": "5%", "time": date(2026, 1, 5)})
    records, dropped, notes = own(path, task)
    assert [record[2] for record in records] == [5.0, 7.0, 1.5] and not notes
    assert dropped == ["the target True is a boolean, not a number"]


def test_of_several_sheets_the_first_is_read_or_the_one_named(tmp_path):
    path = tmp_path / "f.xlsx"
    book(path, ["text", "target"], ["a", "good"], others=["Notes", "More"])
    records, _, notes = own(path)
    assert records == [("a", None, "good")]
    assert notes == ["f.xlsx has the sheets Data, Notes, More: Data is read."]
    assert own(path, sheet="Data")[2] == []
    with pytest.raises(DataError, match="no sheet 'Sales'; its sheets are: Data, Notes, More"):
        own(path, sheet="Sales")


def test_a_workbook_that_is_none_or_too_large_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "f.xlsx"
    path.write_bytes(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" * 9)
    with pytest.raises(DataError, match=r"old \.xls workbook, or has a password"):
        own(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("xl/worksheets/sheet1.xml", bytes(80 * 2**20))
    with pytest.raises(DataError, match="unpacks to 80 MiB"):
        own(path)
    path.rename(tmp_path / "f.csv")
    with pytest.raises(DataError, match=r"its name should end in \.xlsx"):
        own(tmp_path / "f.csv")


def test_a_column_named_twice_is_refused_in_every_kind(tmp_path):
    (tmp_path / "f.csv").write_text("text, text,target\na,b,good\n")
    pq.write_table(
        pa.table([["a"], ["b"], ["good"]], names=["text", "text", "target"]), tmp_path / "f.parquet"
    )
    book(tmp_path / "f.xlsx", ["text", "text", "target"], ["a", "b", "good"])
    for name in ("f.csv", "f.parquet", "f.xlsx"):
        with pytest.raises(DataError, match=r"names the column 'text' twice \(columns 1, 2\)"):
            own(tmp_path / name)
    twice, once = '{"text": "a", "text": "b", "target": "good"}', '{"text": "c", "target": "bad"}'
    (tmp_path / "f.jsonl").write_text(f"{twice}\n{once}\n")
    (tmp_path / "f.json").write_text(f"[{twice}, {once}]")
    for name in ("f.jsonl", "f.json"):
        assert own(tmp_path / name) == ([("c", None, "bad")], ["it names 'text' twice"], [])
    (tmp_path / "f.csv").write_text("text,target,,\na,good,,\n")
    assert own(tmp_path / "f.csv")[0] == [("a", None, "good")]  # columns without a name are nobody's


DOCUMENT = {
    "source": "wire",
    "data": {
        "items": [
            {"headline": "Up", "tone": {"label": "good"}, "tags": [{"n": 1}]},
            {"headline": "Down", "tone": {"label": "bad"}, "tags": []},
        ]
    },
}


def test_rows_inside_a_document_are_found_or_named_by_a_path(tmp_path):
    path = tmp_path / "f.json"
    expected = [("Up", None, "good"), ("Down", None, "bad")]
    for content in (json.dumps(DOCUMENT), json.dumps(DOCUMENT, indent=1)):
        path.write_text(content)
        paths = {"text": "data.items[].headline", "target": "data.items[].tone.label"}
        assert own(path, columns=paths)[0] == expected
        records, _, notes = own(path, columns={"text": "headline", "target": "tone.label"})
        assert records == expected and notes == ["f.json has its rows at data.items[]."]
    path = written(tmp_path / "f.jsonl", {"d": DOCUMENT}, {"d": {}}, {"d": DOCUMENT})
    assert own(path, columns={"text": "d.data.items[].headline", "target": "d.data.items[].tone.label"})[
        0
    ] == (expected * 2)
    with pytest.raises(DataError, match=r"holds no rows at d\.none\[\]"):
        own(path, columns={"text": "d.none[].headline", "target": "d.none[].tone"})
    with pytest.raises(DataError, match="lead to different lists"):
        own(path, columns={"text": "d.a[].headline", "target": "d.b[].tone"})


def test_squads_own_nesting_is_read_by_paths(tmp_path):
    asked = [{"question": f"Q{i}?", "answers": [{"text": f"A{i}", "answer_start": 0}]} for i in range(2)]
    paragraphs = [{"context": "One.", "qas": asked}, {"context": "Two.", "qas": asked[:1]}]
    (tmp_path / "f.json").write_text(json.dumps({"version": "1", "data": [{"paragraphs": paragraphs}]}))
    columns = {
        "text": "data[].paragraphs[].context",
        "question": "data[].paragraphs[].qas[].question",
        "target": "data[].paragraphs[].qas[].answers",
    }
    assert own(tmp_path / "f.json", QA, columns)[0] == [
        ("One.", "Q0?", "A0"),
        ("One.", "Q1?", "A1"),
        ("Two.", "Q0?", "A0"),
    ]


def test_json_is_known_by_what_it_holds(tmp_path):
    row = {"text": "a", "target": "good"}
    (tmp_path / "f.json").write_text(f"{json.dumps(row)}\n\n{json.dumps(row)}\n")
    assert own(tmp_path / "f.json") == ([("a", None, "good")] * 2, [], ["f.json holds JSON lines."])
    (tmp_path / "f.jsonl").write_text(json.dumps([row, row], indent=1))
    assert own(tmp_path / "f.jsonl") == ([("a", None, "good")] * 2, [], ["f.jsonl holds a JSON list."])
    (tmp_path / "f.json").write_text(json.dumps({"a": [row], "b": [row]}))
    with pytest.raises(DataError, match=r"several lists of objects \(a\[\], b\[\]\)"):
        own(tmp_path / "f.json")


def test_a_cell_that_holds_a_list_or_an_object_is_read_or_refused_never_written_out(tmp_path):
    squad = {"text": "a", "question": "b?", "target": {"text": ["first", "second"], "answer_start": [0, 1]}}
    none = {**squad, "target": {"text": [], "answer_start": []}}
    several = {**squad, "target": ["one", "two"]}
    records, dropped, _ = own(
        written(tmp_path / "q.jsonl", squad, none, several, {**squad, "target": {"a": 1}}), QA
    )
    assert records == [("a", "b?", "first"), ("a", "b?", "")]
    assert dropped == [
        "the target is a list of 2, which a qa task cannot read",
        "the target is an object, which a qa task cannot read",
    ]
    rows = [{"text": text, "target": "good"} for text in (["One.", " Two. "], [{"a": 1}], {"a": 1}, True)]
    records, dropped, _ = own(written(tmp_path / "t.jsonl", *rows))
    assert records == [("One. Two.", None, "good"), ("true", None, "good")]
    assert dropped == ["the text is a list of something other than texts", "the text is an object with a"]
    (file,) = row_files(tmp_path / "t.jsonl", "--input_file")
    assert [row.why for row in read_inputs(file, TOPIC) if isinstance(row, Dropped)] == dropped
    bullets = written(tmp_path / "s.jsonl", {"text": "a", "target": ["One.", "Two."]})
    assert own(bullets, SummarizationTask("s", "Sum up."))[0] == [("a", None, "One.\nTwo.")]
    assert own(written(tmp_path / "o.jsonl", {"text": "a", "target": ["good", "bad"]}))[1] == [
        "the target is a list of 2, which a classification task cannot read"
    ]


def test_a_table_may_hold_lists_and_answers_as_python_or_json_writes_them(tmp_path):
    answers = "{'text': array(['5 boats'], dtype=object), 'answer_start': array([10], dtype=int32)}"
    rows = [("text", "question", "target"), ("Acme sold 5 boats.", "How many?", answers)]
    rows += [
        ("['Sales rose.', 'Costs fell.']", "What?", '{"text": ["sales"]}'),
        ("[1] see", "What?", "[2] too"),
    ]
    with (tmp_path / "f.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows(rows)
    assert own(tmp_path / "f.csv", QA)[0] == [
        ("Acme sold 5 boats.", "How many?", "5 boats"),
        ("Sales rose. Costs fell.", "What?", "sales"),
        ("[1] see", "What?", "[2] too"),
    ]


def test_a_table_that_is_not_whole_is_refused_before_any_row_is_read(tmp_path):
    (tmp_path / "f.csv").write_text("text,target\n" + "a,good\n" * 50 + '"a, b,good\n' + "a,good\n" * 50)
    with pytest.raises(DataError, match=r"f\.csv, line 52: a quotation mark"):
        row_files(tmp_path, "--input_file")
    content = codecs.BOM_UTF8 + "sep=;\r\ntext;target\r\nErlöse, netto;good\r\n".encode()
    (tmp_path / "f.csv").write_bytes(content)
    records, _, notes = own(tmp_path / "f.csv")
    assert records == [("Erlöse, netto", None, "good")] and notes == ["f.csv has «;» between its cells."]


def test_a_workbook_that_comes_to_far_more_than_it_holds_is_refused(tmp_path, monkeypatch):
    from fintune.data.raw.readers import excel

    book = openpyxl.Workbook()
    book.active.append(["text"])
    book.save(tmp_path / "f.xlsx")

    def with_rows(name, rows):
        """The workbook with other rows in its sheet."""
        with zipfile.ZipFile(tmp_path / "f.xlsx") as old, zipfile.ZipFile(tmp_path / name, "w") as new:
            for part in old.namelist():
                content = old.read(part)
                if part.endswith("sheet1.xml"):
                    begin, end = content.index(b"<sheetData>"), content.index(b"</sheetData>")
                    content = content[:begin] + b"<sheetData>" + rows.encode() + content[end:]
                new.writestr(part, content, zipfile.ZIP_DEFLATED)
        return tmp_path / name

    monkeypatch.setattr(excel, "FREE_BYTES", 100_000)
    monkeypatch.setattr(excel, "MAX_RATIO", 1)
    first = '<row r="1"><c r="A1" t="n"><v>1</v></c></row>'
    far = "".join(f'<row r="{i}"><c r="ZZZ{i}" t="n"><v>1</v></c></row>' for i in range(2, 30))
    for name, rows in (("wide.xlsx", far), ("deep.xlsx", '<row r="99999999"><c r="A99999999"/></row>')):
        file = row_files(with_rows(name, first + rows), "file")[0]
        with pytest.raises(DataError, match="save it as CSV"):
            list(open_rows(file)[1])
