"""Where answers go: every kind of file holds the same, nothing is written over, a stopped run goes on."""

import csv
import datetime
import json

import openpyxl
import pytest

from fintune.config import TaskDataConfig
from fintune.data.storage import locate, parquet_dataset
from fintune.errors import DataError
from fintune.inference.answer_files import safe, schema, table
from fintune.inference.answers import as_dict, predict_file
from fintune.tasks.base import Prediction
from fintune.tasks.types import QATask, RegressionTask


@pytest.fixture(scope="module")
def engine(untuned):
    return untuned(max_length=128)


@pytest.fixture
def remote():
    """A folder of the memory file system, which stands for an object store."""
    place = locate("memory://predict-test")
    place.child("in.jsonl").write(
        b'{"text": "Shares rise"}\n{"text": ""}\n{"text": "Shares fall", "id": "c"}\n'
    )
    yield place
    place.fs.rm(place.path, recursive=True)


def test_json_lines_and_parquet_hold_the_same_answers_at_any_path(engine, remote):
    source = "memory://predict-test/in.jsonl"
    assert predict_file(engine, "headline", source, "memory://predict-test/out.jsonl", False) == 2
    assert predict_file(engine, "headline", source, "memory://predict-test/out/", False) == 2
    with remote.child("out.jsonl").open() as stream:
        lines = [json.loads(line) for line in stream]
    assert [line["id"] for line in lines] == ["in.jsonl:1", "in.jsonl:2", "c"]
    assert lines[1]["error"] == "the text is empty"
    rows = parquet_dataset(remote.child("out")).to_table().to_pylist()
    for line, row in zip(lines, rows, strict=True):
        shares = line.pop("probabilities", {})
        assert {f"probability_{label}": share for label, share in shares.items()}.items() <= row.items()
        assert line.items() <= row.items()
        assert row.keys() - line.keys() >= {"error"} or row["error"]


def test_an_output_that_would_cost_something_is_refused_before_any_work(engine, remote, tmp_path):
    source = "memory://predict-test/in.jsonl"
    remote.child("full/part-00000.parquet").write(b"x")
    for output, says in (
        (source, "the input itself"),
        ("memory://predict-test/full/", "holds files already"),
        (tmp_path / "absent" / "out.jsonl", "whose folder does not exist"),
        (tmp_path / "out.parquet", "name a folder, such as answers/"),
    ):
        with pytest.raises(DataError, match=says):
            predict_file(engine, "headline", source, output, False)
    with pytest.raises(DataError, match="the input itself"):
        predict_file(engine, "headline", "memory://predict-test", "memory://predict-test/out/", False)


def test_a_remote_file_is_not_there_before_it_is_whole(engine, remote):
    remote.child("bad/a.csv").write(b"text\nShares rise\n")
    remote.child("bad/b.csv").write(b"body\nShares rise\n")
    remote.child("out.jsonl").write(b"earlier")
    with pytest.raises(DataError, match="has no column 'text'"):
        predict_file(
            engine, "headline", "memory://predict-test/bad", "memory://predict-test/out.jsonl", False
        )
    with remote.child("out.jsonl").open() as stream:
        assert stream.read() == b"earlier"


def test_a_numbers_probabilities_are_one_json_object_and_a_text_has_none():
    number = RegressionTask("change", "Predict.", levels=["-1", "+1"], level_means=[-1.5, 1.5])
    line = {"id": "a", **as_dict("change", number.decide([0.0, 0.0]))}
    (row,) = table([line], number).to_pylist()
    assert row["prediction"] == 0.0 and json.loads(row["probabilities"]) == {"-1": 0.5, "+1": 0.5}
    text = QATask("q", "Answer.")
    assert schema(text).names == ["id", "task", "prediction", "error"]
    (row,) = table([{"id": "b", **as_dict("q", Prediction("five"))}], text).to_pylist()
    assert row == {"id": "b", "task": "q", "prediction": "five", "error": None}


def rows_of_csv(path):
    with path.open(encoding="utf-8-sig", newline="") as stream:
        return list(csv.DictReader(stream))


