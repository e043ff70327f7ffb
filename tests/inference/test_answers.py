"""Where answers go: JSON lines and Parquet hold the same, remote files are whole, nothing is written over."""

import json

import pytest

from fintune.config import Recipe
from fintune.data.storage import locate, parquet_batches
from fintune.errors import DataError
from fintune.inference.answers import as_dict, predict_file, schema, table
from fintune.inference.engine import Engine
from fintune.tasks.base import Prediction
from fintune.tasks.types import QATask, RegressionTask


@pytest.fixture(scope="module")
def engine(tiny_base):
    recipe = {"base_model": {"name": str(tiny_base)}, "training": {"bf16": False, "max_length": 128}}
    return Engine.load(None, Recipe.model_validate(recipe))


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
    rows = [row for batch in parquet_batches(remote.child("out")) for row in batch.to_pylist()]
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
        (tmp_path / "absent" / "out.jsonl", "is in no folder"),
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
    assert [line["id"] for line in lines] == ["in.jsonl:1", "in.jsonl:2", "a?", "in.jsonl:4"]
    assert ["half a character" in line.get("error", "") for line in lines] == [False, True, False, False]
    assert predict_file(engine, "headline", tmp_path / "in.jsonl", f"{tmp_path}/out/", False) == 3
