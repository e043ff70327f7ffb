"""A file of rows in, a CSV of answers out."""

import csv

import pytest

from fintune.demo import batch
from fintune.errors import DataError
from fintune.inference.engine import Engine


@pytest.fixture(scope="module")
def engine(tiny_base):
    from fintune.config import Recipe

    return Engine.load(recipe=Recipe.model_validate({"base_model": {"name": str(tiny_base)}}))


def run(engine, task, source, target):
    steps = list(batch.run(engine, engine.tasks[task], source, target))
    with target.open(encoding="utf-8-sig", newline="") as stream:
        return steps[-1], list(csv.DictReader(stream))


def test_every_row_has_its_answer_or_its_error_in_its_place(engine, tmp_path):
    source = tmp_path / "in.csv"
    source.write_text("id,text\n" + "".join(f"r{i},Profit rose by {i} %.\n" for i in range(20)) + "r20,\n")
    last, rows = run(engine, "sentiment", source, tmp_path / "out.csv")
    assert (last.done, last.total, len(last.errors)) == (21, 21, 1)
    assert [row["id"] for row in rows[:20]] == [f"r{i}" for i in range(20)]
    assert rows[20]["error"] == "the text is empty" and rows[20]["prediction"] == ""
    direct = engine.answer("sentiment", "Profit rose by 7 %.")
    assert rows[7]["prediction"] == direct.value and rows[7]["text"] == "Profit rose by 7 %."
    for label, share in direct.probabilities.items():
        assert float(rows[7][f"probability_{label}"]) == pytest.approx(share, abs=1e-3)


def test_a_workbook_and_a_packed_table_are_answered_and_what_is_odd_is_said(engine, tmp_path):
    import gzip

    import openpyxl

    book = openpyxl.Workbook()
    for row in (["id", "text"], [1, "Profit rose."], [2, None]):
        book.active.append(row)
    book.create_sheet("Notes")
    book.save(tmp_path / "in.xlsx")
    (tmp_path / "in.csv.gz").write_bytes(gzip.compress("id|text\n1|Profit rose.\n2|\n".encode("utf-16")))
    for name, notes in (("in.xlsx", ["Sheet is read"]), ("in.csv.gz", ["unpacked", "utf-16", "«|»"])):
        last, rows = run(engine, "sentiment", tmp_path / name, tmp_path / "out.csv")
        assert [(row["id"], row["error"]) for row in rows] == [("1", ""), ("2", "the text is empty")]
        assert len(last.notes) == len(notes) and all(map(str.__contains__, last.notes, notes))


def test_a_number_has_its_interval(engine, tmp_path):
    from fintune.data.raw.sample import sample_records

    engine.tasks["regression"].fit(sample_records("regression", sizes=(60, 0, 0)))
    source = tmp_path / "in.csv"
    source.write_text("text\nOrders grew.\n")
    _, [row] = run(engine, "regression", source, tmp_path / "out.csv")
    assert float(row["interval_low"]) <= float(row["prediction"]) <= float(row["interval_high"])


def test_a_file_that_cannot_be_answered_says_why(engine, tmp_path):
    task = engine.tasks["qa"]
    for content, why in (("text\nRevenue was 3.\n", "question"), ("text,question\n", "no rows|empty")):
        (tmp_path / "in.csv").write_text(content)
        with pytest.raises(DataError, match=why):
            list(batch.run(engine, task, tmp_path / "in.csv", tmp_path / "out.csv"))


def test_the_files_own_columns_stay_and_the_text_is_in_the_one_that_is_named(engine, tmp_path):
    source = tmp_path / "in.csv"
    source.write_text("Firm,News\nA,Orders grew.\nB,\n")
    steps = list(batch.run(engine, engine.tasks["headline"], source, tmp_path / "out.csv", {"text": "News"}))
    with (tmp_path / "out.csv").open(encoding="utf-8-sig", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["Firm"], row["News"]) for row in rows] == [("A", "Orders grew."), ("B", "")]
    assert rows[0]["prediction"] and steps[-1].errors == [("in.csv:3", "the text is empty")]