def test_a_table_has_the_inputs_columns_then_the_answer_then_the_error(engine, tmp_path):
    """The columns are those of the training file, or named; no cell is computed."""
    source = tmp_path / "in.csv"
    source.write_text("Ticker,Headline,prediction\n=A1+1,Shares rise,mine\nB,,\n@C,Shares fall,\n")
    columns = {"text": "Headline"}
    assert predict_file(engine, "headline", source, tmp_path / "out.csv", False, columns) == 2
    rows = rows_of_csv(tmp_path / "out.csv")
    shares = [f"probability_{label}" for label in engine.tasks["headline"].labels]
    assert list(rows[0]) == ["Ticker", "Headline", "input_prediction", "prediction", *shares, "error"]
    assert [row["Ticker"] for row in rows] == ["'=A1+1", "B", "'@C"]
    assert rows[0]["input_prediction"] == "mine" and rows[0]["prediction"] in engine.tasks["headline"].labels
    assert rows[1]["error"] == "the text is empty" and not rows[1]["prediction"]

    assert predict_file(engine, "headline", source, tmp_path / "out.xlsx", False, columns) == 2
    sheet = openpyxl.load_workbook(tmp_path / "out.xlsx").active
    cells = list(sheet.iter_rows(values_only=True))
    assert [str(cell) for cell in cells[0]] == list(rows[0])
    assert cells[1][0] == "=A1+1" and sheet["A2"].data_type == "s", "a text, which Excel does not compute"
    assert cells[1][4] == pytest.approx(float(rows[0][shares[0]]))

    engine.recipe = engine.recipe.model_copy(deep=True)
    engine.recipe.data.tasks["headline"] = TaskDataConfig(file="own.csv", columns={"text": "Headline"})
    assert predict_file(engine, "headline", source, tmp_path / "trained.csv", False) == 2
    assert rows_of_csv(tmp_path / "trained.csv") == rows
    engine.recipe.data.tasks.pop("headline")
    with pytest.raises(DataError, match="--columns text=Headline"):
        predict_file(engine, "headline", source, tmp_path / "none.csv", False)


def test_rows_of_a_sheet_of_a_document_and_of_another_encoding_have_their_answers(engine, tmp_path):
    book = openpyxl.Workbook()
    news = book.create_sheet("News")
    for row in (
        ["Headline", "When"],
        ["Shares rise", datetime.date(2026, 1, 5)],
        [None, None],
        ["Shares fall", 7],
    ):
        news.append(row)
    book.save(tmp_path / "in.xlsx")
    document = {"data": {"items": [{"headline": "Shares rise"}, {"headline": ""}]}, "more": [{"a": 1}]}
    (tmp_path / "in.json").write_text(json.dumps(document))
    (tmp_path / "in.csv").write_bytes("text\nSpółka zyskuje\n".encode("cp1250"))
    for name, column, reading, texts in (
        ("in.xlsx", "Headline", {"encoding": None, "sheet": "News"}, ["Shares rise", "Shares fall"]),
        ("in.json", "data.items[].headline", {}, ["Shares rise", ""]),
        ("in.csv", "text", {"encoding": "cp1250"}, ["Spółka zyskuje"]),
    ):
        out = tmp_path / "out.csv"
        asked = ("headline", tmp_path / name, out, False, {"text": column}, reading)
        assert predict_file(engine, *asked) == sum(map(bool, texts))
        assert [row[column] for row in rows_of_csv(out)] == texts


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv", "out/"])
def test_a_run_that_was_stopped_goes_on_and_ends_as_one_that_was_not(
    engine, tmp_path, monkeypatch, capsys, name
):
    source = tmp_path / "in.csv"
    source.write_text("text\n" + "".join(f"Sales rose {n} %\n" for n in range(200)))
    reference = tmp_path / f"whole-{name}"
    assert predict_file(engine, "headline", source, f"{tmp_path}/whole-{name}", False) == 200
    asked = []
    real = type(engine).replies

    def stopping(self, task, records, **more):
        if len(asked) == 1:
            asked.append(0)
            raise KeyboardInterrupt
        asked.append(len(records))
        return real(self, task, records, **more)

    monkeypatch.setattr(type(engine), "replies", stopping)
    output = f"{tmp_path}/{name}"
    with pytest.raises(KeyboardInterrupt):
        predict_file(engine, "headline", source, output, False)
    journal = tmp_path / f"{name.rstrip('/')}.part"
    with journal.open("ab") as stream:
        stream.write(b'{"id": "cut in the mid')
    first = asked[0]
    assert predict_file(engine, "headline", source, output, False) == 200
    assert sum(asked) == 200 and f"Continuing after the {first:,} rows" in capsys.readouterr().err
    assert not journal.exists()
    for path in [reference, *reference.rglob("*.parquet")]:
        if path.is_file():
            twin = tmp_path / name / path.name if reference.is_dir() else tmp_path / name
            assert path.read_bytes() == twin.read_bytes()


