"""Answers from documents on the tiny base: what is read, where an answer comes from, what is not there."""

import json

import pytest

from fintune import cli
from fintune.data.documents.reading import parse_document
from fintune.errors import DataError
from fintune.inference import documents
from fintune.inference.engine import Engine
from fintune.tasks import Prediction

FILLER = "".join(
    f"<p>Paragraph {i} speaks of weather, harvests and the long roads between the towns of the plain.</p>"
    for i in range(60)
)
REPORT = f"""<html><h1>Item 1. Business</h1>{FILLER}<h1>Item 7. Discussion</h1><h2>Results</h2>
<p>Revenue of the northern segment was $412 million in 2025.</p>{FILLER}</html>"""


@pytest.fixture(scope="module")
def engine(random_adapter):
    return Engine.load(random_adapter)


@pytest.fixture(scope="module")
def report():
    return parse_document(REPORT.encode(), "report.html")


def test_a_question_reads_the_passages_about_it_within_the_context_the_best_first(engine, report):
    task = engine.tasks["qa"]
    asked = documents.ask(
        task, [report], "What was revenue of the northern segment, by the towns of the plain?"
    )
    reading = documents.read(engine, task, asked)
    assert "northern segment was $412 million" in reading.pieces[0][1].text
    assert 1 <= len(reading.pieces) <= 3
    engine.prompt(task, reading.record, truncate=False)  # it fits
    assert all(reading.record.text[a:b] == passage.text for (a, b), passage in reading.pieces)


def test_an_answer_cites_the_passage_that_has_its_words_with_section_and_extent(engine, report):
    task = engine.tasks["qa"]
    reading = documents.read(engine, task, documents.ask(task, [report], "northern segment revenue?"))
    given = documents.cited(task, reading, Prediction("$412 million", token_probability=0.9))
    (source,) = given.sources
    assert source.passage.section == "Item 7. Discussion › Results"
    assert [source.passage.text[a:b] for a, b in source.spans] == ["$412 million"]
    assert 0 < given.words_read < given.words and "All were searched" in given.extent
    line = given.to_dict("qa")
    assert "unsupported" not in line
    wrong = documents.cited(task, reading, Prediction("$413 million")).to_dict("qa")
    assert wrong["unsupported"] == ["413"]
    assert line["read"]["of_words"] == report.words and line["sources"][0]["document"] == "report.html"


def test_what_no_passage_is_about_is_not_in_the_document_and_the_model_is_not_asked(
    engine, report, monkeypatch
):
    monkeypatch.setattr(engine, "predict", None)
    given = documents.answer(engine, "qa", [report], "Which vaccines were approved by the regulator?")
    assert given.prediction is None and given.to_dict("qa")["error"] == "not in this document"
    assert given.extent.startswith("Searched: all")


def test_a_short_document_is_read_whole(engine):
    short = parse_document(b"Sales rose to 5 million.", "a.txt")
    given = documents.answer(engine, "qa", [short], "What were sales?")
    assert given.words_read == given.words and given.extent == "Read: all of a.txt (5 words)."


def test_a_summary_reads_sentences_of_the_whole_document_and_cites_each_bullet(engine, report):
    task = engine.tasks["summarization"]
    reading = documents.read(engine, task, documents.ask(task, [report], None))
    assert "$412 million" in reading.record.text  # it stands in the middle
    assert all(reading.record.text[a:b] in passage.text for (a, b), passage in reading.pieces)
    given = documents.cited(task, reading, Prediction("- Revenue of $412 million in the north"))
    assert [(s.bullet, s.passage.section) for s in given.sources] == [(1, "Item 7. Discussion › Results")]


def test_several_documents_are_one_and_the_source_says_which(engine, report):
    other = parse_document(b"The chief executive is Ann Smith.", "people.txt")
    task = engine.tasks["qa"]
    asked = documents.ask(task, [report, other], "Who is the chief executive?")
    given = documents.cited(task, documents.read(engine, task, asked), Prediction("Ann Smith"))
    assert given.sources[0].passage.place == "people.txt" and "2 documents" in given.extent


def predict(capsys, adapter, *args):
    code = cli.main(["predict", "--model_path", str(adapter), *map(str, args)])
    return code, capsys.readouterr()


def test_predict_answers_from_a_document_as_json_and_each_file_of_a_folder(
    random_adapter, tmp_path, workdir, capsys
):
    file = tmp_path / "docs" / "report.html"
    file.parent.mkdir()
    file.write_text(REPORT)
    code, out = predict(
        capsys, random_adapter, "--task", "qa", "--document", file, "What was the northern segment's revenue?"
    )
    line = json.loads(out.out)
    assert code == 0 and line["task"] == "qa" and line["read"]["documents"] == ["report.html"]
    (file.parent / "empty.txt").write_text(" ")
    answers = tmp_path / "answers.jsonl"
    code, out = predict(
        capsys, random_adapter, "--task", "sentiment", "--input_file", file.parent, "--output_file", answers
    )
    empty, report = map(json.loads, answers.read_text().splitlines())
    assert empty == {"id": "empty.txt", "task": "sentiment", "error": "empty.txt holds no text."}
    assert report["id"] == "report.html" and report["prediction"] in report["probabilities"]
    assert code == 0 and "1 answers written" in out.out
    sheet = tmp_path / "answers.csv"
    predict(
        capsys, random_adapter, "--task", "sentiment", "--input_file", file.parent, "--output_file", sheet
    )
    _, first, second = sheet.read_text("utf-8-sig").splitlines()
    assert first.startswith("empty.txt,") and first.endswith("holds no text.")
    assert second.startswith(f"report.html,{report['prediction']}")


@pytest.mark.parametrize(
    ("args", "why"),
    [
        (("--task", "qa", "--document", "none.pdf", "x?"), "none.pdf, which does not exist"),
        (("--task", "qa", "--document", "a.txt"), "There is no question"),
        (("--task", "summarization", "--document", "a.txt", "x?"), "takes no question"),
        (("--task", "qa", "--document", "a.txt", "x", "--input_file", "b.csv"), "--input_file does not go"),
        (("--task", "qa", "--document", "a.txt", "x", "--question", "y"), "--question beside a text"),
    ],
)
def test_mistakes_with_documents_are_sentences(random_adapter, workdir, capsys, args, why):
    (workdir / "a.txt").write_text("Sales rose.")
    code, out = predict(capsys, random_adapter, *args)
    assert code != 0 and why in out.err and "Traceback" not in out.err


def test_for_people_the_passage_stands_below_with_the_answer_marked(engine, report, capsys):
    task = engine.tasks["qa"]
    reading = documents.read(engine, task, documents.ask(task, [report], "northern segment revenue?"))
    documents.shown(documents.cited(task, reading, Prediction("$412 million", token_probability=0.9)))
    out = capsys.readouterr().out
    assert "«$412 million»" in out and "Item 7. Discussion › Results" in out and "0.90" in out
    documents.shown(documents.DocumentAnswer(documents.ask(task, [report], "vaccines?"), None))
    assert capsys.readouterr().out.startswith("Not in this document.")


def test_a_question_longer_than_the_context_is_refused(engine, report):
    with pytest.raises(DataError, match=r"prompt has .* tokens"):
        documents.answer(engine, "qa", [report], "northern segment revenue " * 100)
