"""FinQA and ConvFinQA: small records of our own in the published shape."""

import json
import zipfile

import pytest
from raw_files import parts

from fintune.data.raw.readers.finqa import answer_text, convfinqa, finqa
from fintune.errors import DataError

PAGE = {
    "id": "ASHM/2015/page_7.pdf-2",
    "pre_text": ["sales are shown below .", "."],
    "post_text": ["costs rose 5% ( 5 % ) ."],
    "table": [["", "2015", "2014"], ["sales", "$ 120", "$ 100"]],
    "qa": {
        "question": "what was the growth of sales?",
        "answer": "20%",
        "exe_ans": 0.2,
        "program": "subtract(120, 100), divide(#0, 100)",
        "program_re": "divide(subtract(120, 100), 100)",
        "gold_inds": {"table_1": "sales of 2015 is 120"},
    },
}


def test_finqa_keeps_its_splits_its_program_and_a_pages_questions_together(tmp_path):
    other = {
        **PAGE,
        "id": "ASHM/2015/page_7.pdf-1",
        "qa": {**PAGE["qa"], "exe_ans": "yes", "program": "greater(2, 1)"},
    }
    private = {**PAGE, "qa": {"question": "what was it?"}}
    for name, entries in (("train", [PAGE, other]), ("dev", [PAGE]), ("test", [PAGE, private])):
        (tmp_path / f"{name}.json").write_text(json.dumps(entries))
    records, dropped = parts(finqa(*(tmp_path / f"{name}.json" for name in ("train", "dev", "test"))))
    assert [r.split for r in records] == ["train", "train", "validation", "test"]
    assert (
        records[0].text == "sales | 2015: $120 | 2014: $100\nsales are shown below .\ncosts rose 5% ( 5 % ) ."
    )
    assert [r.target for r in records[:2]] == ["0.2", "yes"]
    assert [r.kind for r in records[:2]] == ["subtract divide", "greater"]
    assert records[0].derivation == PAGE["qa"]["program"]
    assert {r.group for r in records} == {"ASHM/2015/page_7.pdf"}
    assert [(d.where, d.why) for d in dropped] == [
        ("test.json:1", "it lacks a table, a question or its answer")
    ]


def turn(index, **changes):
    asked = ["what were sales in 2015?", "and in 2014?", "what is the difference?"]
    annotation = {
        "cur_dial": asked[: index + 1],
        "exe_ans_list": [120.0, 100.0, 20.0],
        "exe_ans": [120.0, 100.0, 20.0][index],
        "cur_program": ["120", "100", "subtract(120, 100)"][index],
        "turn_ind": index,
        **changes,
    }
    return {**PAGE, "id": f"Single_ASHM/2015/page_7.pdf-2_{index}", "annotation": annotation}


def archive(path, **files):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("__MACOSX/data/._train_turn.json", b"\0")
        for name, entries in files.items():
            made.writestr(f"data/{name}.json", json.dumps(entries))
    return path


def test_convfinqa_tells_the_turns_before_with_their_answers(tmp_path):
    broken = turn(2, exe_ans_list=[120.0])
    path = archive(tmp_path / "data.zip", train_turn=[turn(0), turn(2), broken], dev_turn=[turn(1)])
    records, dropped = parts(convfinqa(path))
    assert [(r.split, r.target) for r in records] == [("train", "120"), ("train", "20"), ("test", "100")]
    assert records[1].question == ("what were sales in 2015? 120\nand in 2014? 100\nwhat is the difference?")
    assert [r.kind for r in records] == ["lookup", "subtract", "lookup"]
    assert {r.group for r in records} == {"ASHM/2015/page_7.pdf"}  # as FinQA's, which it is made from
    assert [d.where for d in dropped] == ["data.zip:train_turn.json:2"]


def test_an_archive_that_is_no_zip_or_lacks_a_part_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"data.zip has no dev_turn.json"):
        list(convfinqa(archive(tmp_path / "data.zip", train_turn=[turn(0)])))
    (tmp_path / "data.zip").write_bytes((tmp_path / "data.zip").read_bytes()[:-30])
    with pytest.raises(DataError, match=r"data.zip is damaged"):
        list(convfinqa(tmp_path / "data.zip"))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (120.0, "120"),
        (-0.0, "0"),
        (0.14136, "0.14136"),
        (-12.5, "-12.5"),
        (380, "380"),
        (" yes", "yes"),
        (1e-7, "0"),
    ],
)
def test_a_result_is_written_without_trailing_zeros(value, text):
    assert answer_text(value) == text