def test_answers_to_another_question_are_not_gone_on_with(engine, tmp_path, capsys):
    source = tmp_path / "in.csv"
    source.write_text("text\nShares rise\n")
    (tmp_path / "out.jsonl.part").write_text('{"task": "other"}\n{"id": "x", "prediction": "y"}\n')
    assert predict_file(engine, "headline", source, tmp_path / "out.jsonl", False) == 1
    assert "another question" in capsys.readouterr().err
    [line] = (tmp_path / "out.jsonl").read_text().splitlines()
    assert json.loads(line)["id"] == "in.csv:2"


def test_a_spreadsheet_does_not_compute_what_a_text_says():
    assert safe("=HYPERLINK(1)") == "'=HYPERLINK(1)" and safe("@a") == "'@a"
    assert safe("-2.5 %") == "-2.5 %" and safe(-2.5) == -2.5
    assert safe("- up 3 %\n- down") == "• up 3 %\n• down"


@pytest.mark.parametrize(
    "before", ["", " ", "\n", "\t", "\r", "\r\n ", "\u00a0", "\ufeff", "\u200b", "\x00", "\u3000"]
)
@pytest.mark.parametrize("sign", "=+-@＝＋－＠﹦﹢﹣﹫⁼")
def test_no_formula_hides_behind_what_is_not_seen_or_a_wide_sign(before, sign):
    assert safe(f"{before}{sign}cmd|' /C calc'!A0").startswith("'")


def test_texts_that_are_no_formulas_stay_as_they_are():
    for text in ("Sales rose.", " Sales", "5 = 5", "1-2", "−2", "-2.5", " +3.1 %", "", "a\n=b", "«=»"):
        assert safe(text) == text


def test_a_formula_in_a_workbook_is_a_text_and_stays_one(engine, tmp_path):
    import openpyxl

    (tmp_path / "in.jsonl").write_text(json.dumps({"text": " ＝1+1", "note": "plain"}) + "\n")
    predict_file(engine, "headline", tmp_path / "in.jsonl", tmp_path / "out.xlsx", False)
    cells = {cell.value: cell for cell in openpyxl.load_workbook(tmp_path / "out.xlsx").active[2]}
    assert cells[" ＝1+1"].data_type == "s" and cells[" ＝1+1"].quotePrefix
    assert not cells["plain"].quotePrefix


def test_half_a_character_costs_its_row_alone_in_every_kind_of_output(engine, tmp_path):
    rows = [
        r'{"text": "Shares rise"}',
        r'{"text": "Shares \ud83d rise"}',
        r'{"text": "Shares fall", "id": "a\udc00"}',
        r'{"text": "Shares fall", "question": "\ud83d?"}',
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(rows) + "\n")
    assert predict_file(engine, "headline", tmp_path / "in.jsonl", tmp_path / "out.jsonl", False) == 3
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["id"] for line in lines] == ["in.jsonl:1", "in.jsonl:2", "a�", "in.jsonl:4"]
    assert ["half a character" in line.get("error", "") for line in lines] == [False, True, False, False]
    for name in ("out/", "out.csv", "out.xlsx"):
        assert predict_file(engine, "headline", tmp_path / "in.jsonl", f"{tmp_path}/{name}", False) == 3
